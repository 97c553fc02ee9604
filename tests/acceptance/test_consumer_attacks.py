"""Consumers without end keep agents from recovering: the limit is the stream's, whoever makes them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from bus.durable.events import EventPublisher
from bus.errors import LimitReached
from bus.nats.streams import MAX_CONSUMERS
from coordinator.security.connections import ConsumerWatch
from tests.support.attacking import GUARD_S, MARKER, alerts_of, connected, is_served, server
from tests.support.secured import Secured

__all__ = ["server"]

EVIL = {"deliver_subject": "evil", "ack_policy": "none", "mem_storage": True}


@pytest.mark.slow
async def test_a_flood_of_consumers_is_deleted_and_readers_go_on(server: Secured):
    """The limit is the stream's own: a server without keys has it too."""
    async with connected(server, "sandbox-base", "up") as (operator, captured, up):
        received: list[int] = []
        reader = await operator.follow(("swarm.alert.>",), 1, lambda stored: received.append(stored.sequence))
        watch = ConsumerWatch(server.owner, lambda: ["operator", "sandbox-base"])
        names = [f"evil-{number}" for number in range(MAX_CONSUMERS)]

        async def create(name: str) -> bool:
            config = {**EVIL, "name": name, "durable_name": name}
            body = {"stream_name": "swarm_events", "config": config}
            try:
                await captured.api(f"CONSUMER.CREATE.swarm_events.{name}", body, 60.0)
            except LimitReached:
                return False
            return True

        created = [done for at in range(0, MAX_CONSUMERS, 256) for done in await batch(create, names[at : at + 256])]
        assert 0 < created.count(False) < MAX_CONSUMERS
        with pytest.raises(LimitReached):
            await operator.read_back(("swarm.alert.>",), 1)
        async with await EventPublisher.open(operator, "up") as events:
            await watch.look(up, events)
            assert (await operator.api("STREAM.INFO.swarm_events"))["state"]["consumer_count"] == 1
            again = [f"sandbox-base-{number:022}" for number in range(20)]
            assert all(await batch(create, again)), "as if they were its own"
            await watch.look(up, events)
            await watch.look(up, events)
        assert (await operator.api("STREAM.INFO.swarm_events"))["state"]["consumer_count"] == 17
        alerts = await alerts_of(operator, "too_many_consumers")
        assert [alert["detail"] for alert in alerts] == [
            {"who": "", "count": created.count(True)},
            {"who": server.owner("") if server.is_open else "sandbox-base", "count": 4},
        ]
        stored = await operator.publish(MARKER, b"{}")
        async with asyncio.timeout(GUARD_S):
            while stored.sequence not in received:
                await operator.flush()
        await reader.close()
        await batch(lambda name: is_served(operator, f"CONSUMER.DELETE.swarm_events.{name}"), again)


async def batch(work: Callable[[str], Awaitable[bool]], names: list[str]) -> list[bool]:
    return await asyncio.gather(*map(work, names))
