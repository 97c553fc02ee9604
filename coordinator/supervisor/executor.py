"""Executes the policy's actions: requests to the hosts, reports, registry records.

It decides nothing. The result of a request goes back to the policy as an observation.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import structlog

from agents.spec import AgentSpec
from bus.durable.events import EventPublisher
from bus.durable.fencing import claim, new_agent_id
from bus.durable.registry import Record, read_records, write_record
from bus.errors import BusError, MeshError, MessageError, UsageError, WrongSequence
from bus.interface import Bus
from bus.messages import Lifecycle, decode, now
from bus.messages.subjects import WATCHDOG
from bus.utils.aio import end_tasks
from coordinator.supervisor.agent_keys import AgentKeys
from coordinator.supervisor.config_publisher import ConfigPublisher
from coordinator.supervisor.host_client import HostClient
from coordinator.supervisor.model import (
    Action,
    AgentState,
    Dead,
    Drained,
    Joined,
    ProbeProcess,
    Quarantine,
    SandboxLost,
    Spawn,
    Suspect,
    VerifyDrain,
)
from coordinator.supervisor.policy import Policy
from coordinator.supervisor.recovery_traces import RecoveryTraces

NAME = WATCHDOG

log = structlog.get_logger("signalmesh.watchdog")


class ActionExecutor:
    """Executes the actions of the leading watchdog.

    `keys` are the keys of the agents, if they have any. `on_change` is called after each new
    observation of the policy, `on_failure` on an error that ends the term.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        policy: Policy,
        hosts: HostClient,
        reports: EventPublisher,
        config_publisher: ConfigPublisher,
        specs: Mapping[str, AgentSpec],
        recoveries: RecoveryTraces,
        keys: AgentKeys | None = None,
        on_change: Callable[[], None],
        on_failure: Callable[[MeshError], None],
    ) -> None:
        self._bus, self._policy, self._hosts, self._reports = bus, policy, hosts, reports
        self._config_publisher, self._specs, self._recoveries = config_publisher, specs, recoveries
        self._keys, self._on_change, self._on_failure = keys, on_change, on_failure
        self._unusable: dict[str, str] = {}
        """Agent -> what is wrong with its key, reported once."""
        self._tasks: set[asyncio.Task[None]] = set()

    def execute(self, action: Action) -> None:
        """Execute `action`; requests to hosts run as background tasks."""
        match action:
            case Spawn():
                self._run(self._spawn(action))
            case ProbeProcess():
                self._run(self._probe(action))
            case VerifyDrain():
                self._run(self._verify_drain(action))
            case Suspect(agent, silent_ms):
                state = self._policy.agents[agent]
                self._reports.lifecycle(
                    "suspected", agent, epoch=state.epoch, sandbox=state.sandbox, pid=state.pid, silent_ms=silent_ms
                )
            case Dead():
                self._recoveries.died(action, time.monotonic() - self._policy.agents[action.agent].heartbeat_at)
                self._report_death(action)
            case Quarantine():
                self._recoveries.finish(action.agent, f"quarantined: {action.reason}")
                self._report_quarantine(action)
                self._run(self._record_quarantine(replace(self._policy.agents[action.agent])))
                self._run(self._kill(action.agent, action.sandbox, action.epoch))
                self._run(self._config_publisher.publish())
            case Joined():
                self._run(self._config_publisher.publish())
            case Drained(agent):
                self._run(self._record_drain(agent))
                self._run(self._config_publisher.publish())
            case SandboxLost(sandbox, agents):
                self._reports.alert(
                    "warning",
                    "sandbox_lost",
                    f"sandbox {sandbox} is lost; agents that move to other sandboxes: {', '.join(agents) or 'none'}",
                    sandbox=sandbox,
                    agents=list(agents),
                )

    async def end(self) -> None:
        """Cancel the running tasks."""
        await end_tasks(self._tasks)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._guard(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except BusError as error:
            log.warning("action_failed", problem=str(error))
        except Exception as error:
            log.exception("watchdog_failed")
            self._on_failure(MeshError(f"the watchdog failed: {error!r}"))  # the next leader adopts the running agents

    # -- reports

    def _report_death(self, dead: Dead) -> None:
        self._reports.lifecycle(
            "declared_dead",
            dead.agent,
            epoch=dead.epoch,
            sandbox=dead.sandbox,
            pid=dead.pid,
            reason=dead.reason,
            traceparent=self._recoveries.traceparent(dead.agent),
        )
        if dead.unresponsive:
            self._reports.alert(
                "warning", "agent_unresponsive", f"agent {dead.agent} is replaced: {dead.reason}", agent=dead.agent
            )

    def _report_quarantine(self, action: Quarantine) -> None:
        agent, sandbox, reason = action.agent, action.sandbox, action.reason
        self._reports.lifecycle("quarantined", agent, epoch=action.epoch, sandbox=sandbox, reason=reason)
        self._reports.alert(
            "critical",
            "quarantined",
            f"agent {agent} is quarantined: {reason}; its log is logs/{sandbox}.log in the state directory; fix the "
            f"cause, then run `signalmesh revive {agent}`",
            agent=agent,
        )

    async def _record_drain(self, agent: str) -> None:
        record = (await read_records(self._bus)).get(agent)
        if record is not None and agent in self._policy.agents:  # the agent wrote it when it ended
            await write_record(self._bus, replace(record, status="drained"))

    async def _record_quarantine(self, dead: AgentState) -> None:
        # An agent writes its record when it is ready. This incarnation may have died before that.
        known = (await read_records(self._bus)).get(dead.name)
        if dead.name not in self._policy.agents:
            return  # it was removed
        record = Record(
            agent_id=dead.agent_id,
            name=dead.name,
            kind=known.kind if known else self._specs[dead.name].kind,
            capabilities=known.capabilities if known else (),
            status="quarantined",
            epoch=dead.epoch,
            sandbox=dead.sandbox,
            pid=dead.pid,
            spawned_at=now() - timedelta(seconds=time.monotonic() - dead.started_at),
        )
        await write_record(self._bus, record)

    # -- requests to hosts

    async def _spawn(self, action: Spawn) -> None:
        name, sandbox = action.agent, action.sandbox
        agent_id = new_agent_id()
        state = self._policy.agents.get(name)
        if state is None:
            return  # it was removed
        spec, known = self._specs[name], state.known_epoch
        try:
            with self._recoveries.step(name, "claim"):
                epoch = await claim(self._bus, name, agent_id=agent_id, claimed_by=NAME, sandbox=sandbox, expect=known)
            self._policy.claimed(name, epoch)
            with self._recoveries.step(name, "spawn"):
                traceparent, (seed, jwt) = self._recoveries.traceparent(name), await self._key(name, epoch)
                pid = await self._hosts.spawn(
                    sandbox, spec, epoch, agent_id, traceparent=traceparent, seed=seed, jwt=jwt
                )
        except WrongSequence:
            self._recoveries.finish(name, "claimed by another process")
            log.info("claimed_by_another", of=name)
            self._policy.superseded(time.monotonic(), name)
        except (BusError, UsageError) as error:
            log.warning("spawn_failed", of=name, sandbox=sandbox, problem=str(error))
            self._policy.spawn_failed(time.monotonic(), name, str(error))
        else:
            self._recoveries.finish(name, details={"mesh.epoch": epoch, "process.pid": pid})
            if self._policy.agents.get(name) is not state:  # it was removed meanwhile
                await self._kill(name, sandbox, epoch)
                return
            self._policy.spawned(time.monotonic(), name, sandbox, pid, epoch, agent_id)
            if action.moved_from is not None:
                detail = {"moved_from": action.moved_from}
                self._reports.lifecycle(
                    "moved", name, epoch=epoch, sandbox=sandbox, pid=pid, reason=action.reason, **detail
                )
        self._on_change()
        if self._keys is not None:
            await self._keys.forget(name)

    async def _key(self, name: str, epoch: int) -> tuple[str, str]:
        """The agent's key, and the JWT of its user.

        Raises:
            UsageError: it cannot be used; this is an alert too.
        """
        if self._keys is None:
            return "", ""
        try:
            key = await self._keys.seed(name, epoch), await self._keys.jwt(name)
        except UsageError as error:
            if self._unusable.get(name) != str(error):
                self._unusable[name] = str(error)
                text = f"agent {name} cannot be started without its key: {error}"
                self._reports.alert("critical", "key_unusable", text, agent=name)
            raise
        self._unusable.pop(name, None)
        return key

    async def _kill(self, agent: str, sandbox: str, epoch: int) -> None:
        if (host := self._policy.hosts.get(sandbox)) is not None and host.alive:
            await self._hosts.kill(sandbox, agent, epoch)

    async def _probe(self, action: ProbeProcess) -> None:
        state, cpu, place = await self._hosts.probe(action.sandbox, action.agent, action.epoch)
        self._policy.probed(time.monotonic(), action.agent, action.epoch, state, cpu, place)
        self._on_change()

    async def _verify_drain(self, action: VerifyDrain) -> None:
        # An agent that drains has its report stored before it ends, so the stream decides.
        subject = self._bus.subjects.lifecycle(action.agent, action.agent)
        last = await self._bus.last(subject)
        report: object = None
        if last is not None:
            with contextlib.suppress(MessageError):  # a malformed message is no report
                report = decode(self._bus.subjects.parse(subject), subject, last.data)
        if isinstance(report, Lifecycle) and report.event == "drained" and report.epoch == action.epoch:
            self._policy.drained(time.monotonic(), action.agent, action.epoch)
        else:
            self._policy.not_drained(time.monotonic(), action.agent, action.epoch)
        self._on_change()
