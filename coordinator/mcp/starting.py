"""Starts `signalmesh up` as a process that outlives this server, and waits until its agents run."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from typing import IO

from bus.errors import MeshError
from bus.utils.aio import end_tasks, finish
from bus.utils.processes import wait_pid_exit
from bus.utils.terminal import escape_control
from coordinator.mcp.answers import Answer, ToolFailed
from coordinator.mcp.arguments import NoArguments
from coordinator.mcp.commands import NAME, Progress
from coordinator.mcp.readers import read_status
from coordinator.mcp.swarm import ServedSwarm
from coordinator.monitor.models import AgentStatus, Status
from coordinator.runner.child_process import URL_VARIABLE
from coordinator.runner.run_record import DEFAULT_STATE_DIR, read_run
from signalmesh import python_command

GRACE_S = 20.0
"""From SIGTERM to SIGKILL: agents save their state."""
LOOK_S = 0.1
"""Between two looks for the record of the new run."""
SETTLED = ("active", "finished", "external", "drained", "quarantined")
"""States of an agent that no waiting changes."""


class _Start:
    """One start of the swarm: the agents as they were read last."""

    def __init__(self, swarm: ServedSwarm, pid: int, progress: Progress) -> None:
        self._swarm, self._pid, self._progress = swarm, pid, progress
        self.agents: list[AgentStatus] = []

    async def agents_run(self) -> Answer[Status]:
        """The status once all agents are settled, in two readings: the first may miss one that is just being started.

        The watchdog starts sources when the other agents run.
        """
        names: list[str] = []
        while True:
            await asyncio.sleep(LOOK_S)
            run = read_run(self._swarm.state_dir)
            if run is None or run.pid != self._pid:  # that of an earlier run, if there is one
                continue
            try:
                answer = await read_status(self._swarm, NoArguments())
            except MeshError:  # its bus does not answer yet
                continue
            if answer.read.source != "bus":
                continue
            self.agents, before = answer.result.agents, names
            names = [agent.name for agent in self.agents if agent.status in SETTLED]
            await self._progress(len(names), len(self.agents), f"{len(names)} of {len(self.agents)} agents run")
            if names and names == before and len(names) == len(self.agents):
                return answer


async def start_swarm(swarm: ServedSwarm, options: Sequence[str], wait_s: float, progress: Progress) -> Answer[Status]:
    """Run `signalmesh up OPTIONS` beside the state directory; its status once all agents run.

    Cancelled before that, it ends the swarm again.

    Raises:
        ToolFailed: `up` has ended, with its last words; or not all agents run in time, and then the swarm goes on.
    """
    with tempfile.TemporaryFile() as errors:  # not a pipe: nobody reads it once this server has ended
        process = _spawn(swarm, options, errors)
        start = _Start(swarm, process.pid, progress)
        ended = asyncio.create_task(wait_pid_exit(process.pid), name="mcp-up-ended")
        running = asyncio.create_task(start.agents_run(), name="mcp-up-running")
        try:
            await asyncio.wait({ended, running}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                raise ToolFailed(_last_words(errors))
            if not running.done():
                raise ToolFailed(_not_in_time(start.agents, wait_s))
            return running.result()
        except asyncio.CancelledError:
            await finish(_end(process))
            raise
        finally:
            await end_tasks([ended, running])


def _spawn(swarm: ServedSwarm, options: Sequence[str], errors: IO[bytes]) -> subprocess.Popen[bytes]:
    """A process of a session of its own. Not one of asyncio, which would kill it at the end of the event loop."""
    state_dir = [] if swarm.state_dir == DEFAULT_STATE_DIR else ["--state-dir", str(swarm.state_dir.absolute())]
    config = [] if swarm.config is None else ["--config", str(swarm.config.absolute())]
    process = subprocess.Popen(
        python_command("up", *state_dir, *config, *options),
        cwd=swarm.state_dir.absolute().parent,
        env={**swarm.environment, **({} if swarm.nats is None else {URL_VARIABLE: swarm.nats})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        start_new_session=True,
    )
    threading.Thread(target=process.wait, name="mcp-up", daemon=True).start()  # no zombie, whenever it ends
    return process


async def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(GRACE_S):
            await wait_pid_exit(process.pid)
    process.kill()  # nothing happens if it has ended


def _last_words(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = [line.removeprefix(NAME) for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
    return escape_control(lines[-1]) if lines else "swarm_up: `up` has ended without a word; run it by hand"


def _not_in_time(agents: Sequence[AgentStatus], wait_s: float) -> str:
    late = ", ".join(f"{agent.name} is {agent.status}" for agent in agents if agent.status not in SETTLED)
    return (
        f"swarm_up: not all agents run after {wait_s:g} s ({late or 'none was heard'}); the swarm goes on: call "
        "swarm_status to look again, swarm_down to end it"
    )
