"""The JSON of the dashboard: what each address under /api/ answers, and the actions on agents."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bus.durable.snapshots import SnapshotUnreadable
from bus.errors import (
    BusError,
    MeshError,
    MessageError,
    MirrorDamaged,
    MirrorFailing,
    MirrorUnusable,
    PermissionDenied,
    UsageError,
)
from bus.interface import StoredMessage
from bus.messages.headers import OUTPUT, number
from bus.messages.subjects import AGENT_KINDS, check_name
from bus.utils.json_text import MAX_SHOWN_DEPTH, parse_json
from coordinator.control.kill import kill
from coordinator.control.watchdog_client import Restarted, Revived, request_watchdog
from coordinator.dashboard.agent_log import tail
from coordinator.dashboard.guard import error
from coordinator.dashboard.hub import Hub, dump
from coordinator.dashboard.live_source import LiveSource, totals
from coordinator.dashboard.model import END, WINDOW_S, iso_ns, source_of, trace_of
from coordinator.dashboard.read_back import candles_before, complete_death
from coordinator.dashboard.source import Source, agent_rows, role_rows, sandbox_rows
from coordinator.dashboard.timeline import lanes, next_claim, within
from coordinator.explain.errors import AmbiguousRound, RoundOpen, RoundRemoved, RowChanged, UnknownRound
from coordinator.explain.selection import Selector
from coordinator.explain.sources import Filter

MAX_LIMIT = 1000
OUTPUTS = 50
ALERTS = 50
KILL_WAIT_S = 15.0
"""How long a kill waits for the recovery, as the command does by default."""


UNREADABLE = 503
"""The bus or the file cannot be read now; a viewer asks again."""
STATUS_OF: dict[type[MeshError], int] = {
    MeshError: 409,  # an agent that does not run, or a host or watchdog that refuses
    UsageError: 400,
    UnknownRound: 404,
    AmbiguousRound: 409,
    RoundOpen: 409,
    RoundRemoved: 410,
    RowChanged: UNREADABLE,
    MessageError: UNREADABLE,
    MirrorUnusable: UNREADABLE,  # not the viewer's mistake: the file was removed or replaced while it is shown
    MirrorDamaged: UNREADABLE,
    MirrorFailing: UNREADABLE,
    SnapshotUnreadable: UNREADABLE,
    BusError: UNREADABLE,
    PermissionDenied: UNREADABLE,  # the dashboard's user lacks the permission, not the viewer
}
"""The HTTP status of an error: that of its class, else of the nearest one that it derives from."""

log = structlog.get_logger("signalmesh.dashboard")


class _AnyText(PathConvertor):
    """A part of a path that may hold any character. `path` of Starlette ends at a line feed."""

    regex = "(?s:.*)"


register_url_convertor("text", _AnyText())


class NotThere(Exception):
    """What was asked for does not exist; `status` is 404 or 410."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        super().__init__(text)


@dataclass(frozen=True, slots=True)
class Dashboard:
    """What the routes share."""

    source: Source
    hub: Hub
    logs: Path | None = None
    """The directory of the log files; None where there is none on this machine."""
    jaeger_url: str = ""
    """Address of Jaeger; empty: traces are not linked."""


def as_json(data: Any, status: int = 200) -> Response:
    return Response(dump(data), status, media_type="application/json")


def whole_number(request: Request, name: str, default: int | None, least: int, most: int) -> int | None:
    """A query parameter.

    Raises:
        UsageError: it is not a whole number from `least` to `most`.
    """
    text = request.query_params.get(name)
    if text is None or text == "":
        return default
    if not re.fullmatch(r"-?[0-9]{1,19}", text) or not least <= int(text) <= most:
        raise UsageError(f"{name}: expected a whole number from {least} to {most}, not {text[:40]!r}")
    return int(text)


def sequence_of(text: str, what: str) -> int:
    """The stream sequence in an address.

    Raises:
        UsageError: it is none.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 19) or int(text) < 1:
        raise UsageError(f"{what} {text[:40]!r}: expected a stream sequence, a whole number from 1")
    return int(text)


# -- the swarm


async def overview(dashboard: Dashboard, request: Request) -> Response:
    source, model = dashboard.source, dashboard.source.model
    event_id = dashboard.hub.newest_id  # before anything is read: what comes after it is an event
    await source.refresh()
    symbols = sorted(model.candles)
    symbol = request.query_params.get("symbol") or model.newest_symbol
    if symbol is not None and symbol not in model.candles and symbols:
        raise NotThere(
            404, f"symbol {symbol[:100]!r}: no tick of it was received; expected one of {', '.join(symbols[:20])}"
        )
    facts, status = source.facts(), source.status()
    found: dict[str, Any] = {
        "event_id": event_id, "source": source.describe(), "symbols": symbols, "symbol": symbol,
        "candles": model.candles_of(symbol or ""), "decisions": model.decisions_of(symbol or ""),
        "rates": model.rates(source.now_ns()), "alerts": list(model.alerts)[: -ALERTS - 1 : -1],
        "jaeger_url": dashboard.jaeger_url, "actions": source.is_live,
        "viewers": {"now": dashboard.hub.viewers, "dropped": dashboard.hub.dropped},
        "sandboxes": [], "agents": [], "roles": [], "totals": None,
    }  # fmt: skip
    if facts is not None and status is not None:
        found |= {
            "sandboxes": sandbox_rows(status, facts), "agents": agent_rows(status, facts),
            "roles": role_rows(facts.heartbeats, facts.at), "totals": totals(status, model),
        }  # fmt: skip
    return as_json(found)


async def timeline(dashboard: Dashboard, request: Request) -> Response:
    source, model = dashboard.source, dashboard.source.model
    await source.refresh()
    end_ms = source.now_ns() // 1_000_000
    oldest = min((row["t"] for row in model.lifecycle), default=end_ms)
    since = whole_number(request, "since", oldest, 0, 1 << 53)
    until = whole_number(request, "until", max(end_ms, oldest), 0, 1 << 53)
    assert since is not None
    assert until is not None
    if since > until:
        raise UsageError(f"since: expected at most until ({until}), not {since}")
    status = source.status()
    agents = [agent.name for agent in status.agents] if status else []
    sandboxes = [sandbox.name for sandbox in status.sandboxes] if status else []
    facts = source.facts()
    roles = [] if facts is None else list({row["name"]: None for row in role_rows(facts.heartbeats, facts.at)})
    found = [within(lane, since, until) for lane in lanes(model.lifecycle, agents, sandboxes, roles)]
    return as_json(
        {"lanes": found, "from": since, "to": until, "source": source.describe(), "jaeger_url": dashboard.jaeger_url}
    )


async def death(dashboard: Dashboard, request: Request) -> Response:
    """One declared death with its whole account; the timeline has those of all without what must be counted."""
    source, sequence = dashboard.source, sequence_of(request.path_params["sequence"], "death")
    await source.refresh()
    for lane in lanes(source.model.lifecycle, [], [], []):
        for one in lane["deaths"]:
            if one["id"] == sequence:
                claimed = one["account"]["epoch_after"]
                until = None if claimed is None else next_claim(lane, claimed)
                async with source.intact() as stored:
                    found = await complete_death(stored, lane["name"], one, until)
                return as_json({**found, "agent": lane["name"], "source": source.describe()})
    raise NotThere(404, f"death {sequence}: no declared death is known by this number; /timeline lists those that are")


async def decisions(dashboard: Dashboard, request: Request) -> Response:
    source, model = dashboard.source, dashboard.source.model
    await source.refresh()
    limit = whole_number(request, "limit", 100, 1, MAX_LIMIT) or 100
    before = whole_number(request, "before", None, 1, 1 << 62)
    found, older = await source.decisions(limit, before)
    return as_json({
        "decisions": found, "before": older, "total": model.counted_decisions, "source": source.describe(),
    })  # fmt: skip


async def candles(dashboard: Dashboard, request: Request) -> Response:
    """A page of the chart, older than what the overview has of it."""
    source = dashboard.source
    await source.refresh()
    symbol, before = request.query_params.get("symbol"), whole_number(request, "before", None, 1, 1 << 62)
    if not symbol:
        raise UsageError("symbol: expected one, like ?symbol=BTC/USD; /api/overview lists them")
    page = await candles_before(source.stored, symbol, source.model.deciders, END if before is None else before)
    if not page.candles and before is None:
        raise NotThere(404, f"symbol {symbol[:100]!r}: no tick of it is stored; /api/overview lists those that are")
    return as_json({
        "symbol": symbol, "candles": page.candles, "decisions": page.decisions, "before": page.before,
        "source": source.describe(),
    })  # fmt: skip


async def decision(dashboard: Dashboard, request: Request) -> Response:
    return as_json(await dashboard.source.explain(Selector(decision=request.path_params["id"])))


async def mesh(dashboard: Dashboard, _: Request) -> Response:
    source, model = dashboard.source, dashboard.source.model
    await source.refresh()
    now_ns = source.now_ns()
    edges, status = model.edges(now_ns), source.status()
    nodes = {agent.name: agent for agent in status.agents} if status else {}
    named = {name for edge in edges for name in (edge["from"], edge["to"])}
    found = [
        {"name": name, "kind": agent.kind, "sandbox": agent.sandbox, "status": agent.status}
        for name, agent in nodes.items()
    ]
    found += [{"name": name, "kind": "", "sandbox": "", "status": "unknown"} for name in sorted(named - set(nodes))]
    text = f"Mesh-Cause of the messages stored in the {WINDOW_S} s before {iso_ns(now_ns)}"
    return as_json({"nodes": found, "edges": edges, "window_s": WINDOW_S, "from": text, "source": source.describe()})


# -- one thing


def _described(dashboard: Dashboard, stored: StoredMessage) -> dict[str, Any]:
    payload: Any = None
    malformed = problem = None
    try:
        payload = parse_json(stored.data)
    except ValueError:
        malformed = stored.data.decode(errors="replace")
    try:
        address = dashboard.source.subjects.parse(stored.subject)
        kind, topic, writer = address.kind, address.topic, address.agent
    except MessageError as found:
        kind, topic, writer, problem = "", None, "", found.problem
    return {
        **source_of(stored), "subject": stored.subject, "kind": kind, "topic": topic, "agent": writer,
        "headers": dict(stored.headers), "payload": payload, "malformed": malformed, "problem": problem,
        "bytes": len(stored.data), "trace_id": trace_of(stored),
    }  # fmt: skip


async def message(dashboard: Dashboard, request: Request) -> Response:
    return as_json(await describe_message(dashboard, request.path_params["sequence"]))


async def describe_message(dashboard: Dashboard, text: str) -> dict[str, Any]:
    """One stored message.

    Raises:
        UsageError: `text` is no sequence; NotThere: the stream does not hold it.
    """
    sequence = sequence_of(text, "message")
    stored = await dashboard.source.message(sequence)
    if stored is None:
        first, last = await dashboard.source.bounds()
        if sequence < first:
            raise NotThere(410, f"message {sequence}: retention has removed it; the stream begins at {first}")
        if sequence > last:
            raise NotThere(404, f"message {sequence}: not stored yet; expected {first} to {last}")
        raise NotThere(410, f"message {sequence}: the stream no longer holds it; expected another of {first} to {last}")
    return {
        **_described(dashboard, stored), "source": dashboard.source.describe(), "jaeger_url": dashboard.jaeger_url,
    }  # fmt: skip


async def agent(dashboard: Dashboard, request: Request) -> Response:
    return as_json(await describe_agent(dashboard, request.path_params["name"]))


def agent_row(dashboard: Dashboard, name: str) -> dict[str, Any]:
    """What `status` has about one agent.

    Raises:
        NotThere: there is no such agent.
    """
    source = dashboard.source
    try:
        check_name(name, "agent")  # anything can send heartbeats: `*` would be a pattern of all agents' messages
    except UsageError as found:
        raise NotThere(404, str(found)) from None
    facts, status = source.facts(), source.status()
    rows = agent_rows(status, facts) if status is not None and facts is not None else []
    row = next((row for row in rows if row["name"] == name), None)
    if row is None:
        known = ", ".join(row["name"] for row in rows[:50]) or "none yet"
        raise NotThere(404, f"agent {name[:100]!r}: there is none in swarm {source.subjects.ns!r}; it has: {known}")
    return row


async def describe_agent(dashboard: Dashboard, name: str) -> dict[str, Any]:
    """Everything about one agent.

    Raises:
        NotThere: there is no such agent.
    """
    source = dashboard.source
    await source.refresh()
    row = agent_row(dashboard, name)
    life = [event for event in source.model.lifecycle if event["agent"] == name][-500:][::-1]
    wanted = [Filter(kind, agent=name) for kind in AGENT_KINDS]
    outputs = [_described(dashboard, one) for one in await source.stored.read_before(wanted, END, OUTPUTS)][::-1]
    for output in outputs:
        output["output"] = number(output["headers"], OUTPUT)
    [lane] = [lane for lane in lanes(life[::-1], [name], [], []) if lane["name"] == name]
    log, log_reason = await _log_of(dashboard, name)
    return {
        **row, "outputs_count": row["outputs"], "outputs": outputs, "life": life, "deaths": lane["deaths"],
        "spans": lane["spans"], "snapshot": await _snapshot_of(dashboard, name), "log": log, "log_reason": log_reason,
        "source": source.describe(), "jaeger_url": dashboard.jaeger_url, "actions": source.is_live,
    }  # fmt: skip


async def _snapshot_of(dashboard: Dashboard, name: str) -> dict[str, Any] | None:
    found = await dashboard.source.snapshot(name)
    if found is None:
        return None
    revision, data = found
    try:
        fields = parse_json(data, MAX_SHOWN_DEPTH)
    except ValueError as found:
        return {"revision": revision, "bytes": len(data), "problem": f"it cannot be read: {found}"}
    return {"revision": revision, "bytes": len(data), **(fields if isinstance(fields, dict) else {"state": fields})}


async def _log_of(dashboard: Dashboard, name: str) -> tuple[list[dict[str, Any]] | None, str]:
    """The lines and where they are from; or None and why there are none."""
    if dashboard.logs is None:
        return None, "no log files: the state directory of this dashboard is not that of an `up`"
    lines = await asyncio.to_thread(tail, dashboard.logs, name)
    if lines is None:
        return None, f"{dashboard.logs} has no log files: the hosts of this swarm log where they run"
    return lines, f"the newest lines in {dashboard.logs}/*.log that name this agent"


# -- acting


async def act(dashboard: Dashboard, request: Request) -> Response:
    """restart, kill or revive an agent, the way the commands of that name do."""
    name, action = request.path_params["name"], request.path_params["action"]
    source = dashboard.source
    if not isinstance(source, LiveSource):
        return error(409, f"{action}: this dashboard shows a file at rest; start it without --file to act on a swarm")
    bus = source.connected_bus()
    client = request.client
    log.info("action_requested", action=action, of=name, client=None if client is None else client.host)
    started = time.monotonic()
    if action == "restart":
        restarted = await request_watchdog(bus, "restart", name, Restarted)
        before = f"was {restarted.was}" if restarted.was else "drained"
        text, result = f"{before}; ready as epoch {restarted.epoch_after} after {restarted.ready_ms:.0f} ms", restarted
        return as_json({"ok": True, "text": f"{name}: {text}", "result": result})
    if action == "revive":
        revived = await request_watchdog(bus, "revive", name, Revived)
        return as_json({"ok": True, "text": f"{name}: was {revived.was}; it is started", "result": revived})
    report = await kill(bus, name, signal.SIGKILL, KILL_WAIT_S)
    ready = "" if report.ready_ms is None else f" after {report.ready_ms:.0f} ms"
    lost = (
        ""
        if report.outputs_lost is None
        else f"; {report.outputs_lost} outputs lost, {report.outputs_duplicated} duplicated"
    )
    return as_json({
        "ok": report.ok, "text": f"{name}: {report.outcome}{ready}{lost}", "result": report,
        "took_ms": round((time.monotonic() - started) * 1000),
    })  # fmt: skip


def routes(dashboard: Dashboard) -> list[Route]:
    """The routes under /api/."""

    def answered(handler: Any) -> Any:
        async def answer(request: Request) -> Response:
            try:
                response: Response = await handler(dashboard, request)
            except (NotThere, MeshError) as found:
                return error(status_of_error(found), str(found))
            return response

        return answer

    return [
        Route("/api/overview", answered(overview)),
        Route("/api/timeline", answered(timeline)),
        Route("/api/deaths/{sequence}", answered(death)),
        Route("/api/candles", answered(candles)),
        Route("/api/decisions", answered(decisions)),
        Route("/api/decisions/{id:text}", answered(decision)),
        Route("/api/mesh", answered(mesh)),
        Route("/api/messages/{sequence}", answered(message)),
        Route("/api/agents/{name}", answered(agent)),
        Route("/api/agents/{name}/{action:str}", answered(_checked_action), methods=["POST"]),
    ]


async def _checked_action(dashboard: Dashboard, request: Request) -> Response:
    action = request.path_params["action"]
    if action not in ("restart", "kill", "revive"):
        raise NotThere(404, f"action {action[:40]!r}: expected restart, kill or revive")
    return await act(dashboard, request)


def status_of_error(found: NotThere | MeshError) -> int:
    """The HTTP status of an error."""
    if isinstance(found, NotThere):
        return found.status
    return next(STATUS_OF[kind] for kind in type(found).__mro__ if kind in STATUS_OF)
