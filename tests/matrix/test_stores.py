"""Stored data is taken away from the swarm: the mirror's file, a bucket, messages that an agent had not read yet."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from bus.mirror.reader import MirrorFile
from tests.acceptance.exact import MANY_ROUNDS, Content, assert_each_round_once, assert_numbered, content_of
from tests.acceptance.subscriber import read_stream
from tests.acceptance.swarm import AGENTS, Swarm, agents_toml
from tests.matrix.verification import Before, assert_prefix, matrix_toml, verify

STATE = "KV_swarm_state"


@pytest.mark.parametrize("how", ["deleted", "replaced"])
async def test_the_mirrors_file_is_gone_while_it_runs(tmp_path: Path, undisturbed_long: Content, how: str):
    async with Swarm(tmp_path, matrix_toml()) as swarm:
        subscriber = await swarm.up()
        before = await Before.of(subscriber)
        path = tmp_path / ".signalmesh" / "mirror.sqlite"
        for file in path.parent.glob("mirror.sqlite*"):
            file.unlink()
        if how == "replaced":
            path.write_bytes(b"something else")
        [alert] = await subscriber.alerted("mirror_file_replaced")
        assert ("it was deleted" if how == "deleted" else "another file is in its place") in alert["message"]
        last = subscriber.messages[-1].sequence
        await subscriber.until("a mirror up to here", lambda: (subscriber.heartbeats["mirror"]["cursor"] or 0) >= last)
        await verify(swarm, subscriber, undisturbed_long, before, ())
        assert await swarm.end(signal.SIGINT) == 0
        with MirrorFile(path) as mirror:
            assert [m.row.sequence for m in mirror.messages()] == list(range(1, mirror.cursor() + 1))
            assert mirror.problems() == []


async def test_the_bucket_of_snapshots_is_deleted_while_it_runs(tmp_path: Path, undisturbed_long: Content):
    async with Swarm(tmp_path, matrix_toml()) as swarm:
        subscriber = await swarm.up()
        await Before.of(subscriber)
        await subscriber.api(f"STREAM.DELETE.{STATE}")
        [alert] = await subscriber.alerted("stream_lost")
        assert STATE in alert["message"]
        assert "signalmesh up" in alert["message"]
        await subscriber.more_decisions(20)
        assert (await swarm.command("down")).code == 0
        await swarm.wait()
        subscriber = await swarm.up()
        await subscriber.more_decisions(20)
        await subscriber.live(*AGENTS)
        assert "restored from the mirror" in swarm.errors
        stored = await read_stream(swarm.url, swarm.name)
        assert_numbered(stored)
        assert_prefix(content_of(stored), undisturbed_long)
        assert_each_round_once([message.json for message in stored if message.kind == "decision"])
        audit = await swarm.command("audit", "--json")
        assert (audit.code, audit.json["problems"]) == (0, []), audit.out
        assert await swarm.end(signal.SIGINT) == 0


async def test_the_stream_is_deleted_while_it_runs(tmp_path: Path, undisturbed_long: Content):
    """No alert can be stored: `up` prints it, and commands do not report that no server answers."""
    async with Swarm(tmp_path, matrix_toml()) as swarm:
        subscriber = await swarm.up()
        await Before.of(subscriber)
        await subscriber.api("STREAM.DELETE.swarm_events")
        heartbeats = 0
        while "the stream swarm_events has been deleted" not in swarm.errors:
            heartbeats += 1
            await subscriber.more_heartbeats(heartbeats, "watchdog")
        result = await swarm.command("audit")
        assert result.code == 3
        assert "no stream for" in result.err
        assert "no NATS server answers" not in result.err
        assert await swarm.end(signal.SIGINT) == 0
        subscriber = await swarm.up()
        await subscriber.more_decisions(20)
        await subscriber.live(*AGENTS)
        stored = await read_stream(swarm.url, swarm.name)
        assert_numbered(stored)
        assert_prefix(content_of(stored), undisturbed_long)
        audit = await swarm.command("audit", "--json")
        assert (audit.code, audit.json["problems"]) == (0, []), audit.out
        assert await swarm.end(signal.SIGINT) == 0


async def test_retention_goes_beyond_what_a_drained_agent_had_read(tmp_path: Path):
    """Retention by size removes the claims first, so that every agent is superseded once and starts again."""
    toml = f"[stream]\nmax_bytes = 4_000_000\n{agents_toml(speed=150, limit=MANY_ROUNDS)}"
    async with Swarm(tmp_path, toml) as swarm:
        subscriber = await swarm.up()
        await subscriber.decided(20)
        await subscriber.live(*AGENTS)
        drained = await swarm.command("kill", "strategy-momentum", "--signal", "TERM", "--json")
        assert drained.json["outcome"] == "drained", drained
        [cursor] = [event["detail"]["cursor"] for event in subscriber.lifecycle if event["event"] == "drained"]
        await subscriber.all_decided(MANY_ROUNDS)
        state = (await subscriber.api("STREAM.INFO.swarm_events"))["state"]
        retained = min(
            message.sequence for message in await read_stream(swarm.url, swarm.name) if message.kind == "market"
        )
        assert retained > cursor + 1, state
        assert (await swarm.command("revive", "strategy-momentum")).code == 0
        [alert] = await subscriber.alerted("retention_gap")
        assert (alert["agent"], alert["detail"]["first_missing"]) == ("strategy-momentum", cursor + 1)
        audit = await swarm.command("audit", "--json")
        assert any("retention_gap" in note for note in audit.json["notes"]), json.dumps(audit.json["notes"])
        assert await swarm.end(signal.SIGINT) == 0
