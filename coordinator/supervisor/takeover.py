"""What became of agents while nobody led: deaths that no watchdog has declared, since it had died itself.

A new leader hears only what the hosts report now. Who died before, and has been replaced since, or declared dead, or
drained, is told apart by the stream: an epoch is the sequence of its claim there, so everything has its order.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

import structlog

from bus.durable.fencing import last_claim
from bus.durable.registry import Record
from bus.errors import MessageError
from bus.interface import Bus, StoredMessage
from bus.messages import Epoch, Lifecycle, Message
from bus.messages.headers import STORED_AT
from bus.messages.subjects import WATCHDOG
from coordinator.supervisor.model import AgentState, UnreportedExit
from coordinator.supervisor.policy import Policy

__all__ = ["settle"]

log = structlog.get_logger("signalmesh.watchdog")


async def settle(bus: Bus, policy: Policy, records: Mapping[str, Record]) -> None:
    """Tell `policy` of the incarnations that died undeclared, and of a quarantine that the registry was not told of any
    more; to be called when it has heard the hosts.

    Two kinds: a host reports that it has ended, or nobody reports it at all, as its host ended too. Of the latter only
    while others run: where nobody does, the whole swarm was down, and starts.

    Raises:
        BusError: the bus does not answer; nothing was concluded then.
    """
    waiting = [agent for agent in policy.agents.values() if agent.phase == "waiting"]
    found = [(agent, await _find(bus, agent, records if policy.any_process_runs else {})) for agent in waiting]
    now = time.monotonic()
    for agent, what in found:
        if isinstance(what, UnreportedExit):
            log.info(
                "unreported_exit_found", of=agent.name, epoch=what.epoch, sandbox=what.sandbox, exit_code=what.exit_code
            )
            policy.unreported_exit_found(now, agent.name, what)
        elif what is not None:  # reported, but not yet recorded in the registry
            policy.mark_stopped(agent.name, "quarantined", what.epoch or 0, what.sandbox or "")


async def _find(bus: Bus, agent: AgentState, records: Mapping[str, Record]) -> UnreportedExit | Lifecycle | None:
    """The newest incarnation of `agent`, if it died undeclared; or the report with which it was quarantined."""
    record = records.get(agent.name)
    if agent.unreported_exit is None and record is None:
        return None
    claimed = await last_claim(bus, agent.name)
    if claimed is None:
        return None
    concluded = await _concluded(bus, agent.name, claimed.sequence)
    if concluded is not None:
        return concluded if concluded.event == "quarantined" else None
    unreported_exit: UnreportedExit | None = (
        None  # so it stays if it was claimed since, and is not ready: its recovery had begun
    )
    if agent.unreported_exit is not None and agent.unreported_exit.epoch == claimed.sequence:
        unreported_exit = await _reported(bus, agent.name, agent.unreported_exit)
    elif record is not None:
        unreported_exit = await _vanished(bus, claimed, record)
    return (
        None if unreported_exit is None or unreported_exit.exit_code == 0 else unreported_exit
    )  # 0: it drained, or a watchdog that died asked it to


async def _vanished(bus: Bus, claimed: StoredMessage, record: Record) -> UnreportedExit | None:
    """The incarnation that `claimed`, if it was ready and nobody reports it although a host should."""
    claim = _read(bus, claimed)
    if not isinstance(claim, Epoch) or claim.claimed_by != WATCHDOG:
        return None  # it runs by hand, or did: no host would report it
    if record.status != "active" or record.epoch != claimed.sequence:
        return None
    unreported_exit = UnreportedExit(record.epoch, record.sandbox, record.pid, record.agent_id, None, time.monotonic())
    return await _reported(bus, record.name, unreported_exit)


async def _reported(bus: Bus, name: str, unreported_exit: UnreportedExit) -> UnreportedExit:
    """`past` with what its host has told of its end: when, and how."""
    stored = await bus.last(bus.subjects.lifecycle(name, unreported_exit.sandbox))
    report = None if stored is None else _read(bus, stored)
    if (
        stored is None
        or not isinstance(report, Lifecycle)
        or (report.event, report.epoch) != ("exited", unreported_exit.epoch)
    ):
        return unreported_exit
    age_s = time.time() - datetime.fromisoformat(stored.headers[STORED_AT]).timestamp()
    code = report.detail.get("exit_code")
    exit_code = code if unreported_exit.exit_code is None and isinstance(code, int) else unreported_exit.exit_code
    return replace(unreported_exit, exit_code=exit_code, since=time.monotonic() - max(0.0, age_s))


async def _concluded(bus: Bus, name: str, epoch: int) -> Lifecycle | None:
    """With which words a watchdog has already concluded that this incarnation is away, if one has."""
    stored = await bus.last(bus.subjects.lifecycle(name, WATCHDOG))
    report = None if stored is None else _read(bus, stored)
    if stored is None or stored.sequence < epoch or not isinstance(report, Lifecycle):
        return None
    if report.event == "revived" or (report.event in ("declared_dead", "quarantined") and (report.epoch or 0) >= epoch):
        return report
    return None


def _read(bus: Bus, stored: StoredMessage) -> Message | None:
    with contextlib.suppress(MessageError):  # a stranger's garbage tells nothing
        return stored.decode(bus.subjects)
    return None
