"""A full disk under the store or under the mirror: it is reported, nothing is lost, and there is room again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats.errors
import pytest

from bus.mirror.reader import MirrorFile
from tests.acceptance.exact import Content
from tests.acceptance.subscriber import Subscriber, read_stream
from tests.acceptance.swarm import AGENTS, Swarm
from tests.matrix.verification import Before, matrix_toml, verify
from tests.support.disk import small_disk

SMALL = "[stream]\nmax_bytes = 16_000_000\n"
"""The server promises no more than its disk has."""


def fill(disk: Path) -> Path:
    """Take all the room there is; the file that has it."""
    hog = disk / "hog"
    descriptor = os.open(hog, os.O_CREAT | os.O_WRONLY)
    try:
        with contextlib.suppress(OSError):
            while True:
                os.write(descriptor, bytes(4096))
    finally:
        os.close(descriptor)
    return hog


@contextlib.asynccontextmanager
async def counting_acknowledgements(subscriber: Subscriber) -> AsyncIterator[list[int]]:
    """A program publishes numbered alerts, each after the end of the last; the acknowledged numbers."""
    acknowledged: list[int] = []

    async def publish() -> None:
        number = 0
        while True:
            number += 1
            alert = {"severity": "info", "code": "client", "message": str(number), "source": "client",
                     "timestamp": "2024-01-15T10:30:00Z"}  # fmt: skip
            with contextlib.suppress(nats.errors.Error):
                await subscriber.publish("alert.info.client", alert)
                acknowledged.append(number)

    task = asyncio.create_task(publish())
    try:
        await subscriber.until("acknowledgements", lambda: len(acknowledged) > 20)
        yield acknowledged
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def stored(swarm: Swarm, subscriber: Subscriber, subject: str) -> Any:
    """The newest message of this subject, when there is one. The subscriber may have reconnected after it."""
    stream = subscriber.client.jetstream()
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(nats.errors.Error):
                message = await stream.get_last_msg(f"{swarm.name}_events", f"{swarm.name}.{subject}")
                return json.loads(message.data or b"")
            await subscriber.more_heartbeats(1, "watchdog")


async def printed_by(swarm: Swarm, subscriber: Subscriber, text: str) -> None:
    """Wait until `up` prints this."""
    async with asyncio.timeout(60):
        while text not in swarm.errors:
            await subscriber.more_heartbeats(1, "watchdog")


@pytest.mark.serial
async def test_full_disk_of_the_state(tmp_path: Path, undisturbed_long: Content):
    """Store, logs, record and mirror are on it."""
    state = tmp_path / ".signalmesh"
    with small_disk(state, 64):
        async with Swarm(tmp_path, matrix_toml(top=SMALL)) as swarm:
            subscriber = await swarm.up()
            before = await Before.of(subscriber)
            async with counting_acknowledgements(subscriber) as acknowledged:
                hog = fill(state)
                await printed_by(swarm, subscriber, "stores nothing")
                await subscriber.more_heartbeats(20, *AGENTS)
                doctor = await swarm.command("doctor", "--json")
                hog.unlink()
                restarted = await stored(swarm, subscriber, "alert.warning.up")
                assert restarted["code"] == "nats_server_restarted"
                alert = await stored(swarm, subscriber, "alert.critical.up")
            assert alert["code"] == "nats_server_not_storing"
            assert "no space left on device" in alert["message"]
            findings = {finding["check"]: finding["level"] for finding in doctor.json["findings"]}
            assert (doctor.code, findings["store's disk"], findings["disk space"]) == (1, "error", "error")
            retained = [item.json for item in await read_stream(swarm.url, swarm.name) if item.writer == "client"]
            assert {int(alert["message"]) for alert in retained} >= set(acknowledged)
            await verify(swarm, subscriber, undisturbed_long, before, (), received=False)
            assert await swarm.end(signal.SIGINT) == 0


@pytest.mark.serial
async def test_full_disk_of_the_mirror(tmp_path: Path, undisturbed_long: Content):
    with small_disk(tmp_path / "small", 16) as disk:
        async with Swarm(tmp_path, matrix_toml()) as swarm:
            state = tmp_path / ".signalmesh"
            state.mkdir()
            path = state / "mirror.sqlite"
            path.symlink_to(disk / path.name)  # SQLite keeps its other files beside what a link leads to
            subscriber = await swarm.up()
            before = await Before.of(subscriber)
            hog = fill(disk)
            [failing] = await subscriber.alerted("mirror_failing")
            assert str(path.name) in failing["message"]
            await subscriber.more_decisions(20)
            hog.unlink()
            await subscriber.alerted("mirror_recovered")
            last = subscriber.messages[-1].sequence
            await subscriber.until(
                "a mirror up to here", lambda: (subscriber.heartbeats["mirror"]["cursor"] or 0) >= last
            )
            await verify(swarm, subscriber, undisturbed_long, before, ())
            assert await swarm.end(signal.SIGINT) == 0
            with MirrorFile(path) as mirror:
                assert mirror.problems() == []
                assert [m.row.sequence for m in mirror.messages()] == list(range(1, mirror.cursor() + 1))
                assert json.loads(mirror.meta("complete") or "{}")["swarm_events"] == mirror.cursor()
