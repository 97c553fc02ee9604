"""The watchdog's side of the commands that change the swarm at run time.

A request is checked first. Then it is stored, as one VotingConfig with all changes: before that nothing has changed,
after that a later leader goes on with it. What follows from it is done by steps that each begin with what is observed,
so that a request repeated by its id, to this leader or to a later one, changes nothing a second time.

A request is answered within ANSWER_S, so that a client notices when a watchdog dies. Where the work takes longer, the
answer has `pending`, and the client asks again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import msgspec
import orjson
import structlog

from agents.spec import ClassTraits
from bus.errors import BusError, ConfigError, MeshError, UsageError
from bus.interface import ReceivedMessage
from bus.messages import headers as h
from bus.messages.subjects import AGENT_KINDS
from bus.utils.aio import end_tasks
from coordinator.changes.membership import (
    Start,
    after_adding,
    after_adding_sandbox,
    after_removing,
    after_removing_sandbox,
    after_scaling,
    check_changed,
    generated_members,
    missing_parts,
    place_added,
    scaled_tables,
)
from coordinator.changes.moves import Moves
from coordinator.changes.removals import Removals
from coordinator.changes.sandbox_removals import SandboxRemovals
from coordinator.config.changes import AddedAgent, Changes, Move
from coordinator.config.convert import similar
from coordinator.config.settings import AgentSettings, ResolvedSwarm, SwarmConfig
from coordinator.config.tables import agent_settings, agent_table
from coordinator.supervisor.model import AgentState
from coordinator.supervisor.watchdog import LeaderParts, agent_state

ANSWER_S = 3.0
"""A client that gets no answer asks again soon: the watchdog may have died."""
RETURN_AFTER_S = 10.0
"""With return_agents: seconds for which a sandbox must be back, so that a host that dies again and again gets none."""
STOPPED = ("quarantined", "drained")
"""Phases in which an agent is not started until it is revived."""
FIRST_INPUT_S = 2.0
"""A program that has got no message so long after its agent became live was added all the same."""
FAILING_DEATHS = 2
"""So many deaths in a row, without progress, are reported to who has added the agent."""
MAX_ID = 64
"""Characters of the id of a request."""

InspectAgent = Callable[[SwarmConfig, AgentSettings], ClassTraits | None]

log = structlog.get_logger("signalmesh.watchdog")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeRequest:
    """What a client asks for. `id` is the same each time that it asks again."""

    id: str
    agent: str = ""
    sandbox: str = ""
    table: dict[str, Any] = field(default_factory=dict)
    """Of an agent or a sandbox that is added: what [agents.NAME] or [sandboxes.NAME] would be."""
    forget: bool = False
    kind: str = ""
    count: int = 0


class ChangeApi:
    """Handles requests to the leading watchdog. `check` is called by the loop of the leader."""

    def __init__(self, leader: LeaderParts, inspect: InspectAgent, *, up_runs_hosts: bool) -> None:
        """`inspect` tries the class or the command of an agent that is to be added. With `up_runs_hosts` the hosts
        are children of an `up`, which starts and ends them as sandboxes come and go.
        """
        self._bus, self._swarm, self._policy = leader.bus, leader.swarm, leader.policy
        self._publisher, self._wake, self._keys = leader.config_publisher, leader.wake, leader.keys
        self._inspect, self._up_runs_hosts = inspect, up_runs_hosts
        self._inspections: dict[str, asyncio.Task[ClassTraits | None]] = {}
        """By the id of the request."""
        self._adopted = asyncio.Event()
        """Whether it is known what runs."""
        self._changing = asyncio.Lock()
        """One change at a time."""
        self._moves = Moves(leader.policy, leader.hosts)
        self._removals = Removals(leader.bus, leader.swarm, leader.policy, leader.hosts, leader.reports)
        self._sandbox_removals = SandboxRemovals(leader.bus, leader.policy, self._moves, leader.reports)
        self._waiting: list[tuple[Callable[[], bool], asyncio.Event]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, name: str) -> None:
        """Handle requests to the watchdog `name` from now on."""
        commands: dict[str, Callable[[ChangeRequest], Awaitable[dict[str, Any]]]] = {
            "add": self._add,
            "remove": self._remove,
            "scale": self._scale,
            "move": self._move,
            "rebalance": self._rebalance,
            "sandbox_add": self._add_sandbox,
            "sandbox_remove": self._remove_sandbox,
        }
        for command, handle in commands.items():
            await self._bus.listen(self._bus.subjects.control(name, command), self._received(handle))

    async def end(self) -> None:
        """Cancel the running requests."""
        await end_tasks((*self._tasks, *self._inspections.values()))
        await self._moves.end()
        await self._removals.end()
        await self._sandbox_removals.end()

    def resume(self) -> None:
        """Go on with what an earlier leader has stored and not finished; to be called when it is known what runs."""
        for name, move in self._swarm.changes.moved.items():
            state = self._policy.agents.get(name)
            if state is None or state.epoch > move.after:
                continue
            if state.epoch == 0:
                state.moving = True
            elif not self._policy.serves(state.sandbox, move.sandbox) and self._policy.is_live(move.sandbox):
                log.info("move_resumed", of=name, sandbox=move.sandbox)
                self._moves.begin(name, move.sandbox)
        self._removals.begin(self._swarm.changes.removed)
        self._sandbox_removals.begin(self._swarm.changes.removed_sandboxes)
        self._adopted.set()

    def check(self) -> None:
        """Go on with what is being done. To be called by the loop of the leader."""
        now = time.monotonic()
        self._moves.check(now)
        self._removals.check(now)
        self._sandbox_removals.check()
        if self._swarm.base.watchdog.return_agents and not self._moves.running:
            for name in self._moves.away(now - RETURN_AFTER_S)[:1]:
                self._moves.begin(name, self._policy.agents[name].preferred)
        for done, event in self._waiting:
            if done():
                event.set()

    # -- requests

    def _received(
        self, handle: Callable[[ChangeRequest], Awaitable[dict[str, Any]]]
    ) -> Callable[[ReceivedMessage], Awaitable[None]]:
        async def on_message(received: ReceivedMessage) -> None:
            if received.reply:
                self._run(self._answer(received, handle))

        return on_message

    def _run(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(
        self, received: ReceivedMessage, handle: Callable[[ChangeRequest], Awaitable[dict[str, Any]]]
    ) -> None:
        try:
            request = _request_in(received.data)
            answer = await handle(request) if self._adopted.is_set() else {"pending": "a watchdog takes over"}
        except MeshError as error:
            answer = {"error": str(error), "usage": isinstance(error, (UsageError, ConfigError))}
        with contextlib.suppress(BusError):  # the client asks again
            await self._bus.notify(received.reply, orjson.dumps(answer))

    async def _until(self, done: Callable[[], bool], within_s: float = ANSWER_S) -> bool:
        """Wait until `done`, at most `within_s`; whether it is."""
        waiting = done, asyncio.Event()
        self._waiting.append(waiting)
        try:
            async with asyncio.timeout(within_s):
                await waiting[1].wait()
        except TimeoutError:
            pass
        finally:
            self._waiting.remove(waiting)
        return done()

    def _is_done(self, request: ChangeRequest) -> bool:
        """Whether the request is stored already, by this leader or by an earlier one."""
        return request.id in self._swarm.changes.requests

    async def _commit(self, changes: Changes) -> None:
        """Store these changes; then have the policy follow them.

        Raises:
            UsageError, MeshError: they are not possible; nothing has changed.
        """
        config = self._swarm.with_changes(changes)
        check_changed(config, changes)
        await self._publisher.commit(changes, config)
        for spec in config.sandboxes:
            self._policy.open_sandbox(spec.name)
        for name in changes.removed_sandboxes:
            self._policy.close_sandbox(name)
        agents = {item.spec.name: item for item in config.agents}
        gone = [name for name in self._policy.agents if name not in agents]
        for name in gone:
            self._policy.remove(name)
        self._removals.begin({name: changes.removed[name] for name in gone})
        for name, agent in agents.items():
            if name not in self._policy.agents:
                state = agent_state(config, agent)
                state.joining = True
                self._policy.add(state)
        self._wake()

    # -- agents that come and go

    async def _add(self, request: ChangeRequest) -> dict[str, Any]:
        name, until = request.agent, time.monotonic() + ANSWER_S
        if not self._is_done(request):
            if name in self._removals.running:
                return {"pending": self._removals.describe(name)}
            inspection = self._inspections.get(request.id) or self._begin_inspection(request)
            await asyncio.wait({inspection}, timeout=ANSWER_S)
            if not inspection.done():
                return {"pending": f"the class of {name} is tried"}
            self._inspections.pop(request.id, None)
            traits = inspection.result()
            async with self._changing:
                if not self._is_done(request):
                    await self._commit_add(request, traits)
        return await self._await_start(name, until)

    async def _await_start(self, name: str, until: float) -> dict[str, Any]:
        """The answer about an agent that was added: it votes, or has died; a program must have handled a message."""
        state, spec = self._policy.agents.get(name), self._swarm.specs.get(name)
        if state is None or spec is None:
            raise MeshError(f"agent {name} was removed meanwhile")
        if not await self._until(lambda: not state.joining or is_failing(state), max(0.0, until - time.monotonic())):
            return {"pending": f"{name} is {state.phase} in {state.sandbox or 'no sandbox'}"}
        if spec.command and not await self._until(
            lambda: handled(state, spec.start_after) or is_failing(state), max(0.0, until - time.monotonic())
        ):
            since = state.healthy_since
            if since is None or time.monotonic() - since < FIRST_INPUT_S:
                return {"pending": f"{name} waits for a message, which starts its program"}
        if state.phase in STOPPED:
            raise MeshError(
                f"agent {name} was added, but is {state.phase}: {state.reason}; fix that and `signalmesh revive "
                f"{name}`, or `signalmesh remove {name}`"
            )
        has_handled = handled(state, spec.start_after)
        if is_failing(state) and not has_handled:
            raise MeshError(
                f"agent {name} was added, but has died {state.deaths.in_a_row} times at the same message: "
                f"{state.reason}; it is started again until it is quarantined: mend it, or `signalmesh remove {name}`"
            )
        return {
            "agent": name,
            "sandbox": state.sandbox,
            "epoch": state.epoch,
            "status": state.phase,
            "cursor": state.cursor if has_handled else None,
        }

    def _begin_inspection(self, request: ChangeRequest) -> asyncio.Task[ClassTraits | None]:
        """Try the class of an agent that is to be added, in another process.

        Raises:
            UsageError, MeshError: the request is wrong, or cannot be done now.
        """
        self._check_key(f"add {request.agent}", request.agent)
        _, settings = place_added(self._swarm, request.agent, request.table, self._live())
        return self._inspect_agent(request, settings)

    def _check_key(self, what: str, name: str) -> None:
        if self._keys is not None and (file := self._keys.voter_file(name)) is not None:
            raise UsageError(
                f"{what}: {file} is the key of a voter of the name {name!r}, a program outside the swarm: it would "
                f"publish as that agent. Choose another name, or `signalmesh keys revoke voter-{name}` first"
            )
        if self._keys is not None and not self._keys.has_key(name):
            raise UsageError(
                f"agent {name}: the server has no key for it: with the keys of another server than that of `up`, write "
                "the agent into swarm.toml and export the keys anew (`signalmesh keys export`)"
            )

    def _inspect_agent(self, request: ChangeRequest, settings: AgentSettings) -> asyncio.Task[ClassTraits | None]:
        task = asyncio.create_task(asyncio.to_thread(self._inspect, self._swarm.config, settings))
        self._inspections[request.id] = task
        return task

    def _live(self) -> set[str]:
        return {spec.name for spec in self._swarm.config.sandboxes if self._policy.is_live(spec.name)}

    async def _commit_add(self, request: ChangeRequest, traits: ClassTraits | None) -> None:
        name = request.agent
        table, _ = place_added(self._swarm, name, request.table, self._live())
        start = (await self._starts_of([name]))[name]
        added = AddedAgent(
            table=table, after=start.after, outputs=start.outputs, continues=start.continues, traits=traits
        )
        await self._commit(after_adding(self._swarm.changes, name, added, request.id))

    async def _starts_of(self, names: Sequence[str]) -> dict[str, Start]:
        """Where agents of these names begin that are added now. All are looked up at once, so that many are quick."""
        after, bucket = (await self._bus.bounds()).last, self._bus.subjects.state_bucket
        outputs = await asyncio.gather(*(self._stored_outputs(name) for name in names))
        saved = await asyncio.gather(*(self._bus.kv_get(bucket, name) for name in names))
        return {
            name: Start(outputs=outputs[at], continues=saved[at] is not None, after=after)
            for at, name in enumerate(names)
        }

    async def _stored_outputs(self, name: str) -> int:
        """The number of the last output that an agent of this name has stored, in an earlier life."""
        subjects = (f"{self._bus.subjects.ns}.{kind}.*.{name}" for kind in AGENT_KINDS)
        found = await asyncio.gather(*(self._bus.last(subject) for subject in subjects))
        return max((h.number(stored.headers, h.OUTPUT) or 0 for stored in found if stored is not None), default=0)

    async def _remove(self, request: ChangeRequest) -> dict[str, Any]:
        name = request.agent
        async with self._changing:
            if not self._is_done(request):
                after = (await self._bus.bounds()).last
                changes = after_removing(self._swarm, name, request.id, after=after, forget=request.forget)
                await self._commit(changes)
                self._removals.begin({name: changes.removed[name]})
        if not await self._until(lambda: name not in self._removals.running):
            return {"pending": self._removals.describe(name)}
        if name in self._policy.agents:
            raise MeshError(f"agent {name} was added again meanwhile")
        warnings = missing_parts(self._swarm.config)
        return {"agent": name, "forgotten": self._swarm.changes.removed[name].forget, "warnings": warnings}

    async def _scale(self, request: ChangeRequest) -> dict[str, Any]:
        kind, until = request.kind, time.monotonic() + ANSWER_S
        if not self._is_done(request):
            tables = scaled_tables(self._swarm, kind, request.count, self._live())
            new = [name for name in tables if name not in self._policy.agents]
            for name in new:
                self._check_key(f"scale {kind}", name)
                if name in self._removals.running:
                    return {"pending": self._removals.describe(name)}
            traits = None
            if new:
                inspection = self._inspections.get(request.id)
                if inspection is None:
                    table = agent_table(f"scale {kind}", new[0], tables[new[0]])
                    sandbox, config = tables[new[0]]["sandbox"], self._swarm.config
                    settings = agent_settings(f"scale {kind}", new[0], table, sandbox, config.swarm, "")
                    inspection = self._inspect_agent(request, settings)
                await asyncio.wait({inspection}, timeout=ANSWER_S)
                if not inspection.done():
                    return {"pending": f"the class of {kind} is tried"}
                self._inspections.pop(request.id, None)
                traits = inspection.result()
            async with self._changing:
                if not self._is_done(request):
                    await self._commit_scale(request, traits)
        agents, removals = self._policy.agents, self._removals.running

        def unfinished() -> list[str]:
            members = generated_members(self._swarm, kind)
            starting = [name for name in members if agents[name].joining and agents[name].phase not in STOPPED]
            return [*starting, *(name for name in removals if name.rpartition("-")[0] == kind)]

        if not await self._until(lambda: not unfinished(), max(0.0, until - time.monotonic())):
            return {"pending": ", ".join(unfinished())}
        members = sorted(generated_members(self._swarm, kind).items(), key=itemgetter(1))
        shown = [
            {"agent": name, "sandbox": agents[name].sandbox, "epoch": agents[name].epoch, "status": agents[name].phase}
            for name, _ in members
        ]
        return {"kind": kind, "agents": shown}

    async def _commit_scale(self, request: ChangeRequest, traits: ClassTraits | None) -> None:
        kind = request.kind
        tables = scaled_tables(self._swarm, kind, request.count, self._live())
        starts = await self._starts_of([name for name in tables if name not in self._policy.agents])
        after = (await self._bus.bounds()).last
        await self._commit(
            after_scaling(self._swarm, kind, tables, request.id, starts=starts, traits=traits, after=after)
        )

    # -- sandboxes that come and go

    async def _add_sandbox(self, request: ChangeRequest) -> dict[str, Any]:
        name = request.sandbox
        if not self._is_done(request):
            if name in self._sandbox_removals.running:
                return {"pending": self._sandbox_removals.describe(name)}
            hosts = [host for host in self._policy.hosts if self._policy.serves(host, host)]
            changes = after_adding_sandbox(self._swarm, name, request.table, request.id, hosts)
            remote = self._is_remote(self._swarm.with_changes(changes), name)
            self._check_hosts(f"sandbox add {name}", remote=remote)
            if self._keys is not None and (voters := self._keys.voters_like_hosts(name)):
                raise UsageError(
                    f"sandbox add {name}: {', '.join(voters)} would send heartbeats as its host: choose another name, "
                    f"or revoke the key first (`signalmesh keys revoke {voters[0]}`)"
                )
            if self._keys is not None and not remote and not self._keys.has_host_key(name):
                raise UsageError(
                    f"sandbox add {name}: the server has no key for its host: with the keys of another server than "
                    "that of `up`, write it into swarm.toml and export the keys anew (`signalmesh keys export`)"
                )
            async with self._changing:
                if not self._is_done(request):
                    await self._commit(after_adding_sandbox(self._swarm, name, request.table, request.id, hosts))

        def provider() -> str | None:
            return next((spec.provider for spec in self._swarm.config.sandboxes if spec.name == name), None)

        if not await self._until(lambda: self._policy.is_live(name) or provider() is None):
            if name in self._policy.provider.failed:
                raise MeshError(
                    f"sandbox {name} was added, but its provider reports that it has failed: `signalmesh status` says "
                    f"why; fix that and restart `signalmesh up`, or `signalmesh sandbox remove {name}`"
                )
            who = "the provider creates" if self._is_remote(self._swarm.config, name) else "`up` starts the host of"
            return {"pending": f"{who} {name}"}
        if provider() is None:
            raise MeshError(f"sandbox {name} was removed meanwhile")
        return {"sandbox": name, "provider": provider()}

    @staticmethod
    def _is_remote(config: ResolvedSwarm, name: str) -> bool:
        return any(spec.name == name and spec.e2b is not None for spec in config.sandboxes)

    def _check_hosts(self, what: str, *, remote: bool) -> None:
        if remote and not self._policy.provider.is_live(time.monotonic()):
            raise UsageError(
                f"{what}: no provider of sandboxes at E2B runs: `up` starts it with the key of E2B and the address of "
                'the bus (--public-nats) if swarm.toml has a sandbox with provider = "e2b": add one there, then '
                "`signalmesh down` and `signalmesh up`"
            )
        if not remote and not self._up_runs_hosts:
            raise UsageError(
                f"{what}: here each host is a service of its own, which no `up` starts or ends (as in Compose): change "
                "the services, and the tables [sandboxes.*] of swarm.toml"
            )

    async def _remove_sandbox(self, request: ChangeRequest) -> dict[str, Any]:
        name = request.sandbox
        async with self._changing:
            if not self._is_done(request):
                self._check_hosts(f"sandbox remove {name}", remote=self._is_remote(self._swarm.config, name))
                await self._commit_remove_sandbox(request)
        agents, removed = self._policy.agents, self._swarm.changes.removed_sandboxes.get(name)
        if removed is None:
            raise MeshError(f"sandbox {name} was added again meanwhile")
        moves = self._swarm.changes.moved.items()
        moved = [agents[agent] for agent, move in moves if move.after == removed.after and agent in agents]

        def unfinished() -> list[str]:
            return [state.name for state in moved if state.name in self._moves.running]

        if not await self._until(lambda: name not in self._sandbox_removals.running and not unfinished()):
            return {"pending": self._sandbox_removals.describe(name)}
        shown = [
            {"agent": state.name, "sandbox": state.sandbox, "epoch": state.epoch, "status": state.phase}
            for state in moved
        ]
        return {"sandbox": name, "moved": shown}

    async def _commit_remove_sandbox(self, request: ChangeRequest) -> None:
        name, after = request.sandbox, (await self._bus.bounds()).last
        changes = after_removing_sandbox(self._swarm, name, request.id, after=after, live=self._live())
        await self._commit(changes)
        for agent, move in changes.moved.items():
            if move.after == after:
                self._moves.begin(agent, move.sandbox)
        self._sandbox_removals.begin({name: changes.removed_sandboxes[name]})

    # -- moves

    async def _move(self, request: ChangeRequest) -> dict[str, Any]:
        name, target = request.agent, request.sandbox
        async with self._changing:
            if not self._is_done(request):
                self._check_movable(name, target)
                await self._commit_move(request)
        state = self._policy.agents.get(name)
        if state is None:
            raise MeshError(f"agent {name} was removed meanwhile")
        if not await self._until(lambda: name not in self._moves.running):
            return {"pending": self._moves.describe(name)}
        if not self._policy.serves(state.sandbox, target) and state.phase not in STOPPED:
            raise MeshError(
                f"agent {name} runs in sandbox {state.sandbox or 'none'}: {target} was lost meanwhile; `signalmesh "
                f"rebalance` brings it there when that is back"
            )
        return {"agent": name, "sandbox": state.sandbox, "epoch": state.epoch, "status": state.phase}

    def _check_movable(self, name: str, target: str) -> None:
        self._agent(name)
        sandboxes = [spec.name for spec in self._swarm.config.sandboxes]
        if target not in sandboxes:
            raise UsageError(
                f"--to: no sandbox {target!r}{similar(target, sandboxes)}; there are: {', '.join(sandboxes)}"
            )
        if not self._policy.is_live(target):
            raise MeshError(f"--to: sandbox {target} has no live host; `signalmesh status` lists those that have")

    async def _commit_move(self, request: ChangeRequest) -> None:
        name, target = request.agent, request.sandbox
        state, changes = self._policy.agents[name], self._swarm.changes
        before, moving = state.preferred, state.moving
        # First, so that an incarnation that starts while the change is being stored starts there.
        self._policy.move(name, target)
        try:
            after = (await self._bus.bounds()).last
            moved = {**changes.moved, name: Move(sandbox=target, after=after)}
            new = changes.after(f"move {name} to {target}", request.id, moved=moved)
            await self._publisher.commit(new, self._swarm.with_changes(new))
        except MeshError:
            state.preferred, state.moving = before, moving
            raise
        self._moves.begin(name, target)
        self._wake()

    async def _rebalance(self, request: ChangeRequest) -> dict[str, Any]:
        """Bring the next agent home that is elsewhere; the client asks again until there is none."""
        away = self._moves.away()
        if away and not self._moves.running:
            self._moves.begin(away[0], self._policy.agents[away[0]].preferred)
            self._wake()
        moving = next(iter(self._moves.running), None)
        if moving is None:
            return {"agent": None, "left": 0}
        if not await self._until(lambda: moving not in self._moves.running):
            return {"pending": self._moves.describe(moving)}
        state = self._policy.agents.get(moving)
        if state is None:
            return {"pending": f"{moving} was removed meanwhile"}
        return {
            "agent": moving,
            "sandbox": state.sandbox,
            "epoch": state.epoch,
            "status": state.phase,
            "left": len(self._moves.away()),
        }

    def _agent(self, name: str) -> None:
        """Refuse an agent that is not in the swarm, or that no host runs.

        Raises:
            UsageError: it is one of these.
        """
        agents = self._policy.agents
        if name not in agents:
            raise UsageError(f"no agent {name!r} in this swarm{similar(name, agents)}; it has: {', '.join(agents)}")
        if name not in self._swarm.specs:
            raise UsageError(f"agent {name!r} is external: it runs outside the supervisor")


def handled(state: AgentState, start: int) -> bool:
    """Whether an agent that reads from after message `start` has handled a message, and none of its deaths was later.

    A program is started by the first message, so that this is the first sign that it works.
    """
    return state.phase == "running" and state.cursor > max(start, state.deaths.cursor)


def is_failing(state: AgentState) -> bool:
    """Whether it dies again at the message at which it has died before; once may have been somebody's signal."""
    return state.phase in STOPPED or state.deaths.in_a_row >= FAILING_DEATHS


def _request_in(data: bytes) -> ChangeRequest:
    """The request of a message.

    Raises:
        MeshError: it is none.
    """
    try:
        request = msgspec.json.decode(data, type=ChangeRequest)
    except ValueError as error:
        raise MeshError(f"expected a JSON object with the id of a request: {error}") from None
    if not 0 < len(request.id) <= MAX_ID:
        raise MeshError(f"id: expected 1 to {MAX_ID} characters")
    return request
