"""`restart` and `revive`: what a person asks of the watchdog, which alone decides when an agent runs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

import msgspec
import orjson

from bus.errors import MeshError, UsageError
from bus.nats_bus import NatsBus

__all__ = ["Restarted", "Revived", "ask_watchdog"]

ANSWER_S = 12.0
"""A little longer than the watchdog waits for an agent to drain."""
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Restarted:
    """`restart --json`. `epoch_before` is the epoch that has drained and `at` when; for an agent that did not run,
    both are None and `was` says why: quarantined or drained.
    """

    agent: str
    epoch_before: int | None = None
    at: datetime | None = None
    was: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Revived:
    """`revive --json`. `was`: quarantined or drained."""

    agent: str
    was: str


async def ask_watchdog(bus: NatsBus, verb: str, agent: str, answer: type[Answer]) -> Answer:
    """Ask the leading watchdog to `verb` the `agent`.

    Raises:
        UsageError: there is no such agent; MeshError: it cannot be done now; BusError: no watchdog answers.
    """
    reply = orjson.loads(
        await bus.request(bus.subjects.control("watchdog", verb), orjson.dumps({"agent": agent}), ANSWER_S)
    )
    if "error" in reply:
        raise UsageError(reply["error"]) if "no agent" in reply["error"] else MeshError(reply["error"])
    return msgspec.convert(reply, answer)
