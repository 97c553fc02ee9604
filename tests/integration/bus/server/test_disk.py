"""A small disk under the store: the server's limit fits it, at each of its starts."""

from __future__ import annotations

from dataclasses import replace

from bus.nats.streams import StreamLimits, ensure_streams
from bus.server.disk import measure_room
from bus.server.supervisor import NatsServer
from tests.support.disk import small_disk
from tests.support.nats import Connections

MESSAGE = bytes(200_000)


async def test_a_store_that_has_most_of_its_disk_is_written_again_after_a_restart(tmp_path):
    with small_disk(tmp_path / "small", 64) as disk:
        for _ in range(2):
            async with NatsServer(disk, port=0) as server, Connections() as connections:
                bus = await connections.bus(server.url)
                room = measure_room(server.directory)
                assert room.free_bytes + room.used_bytes <= 64 << 20
                await ensure_streams(bus, replace(StreamLimits(), disk=room))
                for _ in range(110):
                    await bus.publish("in.swarm.market.X.stranger", MESSAGE)
                config = (await bus.api("STREAM.INFO.swarm_events"))["config"]
                assert 20 << 20 < config["max_bytes"] <= 26 << 20
            filler = disk / "other.program"
            filler.write_bytes(bytes(28 << 20))  # 0.75 of the rest is less than what the store has
