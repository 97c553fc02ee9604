"""Claims of an agent's name on a real server."""

from __future__ import annotations

from pathlib import Path

from bus.durable.fencing import claim, new_agent_id
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
