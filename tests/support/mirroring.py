"""A real mirror process, and what its file must hold."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bus.interface import ReceivedMessage
from bus.mirror.reader import MirrorFile
from bus.nats.bus import NatsBus
from bus.nats.consumer import collect
from bus.utils.processes import die_with_parent
from signalmesh import python_command
from tests.support.collecting import GUARD_S


class MirrorProcess:
    """`signalmesh mirror --file FILE` on the server at `url`. Started by `start`, as often as one likes."""

    def __init__(self, url: str, file: Path) -> None:
        self.url, self.file = url, file
        self.process: asyncio.subprocess.Process

    async def start(self, *options: str) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *python_command("mirror", "--file", str(self.file), *options),
            cwd=self.file.parent,
            env={**os.environ, "SIGNALMESH_NATS": self.url, "SIGNALMESH_SWARM": "swarm"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            preexec_fn=functools.partial(die_with_parent, os.getpid()),
        )  # fmt: skip

    async def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        await self.process.communicate()

    async def end(self) -> str:
        """SIGTERM; its output, once it has ended with exit code 0."""
        self.process.send_signal(signal.SIGTERM)
        return await self.ended(0)

    async def ended(self, code: int) -> str:
        async with asyncio.timeout(GUARD_S):
            out, _ = await self.process.communicate()
        text = out.decode()
        assert self.process.returncode == code, text
        assert "Traceback" not in text, text
        return text


class Heartbeats:
    """The heartbeats of mirrors."""

    def __init__(self) -> None:
        self.last: dict[str, object] = {}
        self._more = asyncio.Event()

    @classmethod
    async def of(cls, bus: NatsBus) -> Heartbeats:
        heartbeats = cls()

        async def on_heartbeat(received: ReceivedMessage) -> None:
            heartbeats.last = json.loads(received.data)
            heartbeats._more.set()

        await bus.listen(bus.subjects.heartbeat("mirror"), on_heartbeat)
        return heartbeats

    async def reached(self, pid: int, sequence: int) -> None:
        """Wait until the mirror of this pid holds the stream up to `sequence`."""
        async with asyncio.timeout(GUARD_S):
            while self.last.get("pid") != pid or int(str(self.last["cursor"])) < sequence:
                self._more.clear()
                await self._more.wait()

    async def until(self, **wanted: object) -> dict[str, object]:
        async with asyncio.timeout(GUARD_S):
            while {key: self.last.get(key) for key in wanted} != wanted:
                self._more.clear()
                await self._more.wait()
        return self.last


@asynccontextmanager
async def mirror_process(url: str, file: Path) -> AsyncIterator[MirrorProcess]:
    mirror = MirrorProcess(url, file)
    await mirror.start()
    try:
        yield mirror
    finally:
        with contextlib.suppress(ProcessLookupError):
            mirror.process.kill()
        await mirror.process.communicate()


async def assert_mirrored(bus: NatsBus, path: Path, *, rebuilt: bool = False) -> int:
    """The file holds exactly what the stream and the buckets hold; how many messages that are.

    What was `rebuilt` was stored at another time than the file says.
    """
    subjects = bus.subjects
    stored = await collect(bus.jetstream, subjects.stream, (f"{subjects.ns}.>",), 1)
    with MirrorFile(path) as file:
        rows = list(file.messages())
        assert all(row.intact for row in rows)
        assert [(r.row.sequence, r.row.subject, r.row.payload, dict(r.row.headers)) for r in rows] == [
            (s.sequence, s.subject, s.data, dict(s.headers)) for s in stored
        ]
        if not rebuilt:
            assert [r.row.stored_ns for r in rows] == [s.stored_ns for s in stored]
        assert file.cursor() == (await bus.bounds()).last
        assert file.problems() == []
        for bucket in (subjects.state_bucket, subjects.registry_bucket):
            retained = await bus.kv_all(bucket)
            values = {key: found.row for key, found in file.values(bucket).items() if found.row.operation == "PUT"}
            assert {key: (row.value, row.revision) for key, row in values.items()} == {
                key: (value.value, value.revision) for key, value in retained.items()
            }
    return len(stored)
