"""`swarm://report`: what the swarm is and what happened in the last hour, as Markdown; every row names its message."""

from __future__ import annotations

import time
from collections.abc import Iterator

from bus.interface import StoredMessage
from bus.messages import Alert, Decision, Lifecycle, Message
from coordinator.explain.file_source import FileSource
from coordinator.explain.round_history import decoded
from coordinator.explain.sources import BusSource, Filter, MessageSource
from coordinator.mcp.answers import Reading
from coordinator.mcp.arguments import NoArguments
from coordinator.mcp.readers import END, read_status
from coordinator.mcp.swarm import ServedSwarm, read
from coordinator.monitor.models import Status
from coordinator.reporting.formatting import cell, table

SPAN_S = 3600
MOST = 100
"""Rows of each table, the newest."""
NEWEST_DECISIONS = 10


async def markdown_report(swarm: ServedSwarm) -> str:
    """The report; raises as the tools do."""
    status = await read_status(swarm, NoArguments())

    async def work(source: MessageSource) -> dict[str, list[tuple[StoredMessage, Message]]]:
        found = {}
        for kind, limit in (("decision", NEWEST_DECISIONS), ("alert", MOST), ("lifecycle", MOST)):
            stored = await source.read_before([Filter(kind)], END, limit)
            messages = [(one, decoded(source.subjects, one)) for one in stored]
            found[kind] = [(one, message) for one, message in messages if message is not None]
        return found

    stored = await read(
        swarm, "auto", (), lambda bus: work(BusSource(bus)), lambda file: work(FileSource(file))
    )  # fmt: skip
    since_ns = time.time_ns() - SPAN_S * 10**9
    recent = {
        kind: [(one, message) for one, message in rows if one.stored_ns >= since_ns]
        for kind, rows in stored.result.items()
    }
    lines = [
        *_state(status.result, status.read),
        f"\n## The newest decisions\n\n{_read(stored.read)}\n",
        *_decisions(stored.result["decision"]),
        f"\n## Alerts of the last hour (at most {MOST})\n",
        *_alerts(recent["alert"]),
        f"\n## Deaths, recoveries and changes of the last hour (at most {MOST})\n",
        *_changes(recent["lifecycle"]),
    ]
    return "\n".join(lines) + "\n"


def _read(reading: Reading) -> str:
    where = reading.nats if reading.source == "bus" else reading.file
    note = "" if reading.note is None else f" ({reading.note})"
    return f"Read from the {reading.source} {where} at message {reading.stream_sequence}, {_at(reading.at)}{note}."


def _at(at: object) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _state(status: Status, reading: Reading) -> Iterator[str]:
    yield f"# Swarm {cell(status.swarm)}\n\n{_read(reading)}\n"
    yield from table(
        ("agents running", "processes", "watchdog's term", "decisions", "last decision (event time)"),
        [
            (
                status.active_agents, status.processes, status.watchdog_term, status.decisions.count,
                status.decisions.last_at,
            )
        ],
    )  # fmt: skip
    yield ""
    yield from table(
        ("agent", "kind", "state", "sandbox", "epoch", "restarts", "lag", "outputs"),
        [
            (one.name, one.kind, one.status, one.sandbox, one.epoch, one.restarts, one.lag, one.outputs)
            for one in status.agents
        ],
        "no agents",
    )


def _decisions(rows: list[tuple[StoredMessage, Message]]) -> Iterator[str]:
    yield from table(
        ("message", "decision", "action", "size", "risk", "consensus", "absent"),
        [
            (
                one.sequence, m.decision_id, m.final_decision, m.position_size, m.risk_score, m.consensus_level,
                ", ".join(m.absent),
            )
            for one, m in rows
            if isinstance(m, Decision)
        ],
        "none",
    )  # fmt: skip


def _alerts(rows: list[tuple[StoredMessage, Message]]) -> Iterator[str]:
    yield from table(
        ("message", "event time", "severity", "code", "by", "text"),
        [
            (one.sequence, _at(m.timestamp), m.severity, m.code, m.source, m.message)
            for one, m in rows
            if isinstance(m, Alert)
        ],
        "none",
    )  # fmt: skip


def _changes(rows: list[tuple[StoredMessage, Message]]) -> Iterator[str]:
    yield from table(
        ("message", "event time", "agent", "event", "epoch", "sandbox", "reason"),
        [
            (one.sequence, _at(m.timestamp), m.agent, m.event, m.epoch, m.sandbox, m.reason or "")
            for one, m in rows
            if isinstance(m, Lifecycle)
        ],
        "none",
    )  # fmt: skip
