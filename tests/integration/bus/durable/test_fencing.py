"""Claims of an agent's name on a real server."""

from __future__ import annotations

from pathlib import Path

import pytest

from bus.durable.fencing import claim, fence, new_agent_id
from bus.durable.outbox import Entry, Outbox
from bus.errors import Fenced, MeshError, WrongSequence
from bus.nats.bus import NatsBus
from bus.nats.streams import ensure_streams
from bus.server.supervisor import NatsServer


async def test_a_claim_succeeds_after_an_undecodable_one(tmp_path: Path) -> None:
    async with NatsServer(tmp_path, port=0) as server:
        bus = await NatsBus.connect(server.url, "swarm", "test")
        await ensure_streams(bus)
        garbage = await bus.publish("in.swarm.epoch.a", b"{")
        epoch = await claim(bus, "a", agent_id=new_agent_id(), claimed_by="test", sandbox="")
        assert epoch > garbage.sequence
        await bus.close()


async def test_after_the_stream_has_removed_a_claim_its_incarnation_is_fenced_and_the_next_one_claims(tmp_path: Path):
    async with NatsServer(tmp_path, port=0) as server:
        bus = await NatsBus.connect(server.url, "swarm", "test")
        await ensure_streams(bus)

        async def claimed(expect: int | None) -> int:
            return await claim(bus, "a", agent_id=new_agent_id(), claimed_by="test", sandbox="", expect=expect)

        removed = await claimed(None)
        config = (await bus.api("STREAM.INFO.swarm_events"))["config"]
        await bus.publish("in.swarm.alert.info.test", b"{}")
        await bus.api("STREAM.UPDATE.swarm_events", {**config, "max_msgs": 1})  # as any limit, it removes the oldest
        reasons: list[MeshError] = []
        outbox = Outbox(bus, ("swarm.*.*.a",), reasons.append, pipelined=True)
        outbox.put(Entry("swarm.alert.info.a", b"{}", fence(bus, "a", removed)))
        with pytest.raises(
            Fenced, match=r"the stream has removed its claim with the oldest messages \(\[stream\] max_"
        ):
            await outbox.flush()
        assert [type(reason) for reason in reasons] == [Fenced]
        epoch = await claimed(removed)
        assert epoch > removed
        with pytest.raises(WrongSequence):  # there is a newer claim
            await claimed(removed)
        await bus.close()
