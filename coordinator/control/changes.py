"""The client of the watchdog's change API: what changes the swarm while it runs.

A request keeps its id while it is repeated, so that the death of a watchdog in the middle of it is only a pause: the
next leader answers, and the change is made once.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import orjson

from bus.errors import BusTimeout, MeshError
from bus.interface import Bus
from bus.messages.subjects import WATCHDOG
from coordinator.changes.change_api import ANSWER_S
from coordinator.control.watchdog_client import no_answer, parse_reply

LEADER_S = 15.0
"""Seconds without any answer after which no watchdog leads: one takes over in a second, or `up` starts one."""
DONE_S = 60.0
"""Seconds that a change may take after it was stored."""
PAUSE_S = 0.2

OnPending = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedToSwarm:
    """`add --json`: the agent runs in `sandbox` as the incarnation `epoch`, and its votes count from now on.

    `cursor` is the sequence of the last message that it has handled since it was added, null before the first.
    """

    agent: str
    sandbox: str
    epoch: int
    status: str
    cursor: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovedFromSwarm:
    """`remove --json`. `forgotten`: its saved state is deleted; else an agent added by the same name continues it.

    `warnings` are what the swarm has no agent for any more, such as decisions.
    """

    agent: str
    forgotten: bool
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedAgent:
    """`move --json`. `sandbox` is where it runs now, as the incarnation `epoch`.

    An agent whose `status` is quarantined or drained starts there when it is revived.
    """

    agent: str
    sandbox: str
    epoch: int
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedSandbox:
    """`sandbox add --json` and `sandbox remove --json`.

    One that was added has a live host of `provider`. Of one that was removed `moved` are the agents that had their home
    there, where they are now, and `provider` is null.
    """

    sandbox: str
    change: Literal["added", "removed"]
    provider: str | None = None
    moved: list[MovedAgent] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """`scale --json`: the generated agents of the kind, all of them, as they are now."""

    kind: str
    agents: list[MovedAgent]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebalanced:
    """`rebalance --json`: the agents that came back to their sandboxes, with their new epochs."""

    moved: list[MovedAgent] = field(default_factory=list)


def _ignore(_: str) -> None:
    pass


async def request_change(bus: Bus, command: str, on_pending: OnPending = _ignore, **values: Any) -> dict[str, Any]:
    """Send a request until it is done; `on_pending` gets what is waited for.

    Raises:
        UsageError: it is wrong; MeshError: it cannot be done now, or takes too long; BusTimeout: no watchdog answers.
    """
    body = orjson.dumps({"id": secrets.token_hex(8), **values})
    subject = bus.subjects.control(WATCHDOG, command)
    started_at = answered_at = time.monotonic()
    while True:
        try:
            reply = parse_reply(await bus.request(subject, body, ANSWER_S + 2.0))
        except BusTimeout as error:
            if time.monotonic() - answered_at > LEADER_S:
                raise no_answer(bus, error) from None
            await asyncio.sleep(PAUSE_S)
            continue
        answered_at = time.monotonic()
        if "pending" not in reply:
            return reply
        on_pending(reply["pending"])
        if answered_at - started_at > DONE_S:
            raise MeshError(
                f"{command}: not done after {DONE_S:.0f} s: {reply['pending']}; `signalmesh config diff` shows whether "
                "it was made"
            )


async def add(bus: Bus, agent: str, table: dict[str, Any], on_pending: OnPending = _ignore) -> AddedToSwarm:
    """Add an agent; `table` is what [agents.NAME] would be. Raises as `request_change`."""
    return msgspec.convert(await request_change(bus, "add", on_pending, agent=agent, table=table), AddedToSwarm)


async def remove(bus: Bus, agent: str, *, forget: bool = False, on_pending: OnPending = _ignore) -> RemovedFromSwarm:
    """Remove an agent, with `forget` its saved state too; raises as `request_change`."""
    done = await request_change(bus, "remove", on_pending, agent=agent, forget=forget)
    return msgspec.convert(done, RemovedFromSwarm)


async def scale(bus: Bus, kind: str, count: int, on_pending: OnPending = _ignore) -> Scaled:
    """Have `count` generated agents of a kind; raises as `request_change`."""
    return msgspec.convert(await request_change(bus, "scale", on_pending, kind=kind, count=count), Scaled)


async def move(bus: Bus, agent: str, sandbox: str, on_pending: OnPending = _ignore) -> MovedAgent:
    """Move an agent to `sandbox`, its home from now on; raises as `request_change`."""
    return msgspec.convert(await request_change(bus, "move", on_pending, agent=agent, sandbox=sandbox), MovedAgent)


async def add_sandbox(bus: Bus, sandbox: str, table: dict[str, Any], on_pending: OnPending = _ignore) -> ChangedSandbox:
    """Add a sandbox, and wait for its host; `table` is what [sandboxes.NAME] would be. Raises as `request_change`."""
    done = await request_change(bus, "sandbox_add", on_pending, sandbox=sandbox, table=table)
    return msgspec.convert({**done, "change": "added"}, ChangedSandbox)


async def remove_sandbox(bus: Bus, sandbox: str, on_pending: OnPending = _ignore) -> ChangedSandbox:
    """Move the agents of a sandbox to others, then end its host; raises as `request_change`."""
    done = await request_change(bus, "sandbox_remove", on_pending, sandbox=sandbox)
    return msgspec.convert({**done, "change": "removed"}, ChangedSandbox)


async def rebalance(bus: Bus, on_pending: OnPending = _ignore) -> Rebalanced:
    """Bring all agents home that run elsewhere, one after the other; raises as `request_change`."""
    done = Rebalanced()
    while True:
        reply = await request_change(bus, "rebalance", on_pending)
        if reply["agent"] is None:
            return done
        done.moved.append(
            MovedAgent(agent=reply["agent"], sandbox=reply["sandbox"], epoch=reply["epoch"], status=reply["status"])
        )
        if not reply["left"]:
            return done
