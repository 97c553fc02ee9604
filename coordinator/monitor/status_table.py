"""The tables of `status`."""

from __future__ import annotations

from bus.messages import FAILED
from bus.utils.terminal import escape_control
from coordinator.config.changes import ChangedAgent
from coordinator.monitor.models import (
    FAILED_REMEDY,
    NOT_RUNNING,
    AgentStatus,
    Refusals,
    SandboxStatus,
    Status,
    failed_text,
)
from coordinator.reporting.tables import Cell, Column, console, print_table, state_text
from coordinator.sandboxes.environment import provider_text
from coordinator.sandboxes.health import SandboxHealth

SANDBOX_COLUMNS = (
    Column("sandbox"), Column("provider", 3), Column("state"), Column("pid", 2, right=True),
    Column("up", 4, right=True), Column("available", 6, right=True), Column("processes", 8, right=True),
    Column("CPU", 7, right=True), Column("PSS MiB", 7, right=True), Column("network in/out", 10), Column("cost", 9),
    Column("agents", 1),
)  # fmt: skip
STATUS_COLUMNS = (
    Column("agent"), Column("state"), Column("kind", 7), Column("sandbox", 1), Column("pid", 2, right=True),
    Column("epoch", 5, right=True), Column("restarts", 3, right=True), Column("heartbeat, ms ago", 6, right=True),
    Column("cursor", 8, right=True), Column("unread", 4, right=True), Column("outputs", 9, right=True),
)  # fmt: skip
MIB = 1 << 20
MOST_CHANGES = 8
"""Agents that are named in one line."""
MOST = 3
"""Kinds of refused attempts in one line."""


def watchdogs_text(status: Status) -> str:
    """The leading watchdog and the standbys."""
    leading = [f"watchdog {dog.pid} leads with term {dog.term}" for dog in status.watchdogs if dog.term is not None]
    standbys = [str(dog.pid) for dog in status.watchdogs if dog.term is None]
    waiting = f"standby: {', '.join(standbys)}" if standbys else "no standby"
    return f"{', '.join(leading) or 'no watchdog leads'}, {waiting}"


def agents_text(status: Status) -> str:
    """The number of agents, and how many of them are active."""
    external = sum(agent.status == "external" for agent in status.agents)
    # A leading watchdog restarts or reports every agent of its configuration: an agent that is still stopped is not
    # configured any more.
    led = status.watchdog_term is not None
    former = sum(agent.status == "stopped" for agent in status.agents) if led else 0
    own = len(status.agents) - external - former
    text = f"{status.active_agents} of {own} agents active" if own else "no agent is known yet"
    text += f", {external} external" if external else ""
    return text + (f", {former} stopped and not configured any more" if former else "")


def provider_lines(status: Status) -> list[str]:
    """The state of the provider, if there is one, or should be since a sandbox of it sends heartbeats."""
    if (received := status.provider) is not None:
        at = received.endpoint or "an endpoint that it does not report"
        return [f"remote sandboxes are created at {at}, by provider {received.pid}: {received.status}"]
    remote = [one.endpoint for one in status.sandboxes if one.provider == "e2b" and one.pid is not None]
    if not remote:
        return []
    known = sorted({endpoint or "an endpoint that their hosts do not report" for endpoint in remote})
    return [f"no provider runs: the lifetimes of the sandboxes are not renewed at {' and '.join(known)}"]


def refused_text(refused: Refusals) -> str:
    """How many attempts were refused, of whom most, and who reports it."""
    most = [f"{one.who} {one.count} ({one.attempt})" for one in refused.by[:MOST]]
    if len(refused.by) > MOST:
        most.append(f"others {sum(one.count for one in refused.by[MOST:])}")
    by = ", ".join(sorted({one.reported_by for one in refused.by}))
    return f"refused to clients: {refused.count} by the alerts of {by} since message {refused.since}: {', '.join(most)}"


def changes_text(changes: list[ChangedAgent]) -> str:
    """How the swarm differs from swarm.toml, in one line."""
    named = [f"{one.agent} {one.change} ({one.detail})" for one in changes[:MOST_CHANGES]]
    more = [f"{len(changes) - MOST_CHANGES} more"] if len(changes) > MOST_CHANGES else []
    return f"not as in swarm.toml (`signalmesh config`): {', '.join([*named, *more])}"


def print_status(status: Status) -> None:
    """Print the status in the width of the terminal."""
    out = console()
    watchdog = watchdogs_text(status)
    others = (
        f" (and {status.decisions.from_other_writers} of other writers)" if status.decisions.from_other_writers else ""
    )
    last = f", the newest for {status.decisions.last_at:%Y-%m-%d %H:%M} UTC" if status.decisions.last_at else ""
    mirror = "no mirror runs"
    if (received := status.mirror) is not None:
        mirror = f"mirror {received.status}: {received.file}, {received.lag} rows and {received.lag_ms} ms behind"
    for line in (
        f"swarm {status.swarm} on {status.nats}",
        f"{agents_text(status)}; processes: {status.processes}; {watchdog}",
        f"decisions in the stream: {status.decisions.count}{last}{others}",
        mirror,
        *provider_lines(status),
        *([changes_text(status.changes)] if status.changes else []),
        *([] if status.refused is None else [refused_text(status.refused)]),
        "",
    ):
        out.print(escape_control(line), soft_wrap=True)
    rows: list[list[Cell]] = []
    for agent in status.agents:
        cells = (
            agent.kind, agent.sandbox, agent.pid, agent.epoch, agent.restarts, agent.heartbeat_age_ms, agent.cursor,
            agent.lag, agent.outputs,
        )  # fmt: skip
        rows.append([agent.name, state_text(agent.status), *("" if cell is None else str(cell) for cell in cells)])
    print_table(out, STATUS_COLUMNS, rows)
    for agent in status.agents:
        if agent.status == "external":
            out.print(_last_output_text(agent), soft_wrap=True)
        elif agent.poison or agent.skipped:
            counts = f"{agent.poison or 0} poison messages set aside, {agent.skipped or 0} events skipped"
            out.print(escape_control(f"{agent.name}: {counts}; the alerts name them"), soft_wrap=True)
    out.print()
    rows = [
        [
            sandbox.name, provider_text(sandbox.provider, sandbox.endpoint), state_text(sandbox.status),
            *_sandbox_cells(sandbox), tuple(sandbox.agents),
        ]
        for sandbox in status.sandboxes
    ]  # fmt: skip
    print_table(out, SANDBOX_COLUMNS, rows)
    for sandbox in status.sandboxes:
        if sandbox.status == FAILED:
            out.print(escape_control(f"{failed_text(sandbox)}; {FAILED_REMEDY}"), soft_wrap=True)
        elif sandbox.status == NOT_RUNNING:
            out.print(escape_control(f"{sandbox.name}: {NOT_RUNNING}: {sandbox.reason}"), soft_wrap=True)


def _sandbox_cells(sandbox: SandboxStatus) -> list[str]:
    """Pid, uptime and health; empty for a sandbox without a host."""
    if sandbox.pid is None:
        return [""] * 8
    return [str(sandbox.pid), f"{sandbox.uptime_s or 0:.0f} s", *health_cells(sandbox.health)]


def health_cells(health: SandboxHealth) -> list[str]:
    """Availability, processes, CPU, memory, network and cost, for a table."""
    received, sent = health.rx_bytes, health.tx_bytes
    return [
        "" if health.availability is None else f"{100 * health.availability:.2f} %",
        "" if health.processes is None else str(health.processes),
        "" if health.cpu_percent is None else f"{health.cpu_percent:.1f} %",
        _memory(health),
        "not its own" if received is None or sent is None else f"{received / MIB:.1f}, {sent / MIB:.1f} MiB",
        health.price_source if health.cost is None else f"${health.cost:.4f} at ${health.price_per_hour:g}/h",
    ]


def _memory(health: SandboxHealth) -> str:
    """PSS in MiB; if the system of the sandbox does not report it, RSS, marked as such."""
    if health.pss_mb is not None:
        return f"{health.pss_mb:.0f}"
    return "" if health.rss_mb is None else f"RSS {health.rss_mb:.0f}"


def _last_output_text(agent: AgentStatus) -> str:
    received = "none of its messages are in the stream"
    if agent.outputs and agent.last_output_at:
        newest = f"{agent.last_output_at:%Y-%m-%d %H:%M:%S} UTC"
        received = f"{agent.outputs} of its messages are in the stream, the newest of {newest}"
    return escape_control(f"{agent.name}: external; {received}")
