"""The sandboxes: made, prolonged, paused, resumed, listed, measured and ended. Knows no HTTP but the codes of refusals.

A sandbox is a directory, which is the home of its user, and real processes below a first one (`init.py`). It isolates
nothing: they run as who runs the stand-in, see the machine's files, processes and network, and `network` and
`allow_internet_access` are kept and not enforced.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import secrets
import shutil
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil

from tests.e2b.standin.processes import OnOutput, Processes
from tests.e2b.standin.sockets import drop_connections

ENVD_VERSION = "0.6.1"
"""Old enough that the SDK itself refuses what the stand-in has not: metadata of files, entries in watch events."""
LIFETIME_S = 300
"""Of a sandbox created without one, as the service's default is."""
LONGEST_S = 3600
"""The service's limit for the smallest plan."""
MIB = 1 << 20


class Refused(Exception):
    """The control API's answer to what cannot be done: status and message."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}


@dataclass(kw_only=True)
class Limits:
    """What the account may do; None: as much as it likes.

    The limits are documented (20 or 100 at a time, 1 or 5 creates a second); that the refusal of a create that comes
    too soon has a Retry-After, and what it says, is assumed.
    """

    concurrent: int | None = None
    creates_per_s: float | None = None
    templates: set[str] = field(default_factory=lambda: {"base"})


@dataclass(eq=False, kw_only=True)
class Sandbox:
    id: str
    template: str
    metadata: dict[str, str]
    environment: dict[str, str]
    requested: dict[str, Any]
    """The body of the call that made it."""
    home: Path
    processes: Processes
    access_token: str
    traffic_token: str
    started_at: datetime
    end_at: datetime
    state: str = "running"
    port_open: bool = True
    expiry: asyncio.TimerHandle | None = None
    samples: list[dict[str, Any]] = field(default_factory=list)
    cpu: tuple[float, dict[int, float]] = (0.0, {})
    """Monotonic time of the last sample, and the CPU seconds of each process then."""
    streams: set[Callable[[], None]] = field(default_factory=set)
    """What breaks each connection on which envd is answering now."""

    def created(self) -> dict[str, Any]:
        return {
            "sandboxID": self.id,
            "templateID": self.template,
            "clientID": "standin",
            "alias": self.template,
            "envdVersion": ENVD_VERSION,
            "envdAccessToken": self.access_token,
            "trafficAccessToken": self.traffic_token,
            "domain": None,
        }

    def listed(self) -> dict[str, Any]:
        memory = psutil.virtual_memory()
        return {
            "sandboxID": self.id,
            "templateID": self.template,
            "clientID": "standin",
            "alias": self.template,
            "envdVersion": ENVD_VERSION,
            "startedAt": self.started_at.isoformat(),
            "endAt": self.end_at.isoformat(),
            "cpuCount": os.cpu_count(),
            "memoryMB": memory.total // MIB,
            "diskSizeMB": shutil.disk_usage(self.home).total // MIB,
            "state": self.state,
            "metadata": self.metadata,
        }

    def detail(self) -> dict[str, Any]:
        return self.listed() | {
            "envdAccessToken": self.access_token,
            "allowInternetAccess": self.requested.get("allow_internet_access"),
            "network": self.requested.get("network", {}),
            "lifecycle": {"onTimeout": "pause" if self.requested.get("autoPause") else "kill", "autoResume": False},
        }

    def measure(self) -> dict[str, Any]:
        """A sample of now, of what its processes really use; kept, for `metrics` answers all since the start."""
        at, before = self.cpu
        now, seconds, resident = time.monotonic(), {}, 0
        for process in self.processes.alive():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                seconds[process.pid] = times.user + times.system
                resident += process.memory_info().rss
        used = sum(max(0.0, total - before.get(pid, 0.0)) for pid, total in seconds.items())
        self.cpu = now, seconds
        moment, memory = datetime.now(UTC), psutil.virtual_memory()
        sample = {
            "timestamp": moment.isoformat(),
            "timestampUnix": int(moment.timestamp()),
            "cpuCount": os.cpu_count(),
            "cpuUsedPct": round(100 * used / max(now - at, 1e-6), 2),
            "memUsed": resident,
            "memTotal": memory.total,
            "memCache": getattr(memory, "cached", 0),
            "diskUsed": sum(path.lstat().st_size for path in self.home.rglob("*") if path.is_file()),
            "diskTotal": shutil.disk_usage(self.home).total,
        }
        self.samples.append(sample)
        return sample


class Sandboxes:
    def __init__(self, directory: Path, limits: Limits, on_output: Callable[[str], OnOutput]) -> None:
        self.limits = limits
        self.all: dict[str, Sandbox] = {}
        self._directory = directory
        self._on_output = on_output
        self._by_key: dict[str, tuple[dict[str, Any], asyncio.Future[Sandbox]]] = {}
        self._creates: deque[float] = deque()
        self._ending: set[asyncio.Task[None]] = set()

    def limit(self, limits: Limits) -> None:
        """Limits from now on; what was made before counts for no rate."""
        self.limits = limits
        self._creates.clear()

    def find(self, name: str) -> Sandbox:
        found = self.all.get(name)
        if found is None:
            raise Refused(404, f"sandbox {name!r} doesn't exist or you don't have access to it")
        return found

    async def create(self, requested: dict[str, Any], key: str | None) -> Sandbox:
        """Make one, or return the one that this idempotency key made.

        That the same key with another body is refused with 422, and that a sandbox that is gone is still the answer to
        its key, is assumed: the service documents neither.
        """
        if key is not None and key in self._by_key:
            first, new_ones = self._by_key[key]
            if first != requested:
                raise Refused(422, "this Idempotency-Key was used with another body")
            return await asyncio.shield(new_ones)
        lifetime = checked_lifetime(requested)
        template = str(requested.get("templateID"))
        if template not in self.limits.templates:
            raise Refused(404, f"template '{template}' not found")
        self._admit()
        future: asyncio.Future[Sandbox] = asyncio.get_running_loop().create_future()
        if key is not None:
            self._by_key[key] = requested, future
        sandbox = self._make(requested, template, lifetime)
        future.set_result(sandbox)
        return sandbox

    def _admit(self) -> None:
        rate, now = self.limits.creates_per_s, time.monotonic()
        if rate is not None:
            window = max(1, math.floor(rate)) / rate  # seconds in which so many whole creates are allowed
            while self._creates and self._creates[0] <= now - window:
                self._creates.popleft()
            if len(self._creates) >= max(1, math.floor(rate)):
                wait = math.ceil(self._creates[0] + window - now)
                raise Refused(429, "you are creating sandboxes too fast", {"Retry-After": str(wait)})
        running = sum(sandbox.state == "running" for sandbox in self.all.values())
        if self.limits.concurrent is not None and running >= self.limits.concurrent:
            limit = self.limits.concurrent
            raise Refused(429, f"you have reached the maximum number of concurrent E2B sandboxes ({limit})")
        self._creates.append(now)

    def _make(self, requested: dict[str, Any], template: str, lifetime_s: float) -> Sandbox:
        name = "i" + secrets.token_hex(10)
        home = self._directory / name
        home.mkdir(parents=True)
        now = datetime.now(UTC)
        sandbox = Sandbox(
            id=name,
            template=template,
            metadata=dict(requested.get("metadata") or {}),
            environment=dict(requested.get("envVars") or {}),
            requested=requested,
            home=home,
            processes=Processes(self._on_output(name)),
            access_token=secrets.token_hex(32),
            traffic_token=secrets.token_hex(32),
            started_at=now,
            end_at=now,
            cpu=(time.monotonic(), {}),
        )
        sandbox.processes.open()
        self.all[name] = sandbox
        self.prolong(sandbox, lifetime_s)
        return sandbox

    def prolong(self, sandbox: Sandbox, lifetime_s: float, *, only_longer: bool = False) -> None:
        """Let it end so many seconds from now."""
        end_at = datetime.now(UTC) + timedelta(seconds=lifetime_s)
        if only_longer and end_at <= sandbox.end_at:
            return
        sandbox.end_at = end_at
        if sandbox.expiry is not None:
            sandbox.expiry.cancel()
        sandbox.expiry = asyncio.get_running_loop().call_later(lifetime_s, self._expire, sandbox)

    def _expire(self, sandbox: Sandbox) -> None:
        if sandbox.requested.get("autoPause"):
            self.pause(sandbox)
        else:
            task = asyncio.create_task(self.end(sandbox), name=f"end of {sandbox.id}")
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    def pause(self, sandbox: Sandbox) -> None:
        """Stop its processes and break its connections: those of callers to envd, and its own to the world."""
        if sandbox.state == "paused":
            raise Refused(409, f"Error pausing sandbox - sandbox '{sandbox.id}' is already paused")
        sandbox.state = "paused"
        if sandbox.expiry is not None:
            sandbox.expiry.cancel()
        sandbox.processes.stop()
        drop_connections(sandbox.processes.alive())
        self.break_streams(sandbox)

    def connect(self, sandbox: Sandbox, lifetime_s: float) -> bool:
        """Resume it, where it is paused; else let it live longer, never shorter. True: it was resumed."""
        if sandbox.state == "running":
            self.prolong(sandbox, lifetime_s, only_longer=True)
            return False
        sandbox.state = "running"
        sandbox.started_at = datetime.now(UTC)
        sandbox.processes.resume()
        self.prolong(sandbox, lifetime_s)
        return True

    def break_streams(self, sandbox: Sandbox) -> None:
        for break_it in tuple(sandbox.streams):
            break_it()

    async def end(self, sandbox: Sandbox) -> None:
        """Kill it: none of its processes is left, nor its directory."""
        if self.all.pop(sandbox.id, None) is None:
            return  # another call does it already
        if sandbox.expiry is not None:
            sandbox.expiry.cancel()
        await sandbox.processes.kill()
        self.break_streams(sandbox)
        await asyncio.to_thread(shutil.rmtree, sandbox.home, ignore_errors=True)

    async def end_all(self) -> None:
        await asyncio.gather(*(self.end(sandbox) for sandbox in tuple(self.all.values())), *self._ending)


def checked_lifetime(requested: dict[str, Any]) -> float:
    lifetime = requested.get("timeout", LIFETIME_S)
    if not isinstance(lifetime, int) or lifetime < 0:
        raise Refused(400, f"timeout: expected a number of seconds, not {lifetime!r}")
    if lifetime > LONGEST_S:
        raise Refused(400, f"Timeout cannot be greater than {LONGEST_S // 3600} hours")
    return lifetime
