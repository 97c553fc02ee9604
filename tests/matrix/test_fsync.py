"""The disk under the mirror refuses to write through: libfiu has fsync and fdatasync of that one process fail."""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import signal
from pathlib import Path

import pytest

from bus.mirror.reader import MirrorFile
from bus.utils.processes import die_with_parent
from signalmesh import python_command
from tests.acceptance.exact import Content
from tests.acceptance.swarm import ENVIRONMENT, Swarm
from tests.matrix.verification import Before, matrix_toml, verify

LIBRARIES = tuple(Path("/usr/lib/fiu") / name for name in ("fiu_run_preload.so", "fiu_posix_preload.so"))
POINTS = ("posix/io/sync/fsync", "posix/io/sync/fdatasync")


async def control(directory: Path, pid: int, command: str) -> None:
    """Have libfiu in the process `pid` make the sync functions fail, or no longer."""
    for point in POINTS:
        done = await asyncio.create_subprocess_exec(
            "fiu-ctrl", "-f", str(directory / "fiu"), "-c", f"{command} name={point}", str(pid),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        async with asyncio.timeout(60):
            out, _ = await done.communicate()
        assert done.returncode == 0, out.decode()


@pytest.mark.serial
async def test_fsync_of_the_mirror_fails(tmp_path: Path, undisturbed_long: Content):
    if shutil.which("fiu-ctrl") is None or not all(library.exists() for library in LIBRARIES):
        pytest.skip("libfiu is not here (Debian: apt install fiu-utils)")
    async with Swarm(tmp_path, matrix_toml(top="[mirror]\nenabled = false\n")) as swarm:
        subscriber = await swarm.up()
        path = tmp_path / ".signalmesh" / "mirror.sqlite"
        preloaded = {"LD_PRELOAD": " ".join(map(str, LIBRARIES)), "FIU_CTRL_FIFO": str(tmp_path / "fiu")}
        with (tmp_path / "mirror.log").open("wb") as output:
            mirror = await asyncio.create_subprocess_exec(
                *python_command("mirror", "--file", str(path)),
                cwd=tmp_path, env={**ENVIRONMENT, **preloaded, "SIGNALMESH_NATS": swarm.url},
                stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
                preexec_fn=functools.partial(die_with_parent, os.getpid()),
            )  # fmt: skip
        try:
            before = await Before.of(subscriber)
            await subscriber.until("a mirror", lambda: subscriber.heartbeats.get("mirror", {}).get("status") == "live")
            await control(tmp_path, mirror.pid, "enable")
            [failing] = await subscriber.alerted("mirror_failing")
            assert "disk I/O error" in failing["message"]
            await subscriber.until(
                "a mirror that fails", lambda: subscriber.heartbeats["mirror"]["status"] == "failing"
            )
            await subscriber.more_decisions(50)
            await control(tmp_path, mirror.pid, "disable")
            await subscriber.alerted("mirror_recovered")
            last = subscriber.messages[-1].sequence
            await subscriber.until(
                "a mirror up to here", lambda: (subscriber.heartbeats["mirror"]["cursor"] or 0) >= last
            )
            assert subscriber.heartbeats["mirror"]["pid"] == mirror.pid
            await verify(swarm, subscriber, undisturbed_long, before, ())
            assert (await swarm.command("down")).code == 0
            await swarm.wait()
        finally:
            if mirror.returncode is None:
                mirror.send_signal(signal.SIGKILL)
            await mirror.wait()
        with MirrorFile(path) as file:
            assert [m.row.sequence for m in file.messages()] == list(range(1, file.cursor() + 1))
            assert file.problems() == []
