"""The bus loses everything: the next `up` puts it back from the mirror, and the swarm goes on where it was."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from bus.mirror.reader import MirrorFile
from tests.acceptance.exact import (
    ROUNDS,
    Content,
    assert_each_round_once,
    assert_numbered,
    assert_same,
    content_of,
    exact_toml,
)
from tests.acceptance.subscriber import SwarmMessage, read_stream
from tests.acceptance.swarm import AGENTS, Ends, Swarm


def mirror_of(swarm: Swarm) -> Path:
    return swarm.directory / ".signalmesh" / "mirror.sqlite"


def forget(swarm: Swarm) -> None:
    """Delete all that nats-server kept."""
    shutil.rmtree(swarm.directory / ".signalmesh" / "nats" / "store")


def rebuilt(messages: list[SwarmMessage]) -> list[dict[str, Any]]:
    return [m.json for m in messages if m.kind == "lifecycle" and m.json["event"] == "rebuilt"]


def epochs_of(messages: list[SwarmMessage]) -> dict[str, list[int]]:
    claims: dict[str, list[int]] = {}
    for message in messages:
        if message.kind == "epoch":
            claims.setdefault(message.writer, []).append(message.sequence)
    return claims


@pytest.mark.slow
async def test_after_down_the_lost_store_is_restored_exactly(tmp_path: Path, undisturbed: Content):
    async with Swarm(tmp_path, exact_toml(speed=40)) as swarm:  # `down` itself takes seconds to start on a busy machine
        subscriber = await swarm.up()
        await subscriber.decided(260)
        ended = await swarm.command("down")
        assert ended.code == 0, ended
        await swarm.wait()
        history = await swarm.command("history", "decision", "--limit", "1", "--json")  # with everything stopped
        [newest] = history.json["entries"]
        with MirrorFile(mirror_of(swarm)) as file:
            before = [(m.row.sequence, m.row.subject, m.row.payload, dict(m.row.headers)) for m in file.messages()]
            assert json.loads(file.meta("complete") or "")["swarm_events"] == file.cursor()
        assert newest["payload"]["round"] < ROUNDS
        forget(swarm)

        subscriber = await swarm.up()
        await subscriber.all_decided(ROUNDS)
        stored = await read_stream(swarm.url, swarm.name)
        assert [(m.sequence, m.subject, m.data, m.headers) for m in stored[: len(before)]] == before
        assert all(
            item.sequence > before[-1][0] for item in subscriber.messages
        )  # nothing restored was received as new
        assert_same(content_of(stored), undisturbed)
        assert_numbered(stored)
        assert_each_round_once([m.json for m in stored if m.kind == "decision"])
        [event] = rebuilt(stored)
        assert (event["detail"]["clean"], event["detail"]["missing_from"]) == (True, None)
        claims = epochs_of(stored)
        assert set(claims) == {*AGENTS, "watchdog"}
        for sequences in claims.values():
            assert max(sequences) > before[-1][0]
        assert "restored from the mirror" in swarm.errors
        audit = await swarm.command("audit", "--json")
        assert (audit.code, audit.json["problems"]) == (0, []), audit
        assert await swarm.end(signal.SIGINT) == 0


@pytest.mark.slow
async def test_after_kill_9_of_everything_it_goes_on_and_reports_what_may_be_missing(
    tmp_path: Path, undisturbed: Content, chance: random.Random
):
    async with Swarm(tmp_path, exact_toml()) as swarm:
        subscriber = await swarm.up()
        for share in (3, 2):
            await subscriber.decided(ROUNDS // share + chance.randrange(20))
            all_agents = swarm.all_agents()
            ends = await Ends.of(*(process.pid for process in all_agents))
            chance.shuffle(all_agents)
            for process in all_agents:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            await ends.all()
            await swarm.wait()
            with MirrorFile(mirror_of(swarm)) as file:
                held = file.cursor()
            forget(swarm)
            subscriber = await swarm.up()
            stored = await read_stream(swarm.url, swarm.name)
            event = rebuilt(stored)[-1]
            assert (event["detail"]["clean"], event["detail"]["missing_from"]) == (False, held + 1)
        await subscriber.all_decided(ROUNDS)
        stored = await read_stream(swarm.url, swarm.name)
        assert_same(content_of(stored), undisturbed)  # what was lost was derived again, byte for byte
        assert_numbered(stored)
        assert_each_round_once([m.json for m in stored if m.kind == "decision"])
        assert [alert for alert in subscriber.alerts if alert["severity"] == "critical"] == []
        await subscriber.live(*AGENTS)
        audit = await swarm.command("audit", "--json")
        assert audit.code == 0, audit.json["problems"]
        assert sum("were left unused: messages from" in note for note in audit.json["notes"]) == 2
        assert not [note for note in audit.json["notes"] if "retention" in note]
        assert await swarm.end(signal.SIGINT) == 0


@pytest.mark.slow
@pytest.mark.parametrize("how", ["deleted", "damaged"])
async def test_a_mirror_that_is_gone_is_filled_again_from_the_stream(tmp_path: Path, how: str):
    async with Swarm(tmp_path, exact_toml(rounds=300)) as swarm:
        subscriber = await swarm.up()
        await subscriber.decided(100)
        assert await swarm.end(signal.SIGINT) == 0
        path = mirror_of(swarm)
        if how == "deleted":
            for file in path.parent.glob("mirror.sqlite*"):
                file.unlink()
        else:
            path.write_bytes(b"\xa5" * 8192 + path.read_bytes()[8192:])
        subscriber = await swarm.up()
        await subscriber.all_decided(300)
        await subscriber.until("a mirror", lambda: subscriber.heartbeats.get("mirror", {}).get("status") == "live")
        if how == "damaged":
            await subscriber.alerted("mirror_file_replaced")
            assert len(list(path.parent.glob("mirror.sqlite.damaged-*"))) >= 1
        assert await swarm.end(signal.SIGINT) == 0
        with MirrorFile(path) as mirror:
            assert [m.row.sequence for m in mirror.messages()] == list(range(1, mirror.cursor() + 1))
            rounds = [json.loads(m.row.payload)["round"] for m in mirror.messages(kind="decision")]
            assert rounds == list(range(1, 301))


@pytest.mark.slow
async def test_a_killed_mirror_is_started_again_and_misses_nothing(tmp_path: Path):
    async with Swarm(tmp_path, exact_toml(rounds=500)) as swarm:
        subscriber = await swarm.up()
        for _ in range(3):
            await subscriber.until("a mirror", lambda: subscriber.heartbeats.get("mirror", {}).get("status") == "live")
            heartbeat = subscriber.heartbeats["mirror"]
            swarm.send(heartbeat["pid"], signal.SIGKILL)
            await subscriber.until("another mirror", lambda: subscriber.heartbeats["mirror"]["pid"] != heartbeat["pid"])  # noqa: B023
        await subscriber.alerted("mirror_died", 3)
        await subscriber.all_decided(500)
        status = (await swarm.command("status", "--json")).json
        assert status["mirror"]["file"] == ".signalmesh/mirror.sqlite"
        assert status["mirror"]["status"] in ("live", "catching-up")
        stored = await read_stream(swarm.url, swarm.name)
        assert await swarm.end(signal.SIGINT) == 0
        with MirrorFile(mirror_of(swarm)) as mirror:
            rows = [(m.row.sequence, m.row.payload) for m in mirror.messages(last=stored[-1].sequence)]
            assert rows == [(item.sequence, item.data) for item in stored]
