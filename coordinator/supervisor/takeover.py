"""Exits that happened while there was no leader: a new leader finds them and passes them to the policy.

The hosts report only the present state. The stream shows whether an incarnation that ended has been declared dead,
replaced or drained since: an epoch is the sequence of its claim there, so all of these events are ordered.
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

__all__ = ["resolve_unreported_exits"]

log = structlog.get_logger("signalmesh.watchdog")


async def resolve_unreported_exits(bus: Bus, policy: Policy, records: Mapping[str, Record]) -> None:
    """Pass unreported exits to `policy`, and quarantines that are reported in the stream but not yet in `records`.

    To be called when `policy` has received the hosts' inventories. An exit is unreported if a host lists the process
    as ended, or if no host lists it because its host ended too. The latter counts only while another agent runs:
    otherwise the whole swarm was down and is starting.

    Raises:
        BusError: the bus does not answer; `policy` is unchanged then.
    """
    waiting = [agent for agent in policy.agents.values() if agent.phase == "waiting"]
    found = [(agent, await _newest_end(bus, agent, records if policy.any_process_runs else {})) for agent in waiting]
    now = time.monotonic()
    for agent, end in found:
        if isinstance(end, UnreportedExit):
            log.info(
                "unreported_exit_found", of=agent.name, epoch=end.epoch, sandbox=end.sandbox, exit_code=end.exit_code
            )
            policy.unreported_exit_found(now, agent.name, end)
        elif end is not None:  # reported, but not yet recorded in the registry
            policy.mark_stopped(agent.name, "quarantined", end.epoch or 0, end.sandbox or "")


async def _newest_end(bus: Bus, agent: AgentState, records: Mapping[str, Record]) -> UnreportedExit | Lifecycle | None:
    """The unreported exit of the newest incarnation of `agent`, or the report that it was quarantined."""
    record = records.get(agent.name)
    if agent.unreported_exit is None and record is None:
        return None
    claimed = await last_claim(bus, agent.name)
    if claimed is None:
        return None
    earlier = await _earlier_report(bus, agent.name, claimed.sequence)
    if earlier is not None:
        return earlier if earlier.event == "quarantined" else None
    # Stays None if the agent was claimed since and is not ready: its recovery has started already.
    unreported_exit: UnreportedExit | None = None
    if agent.unreported_exit is not None and agent.unreported_exit.epoch == claimed.sequence:
        unreported_exit = await _with_exit_report(bus, agent.name, agent.unreported_exit)
    elif record is not None:
        unreported_exit = await _gone_with_host(bus, claimed, record)
    if unreported_exit is None or unreported_exit.exit_code == 0:
        return None  # 0: it drained, or an earlier leader requested that
    return unreported_exit


async def _gone_with_host(bus: Bus, claimed: StoredMessage, record: Record) -> UnreportedExit | None:
    """The incarnation that `claimed`, if it was ready and no host reports it although one should."""
    claim = _decode(bus, claimed)
    if not isinstance(claim, Epoch) or claim.claimed_by != WATCHDOG:
        return None  # started manually, outside the supervisor: no host would report it
    if record.status != "active" or record.epoch != claimed.sequence:
        return None
    unreported_exit = UnreportedExit(record.epoch, record.sandbox, record.pid, record.agent_id, None, time.monotonic())
    return await _with_exit_report(bus, record.name, unreported_exit)


async def _with_exit_report(bus: Bus, name: str, unreported_exit: UnreportedExit) -> UnreportedExit:
    """`unreported_exit` with the time and exit code from the host's exit report, if there is one."""
    stored = await bus.last(bus.subjects.lifecycle(name, unreported_exit.sandbox))
    report = None if stored is None else _decode(bus, stored)
    if (
        stored is None
        or not isinstance(report, Lifecycle)
        or (report.event, report.epoch) != ("exited", unreported_exit.epoch)
    ):
        return unreported_exit
    age_s = time.time() - datetime.fromisoformat(stored.headers[STORED_AT]).timestamp()
    code = report.detail.get("exit_code")
    exit_code = code if unreported_exit.exit_code is None and isinstance(code, int) else unreported_exit.exit_code
    error = report.detail.get("error")
    return replace(
        unreported_exit,
        exit_code=exit_code,
        since=time.monotonic() - max(0.0, age_s),
        error=error if isinstance(error, str) else unreported_exit.error,
    )


async def _earlier_report(bus: Bus, name: str, epoch: int) -> Lifecycle | None:
    """The report of an earlier leader that this incarnation is dead, quarantined or revived; None without one."""
    stored = await bus.last(bus.subjects.lifecycle(name, WATCHDOG))
    report = None if stored is None else _decode(bus, stored)
    if stored is None or stored.sequence < epoch or not isinstance(report, Lifecycle):
        return None
    if report.event == "revived" or (report.event in ("declared_dead", "quarantined") and (report.epoch or 0) >= epoch):
        return report
    return None


def _decode(bus: Bus, stored: StoredMessage) -> Message | None:
    with contextlib.suppress(MessageError):  # a malformed message of an unknown writer is ignored
        return stored.decode(bus.subjects)
    return None
