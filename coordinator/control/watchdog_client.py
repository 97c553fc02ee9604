"""The client of the watchdog's control API: `restart` and `revive`; changes.py has the changes of the swarm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import orjson

from bus.errors import BusTimeout, MeshError, UsageError
from bus.interface import Bus
from bus.messages.subjects import WATCHDOG
from coordinator.supervisor.control_api import DRAIN_S, READY_S

ANSWER_S = DRAIN_S + READY_S + 2.0
"""A little longer than the watchdog waits before it reports a failure."""
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Restarted:
    """`restart --json`. `epoch_before` is the epoch that has drained, None for an agent that was quarantined or
    drained (then `was` is that word); `epoch_after` is that of the incarnation that is ready now, `ready_ms`
    milliseconds after the request.
    """

    agent: str
    epoch_before: int | None = None
    epoch_after: int
    ready_ms: float
    was: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Revived:
    """`revive --json`. `was`: quarantined or drained."""

    agent: str
    was: str


async def request_watchdog(bus: Bus, command: str, agent: str, answer: type[Answer]) -> Answer:
    """Send `command` about `agent` to the leading watchdog.

    Raises:
        UsageError: there is no such agent, or it is external; MeshError: it cannot be done now; BusTimeout: no
            watchdog answers.
    """
    try:
        data = await bus.request(bus.subjects.control(WATCHDOG, command), orjson.dumps({"agent": agent}), ANSWER_S)
    except BusTimeout as error:
        raise no_answer(bus, error) from None
    return msgspec.convert(parse_reply(data), answer)


def no_answer(bus: Bus, error: BusTimeout) -> BusTimeout:
    """The error where no watchdog answers."""
    return BusTimeout(
        f"no watchdog of swarm {bus.subjects.ns!r} has answered ({error}); `signalmesh status` shows whether one "
        "runs, `signalmesh up` or `signalmesh watchdog` starts one"
    )


def parse_reply(data: bytes) -> dict[str, Any]:
    """The watchdog's answer.

    Raises:
        UsageError, MeshError: it has refused the request.
    """
    reply: dict[str, Any] = orjson.loads(data)
    if "error" in reply:
        raise UsageError(reply["error"]) if reply.get("usage") else MeshError(reply["error"])
    return reply
