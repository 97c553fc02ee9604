"""Where a captured process can have the server send the acknowledgements of its messages."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import pytest

from bus.errors import Refused
from bus.messages.guard import GUARD
from bus.nats.bus import NatsBus
from tests.support.attacking import AGENT, MARKER, connected, lands, server
from tests.support.secured import VOTER, Secured

__all__ = ["server"]

ACKNOWLEDGED = {
    AGENT: ("in.swarm.signal.BTC-USD.strategy-momentum", "$KV.swarm_state.strategy-momentum"),
    VOTER: ("in.swarm.signal.BTC-USD.outsider",),
    "watchdog": ("in.swarm.epoch.coordinator",),
}
"""What these may publish to a stream, which acknowledges it."""
TARGETS = (
    "in.swarm.epoch.coordinator",
    "in.swarm.decision.BTC-USD.coordinator",
    "in.swarm.market.BTC-USD.research-1",
    "in.swarm.alert.critical.mirror",
    "$KV.swarm_state.coordinator",
    "$KV.swarm_memory.swarm/coordinator/decision",
    "$KV.swarm_agents.coordinator",
)


async def acknowledged_at(
    operator: NatsBus, captured: NatsBus, own: str, reply: str, headers: Mapping[str, str] | None = None
) -> list[str]:
    """Where the streams have stored something that is not `captured`'s, after its message to `own` with this reply."""
    streams = ("swarm_events", "KV_swarm_state", "KV_swarm_memory", "KV_swarm_agents")
    before = {name: (await operator.api(f"STREAM.INFO.{name}"))["state"]["last_seq"] for name in streams}
    captured.connection.write(own, b"{}", reply, headers)
    await captured.flush()  # an acknowledgement follows when the message is stored, and the next message that
    for subject in dict.fromkeys((own, MARKER)):
        await (captured if subject == own else operator).publish(subject, b"{}")
    found = []
    for name, last in before.items():
        now = (await operator.api(f"STREAM.INFO.{name}"))["state"]["last_seq"]
        for sequence in range(last + 1, now + 1):
            with contextlib.suppress(Refused):  # a newer one has replaced it
                message = (await operator.api(f"STREAM.MSG.GET.{name}", {"seq": sequence}))["message"]
                found.append(message["subject"])
    return [subject for subject in found if subject not in (own.removeprefix("in."), MARKER.removeprefix("in."))]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("attacker", ACKNOWLEDGED)
async def test_no_acknowledgement_is_stored_as_a_message(server: Secured, attacker: str, target: str):
    """The stream sends it with the server's rights to the reply subject that the publisher names."""
    async with connected(server, attacker) as (operator, captured):
        for own in ACKNOWLEDGED[attacker]:
            found = await acknowledged_at(operator, captured, own, target)
            refused = await acknowledged_at(operator, captured, own, target, {"Nats-Expected-Stream": "another"})
            assert bool(found) is bool(refused) is (server.is_open and target != own), (found, refused)


@pytest.mark.parametrize("target", TARGETS)
async def test_the_subjects_behind_the_mapping_are_no_reply_subjects(server: Secured, target: str):
    """The server itself refuses them as reply subjects, with keys or without."""
    async with connected(server, AGENT) as (operator, captured):
        for own in ACKNOWLEDGED[AGENT]:
            assert await acknowledged_at(operator, captured, own, GUARD + target) == []
        assert await lands(operator, captured, GUARD + target) is server.is_open


async def test_an_acknowledgement_can_be_sent_to_whoever_listens(server: Secured):
    """A hole (docs/security.md): the server compares no permission with a reply subject. If this fails, it is gone."""
    async with connected(server, AGENT) as (operator, captured):
        received: list[bytes] = []
        await operator.connection.subscribe_directly("swarm.control.>", lambda _s, _r, data, _h: received.append(data))
        await operator.flush()
        own = "in.swarm.signal.BTC-USD.strategy-momentum"
        captured.connection.write(own, b"{}", "swarm.control.base.kill")
        await captured.publish(own, b"{}")
        await operator.flush()
        assert b'"stream"' in b"".join(received)
