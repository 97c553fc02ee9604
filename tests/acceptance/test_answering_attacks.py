"""Whoever answers could publish to the subject that a request names, or for another; without authentication it can."""

from __future__ import annotations

import asyncio

import pytest

from bus.errors import BusTimeout
from bus.nats.bus import NatsBus
from bus.server.monitoring import listed, read_monitoring
from tests.support.attacking import AGENT, MARKER, REFUSED_S, connected, lands, server
from tests.support.secured import Secured

__all__ = ["server"]


async def answers_to(operator: NatsBus, asker: NatsBus, answerer: NatsBus, asked: str, subject: str) -> bool:
    """Whether an answer lands at `subject`, which the asker has named as the reply subject of a request to `asked`."""
    answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    received: list[bytes] = []

    def answer(_: str, reply: str, __: bytes, ___: bytes) -> None:
        if reply and not answered.done():
            answerer.connection.write(reply, b"forged")
            answered.set_result(None)

    read_side = subject.removeprefix("in.")
    await operator.connection.subscribe_directly(read_side, lambda _s, _r, data, _h: received.append(data))
    await answerer.connection.subscribe_directly(asked, answer)
    await operator.flush()
    await answerer.flush()
    asker.connection.write(asked, b"{}", subject)
    await asker.flush()
    await answerer.flush()  # whatever was sent to it has arrived
    if answered.done():
        await answerer.flush()
    if subject.startswith("in."):
        assert await lands(operator, operator, MARKER)
    await operator.flush()
    return b"forged" in received


@pytest.mark.parametrize("subject", ["in.swarm.decision.BTC-USD.coordinator", "swarm.control.coordinator.status"])
@pytest.mark.parametrize(
    ("asker", "answerer", "asked"),
    [
        ("agent-research-1", "sandbox-base", "_API.swarm.research-1.INFO"),  # a host has the keys of its agents
        ("watchdog", "watchdog", "swarm.control.watchdog.kill"),
        ("watchdog", "sandbox-base", "swarm.control.base.spawn"),
        ("dashboard", "sandbox-base", "swarm.control.base.signal"),
        ("dashboard", AGENT, "swarm.control.strategy-momentum.signal"),
        ("dashboard", "proxy", "swarm.control.proxy.signal"),
        ("dashboard", "watchdog", "swarm.control.watchdog.restart"),
    ],
)
async def test_no_answer_is_sent_to_a_subject_of_another(
    server: Secured, asker: str, answerer: str, asked: str, subject: str
):
    async with connected(server, asker, answerer) as (operator, asking, answering):
        assert await answers_to(operator, asking, answering, asked, subject) is server.is_open


async def test_no_acknowledgement_of_another_is_forged(server: Secured):
    """Monitoring shows inboxes to this machine, and the server sends acknowledgements anywhere."""
    silent = "swarm.heartbeat.research-1"
    async with connected(server, AGENT, "agent-research-1") as (operator, captured, victim):
        await operator.connection.subscribe_directly(silent, lambda *_: None)  # else the server answers that nobody is
        await operator.flush()
        replies: list[str] = []
        await captured.connection.subscribe_directly(silent, lambda _s, reply, _d, _h: replies.append(reply))
        await captured.flush()
        url = listed(server.log.parent, server.pid, "monitoring")
        assert url is not None
        assert url.startswith("http://127.0.0.1:")
        shown = (await read_monitoring(url, "connz?subs=1") or {})["connections"]
        [subscribed] = [each["subscriptions_list"] for each in shown if each.get("name") == "agent-research-1"]
        inboxes = [each.removesuffix("*") for each in subscribed if each.startswith("_INBOX.") and each.endswith(".*")]
        assert inboxes
        publishing = asyncio.create_task(victim.publish(silent, b"{}", timeout_s=REFUSED_S))
        await asyncio.sleep(0)
        await victim.flush()
        await captured.flush()
        for reply in (*replies, *(f"{inbox}{number}" for inbox in inboxes for number in range(20))):
            captured.connection.write("in.swarm.signal.BTC-USD.strategy-momentum", b"{}", reply)
        if server.is_open:
            assert (await publishing).sequence > 0
        else:
            with pytest.raises(BusTimeout):
                await publishing
