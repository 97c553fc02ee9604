"""The processes of one run, and signals to them and to no others.

A pid comes from the run's record, a host's inventory or a heartbeat. Before the first signal the start time of its
process is checked, and that it descends from the run's `up`. It is opened as a pidfd, so that a later process
with the same pid is never hit.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import psutil

from bus.errors import MeshError
from bus.messages import Child
from bus.utils.processes import is_running, start_identity
from coordinator.runner.run_record import Recorded, Run, read_run

__all__ = ["Member", "Processes", "TargetUnavailable"]


class TargetUnavailable(MeshError):
    """The process has ended or does not belong to this run: no signal is sent."""


class Member:
    """One process of the run, open as a pidfd until `close`."""

    def __init__(self, what: str, pid: int, pidfd: int) -> None:
        self.what, self.pid = what, pid
        self._pidfd = pidfd
        self.stopped = False

    def send(self, number: int) -> bool:
        """Send a signal; False where the process has ended."""
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return False
        self.stopped = number == signal.SIGSTOP or (self.stopped and number != signal.SIGCONT)
        return True

    def close(self) -> None:
        """Release it; a stopped process is resumed."""
        if self._pidfd >= 0:
            if self.stopped:
                self.send(signal.SIGCONT)
            os.close(self._pidfd)
            self._pidfd = -1


class Processes:
    """Finds processes of the run in `state_dir`. `close` resumes all that it has stopped."""

    def __init__(self, state_dir: Path, run: Run) -> None:
        self._state_dir, self._run = state_dir, run
        self._opened: list[Member] = []

    def close(self) -> None:
        for member in self._opened:
            member.close()
        self._opened.clear()

    @property
    def children(self) -> tuple[Recorded, ...]:
        """The children in the current record.

        Raises:
            MeshError: the run has ended.
        """
        run = read_run(self._state_dir)
        if run is None or (run.pid, run.started) != (self._run.pid, self._run.started) or not run.alive():
            raise MeshError(f"the swarm in {self._state_dir} (`up` with pid {self._run.pid}) has ended meanwhile")
        return run.children

    def child(self, kind: str, *, name: str | None = None, pid: int | None = None) -> Recorded:
        """The recorded child of this kind (and name, and pid).

        Raises:
            TargetUnavailable: there is none alive.
        """
        for child in self.children:
            if child.kind == kind and name in (None, child.name) and pid in (None, child.pid) and child.alive():
                return child
        raise TargetUnavailable(f"no {kind} {name or pid or ''} in the run's record is alive")

    def open_child(self, child: Recorded) -> Member:
        """Open a recorded child.

        Raises:
            TargetUnavailable: it has ended.
        """
        return self._open(f"{child.kind} {child.name}", child.pid, child.started)

    def open_agent(self, child: Child) -> Member:
        """Open an agent's process from its host's inventory.

        Raises:
            TargetUnavailable: it has ended, or does not belong to this run.
        """
        return self._open(f"agent {child.agent}", child.pid, child.started or "")

    def _open(self, what: str, pid: int, started: str) -> Member:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            raise TargetUnavailable(f"{what} (pid {pid}) has ended") from None
        try:
            process = psutil.Process(pid)
            if start_identity(pid) != started:
                raise TargetUnavailable(f"pid {pid} is not {what}, but a later process")
            ancestors = {parent.pid for parent in process.parents()}
            if self._run.pid not in ancestors or not is_running(self._run.pid, self._run.started):
                raise TargetUnavailable(
                    f"{what} (pid {pid}) does not descend from this run's `up` (pid {self._run.pid})"
                )
        except (TargetUnavailable, psutil.Error) as problem:
            os.close(pidfd)
            raise (
                problem
                if isinstance(problem, TargetUnavailable)
                else TargetUnavailable(f"{what} (pid {pid}) has ended")
            ) from None
        member = Member(what, pid, pidfd)
        self._opened.append(member)
        return member

    def release(self, *members: Member) -> None:
        """Release them; stopped ones are resumed."""
        for member in members:
            member.close()
            with contextlib.suppress(ValueError):
                self._opened.remove(member)
