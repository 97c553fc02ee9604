"""The state directory of a swarm on this machine: the record of its processes and its bus, and the lock."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

import msgspec
import orjson
import psutil

from bus.errors import UsageError
from bus.utils.file_lock import take_lock
from bus.utils.json_text import parse_json, read_limited
from bus.utils.processes import is_running, start_identity
from coordinator.config.connection import Authentication

DEFAULT_STATE_DIR = Path(".signalmesh")
RECORD = "run.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A process of a run. `started`, its start identity, tells it from a later one of that pid."""

    kind: str
    name: str
    pid: int
    started: str

    @classmethod
    def of(cls, kind: str, name: str, pid: int) -> Self | None:
        """The process `pid` as it is now; None when it has ended."""
        try:
            return cls(kind=kind, name=name, pid=pid, started=start_identity(pid))
        except psutil.NoSuchProcess:
            return None

    def alive(self) -> bool:
        """Whether that very process still runs."""
        return is_running(self.pid, self.started)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The record of a running `up`: its own process, and in `children` those that it has started."""

    pid: int
    started: str
    swarm: str
    url: str
    config: str
    children: tuple[Recorded, ...] = ()
    agents: int | None = None
    """The value of `up --agents`."""
    authentication: Authentication = "open"
    """How its server admits clients; `keys`: those of the state directory are needed."""

    def alive(self) -> bool:
        """Whether that very process still runs."""
        return is_running(self.pid, self.started)

    def child(self, kind: str) -> Recorded | None:
        """Its first child of this kind: nats-server, sandbox, watchdog …"""
        return next((child for child in self.children if child.kind == kind), None)


def read_run(state_dir: Path) -> Run | None:
    """The record in `state_dir`, whether or not its process still runs; None if there is none."""
    try:
        return msgspec.convert(parse_json(read_limited(state_dir / RECORD)), Run)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise UsageError(f"--state-dir {state_dir}: expected a directory, this is a file") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{state_dir / RECORD}: cannot be read ({error}); remove it if no swarm runs here") from None


def write_run(
    state_dir: Path,
    swarm: str,
    url: str,
    config: str,
    children: Iterable[Recorded],
    agents: int | None = None,
    authentication: Authentication = "open",
) -> None:
    """Record that this process runs the swarm. `url` is without credentials."""
    run = Run(
        pid=os.getpid(),
        started=start_identity(os.getpid()),
        swarm=swarm,
        url=url,
        config=config,
        children=tuple(children),
        agents=agents,
        authentication=authentication,
    )
    temporary = state_dir / f"{RECORD}.{os.getpid()}"
    temporary.write_bytes(orjson.dumps(run))
    temporary.replace(state_dir / RECORD)


def remove_run(state_dir: Path) -> None:
    """Remove the record at the end of an orderly run."""
    (state_dir / RECORD).unlink(missing_ok=True)


def lock(state_dir: Path) -> IO[str]:
    """Take the directory for this process; held until the returned file is closed or the process ends.

    Raises:
        UsageError: another `up` has it, or it cannot be written.
    """
    try:
        file = take_lock(state_dir / "lock")
    except OSError as error:
        raise UsageError(f"--state-dir {state_dir}: cannot be used: {error.strerror}") from None
    if file is None:
        run = read_run(state_dir)
        holder = f" (pid {run.pid})" if run is not None else ""
        raise UsageError(
            f"a swarm is already running in {state_dir}{holder}: end it with `signalmesh down`, or use another "
            "--state-dir"
        )
    return file
