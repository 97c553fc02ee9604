"""Streams of a server that gets the mapping of the write side, and loses it again, with what they hold."""

from __future__ import annotations

from pathlib import Path

from bus.durable.fencing import claim
from bus.messages.guard import GUARD, mappings
from bus.messages.subjects import Subjects
from bus.nats.bus import NatsBus
from bus.nats.permissions import is_guarded
from bus.nats.streams import StreamLimits, ensure_streams
from tests.support.secured import served

SUBJECTS = Subjects("swarm")
SMALL = StreamLimits(max_bytes=16 << 20)


async def test_the_streams_follow_the_mapping_and_keep_what_they_hold(tmp_path: Path):
    epochs: list[int] = []
    for lines in ("", mappings(SUBJECTS), ""):
        with served(tmp_path, lines) as url:
            bus = await NatsBus.connect(url, "swarm", "test")
            assert await is_guarded(bus) is bool(lines)
            assert await ensure_streams(bus, SMALL) == []
            assert await ensure_streams(bus, SMALL) == []
            config = (await bus.api(f"STREAM.INFO.{SUBJECTS.stream}"))["config"]
            assert config["subjects"] == [(GUARD if lines else "") + "in.swarm.>"]
            epochs.append(await claim(bus, "a", agent_id="x", claimed_by="test", sandbox="base"))
            last = await bus.last("swarm.epoch.a")
            assert last is not None
            assert last.sequence == epochs[-1]
            entry = await bus.kv_get(SUBJECTS.state_bucket, "a")
            assert (None if entry is None else entry.value) == (str(epochs[:-1]).encode() if epochs[1:] else None)
            revision = 0 if entry is None else entry.revision
            await bus.kv_put(SUBJECTS.state_bucket, "a", str(epochs).encode(), revision)
            await bus.close()
        for ports in tmp_path.glob("*.ports"):
            ports.unlink()
    assert epochs == sorted(set(epochs))
    assert len(epochs) == 3
