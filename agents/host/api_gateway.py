"""JetStream's API for the agents of a host, in a swarm with keys: their users may not request it themselves.

Permissions are about subjects. What a request may read is in its body, and the deliver subject of a consumer is not
compared with anybody's permissions. So an agent requests the API at `_API.{swarm}.{agent}.{command}`; its host checks
the body and passes the request on. The server answers the agent directly: one hop more, in one direction.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import orjson
import structlog

from agents.spec import AgentSpec
from bus.durable.events import EventPublisher
from bus.durable.fencing import last_claim
from bus.errors import BusError, MeshError
from bus.interface import StoredMessage
from bus.messages import headers as h
from bus.messages.subjects import Subjects
from bus.nats.bus import NatsBus
from bus.nats.credentials import answers_of, inbox_of
from bus.nats.jetstream import INACTIVE_THRESHOLD_S, NANOSECOND
from bus.utils.attempt_counts import AttemptCounts

__all__ = ["ApiGateway", "RequestRefused", "readable_by"]

MAX_CONSUMERS = 16
"""Of one agent, which has two at a time and deletes others unless its connection breaks. The oldest is then deleted."""
FORBIDDEN = 403
INACTIVE_NS = int(INACTIVE_THRESHOLD_S * NANOSECOND)
"""Until the server removes a consumer of an agent that nobody reads."""
MAX_OPERATION = 64
MAX_LOOKING = 512
"""Reads by sequence of all agents at a time, for each of which the host reads the message first."""
MAX_DOUBTED = 512
"""Refused requests of an agent that wait until its newest claim is known; more are not counted."""
LATE_S = 10.0
"""For so long after the start of an incarnation, requests of the one before to its host are not reported."""
POISON = "poison:"
"""The ids of reports that several agents make of the same message begin with it."""

log = structlog.get_logger("signalmesh.host")


class RequestRefused(MeshError):
    """A request that the agent may not make."""


class _ConsumerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What bus.nats.jetstream requests of a consumer, and nothing else."""

    name: str
    deliver_policy: Literal["all", "by_start_sequence", "last_per_subject"]
    filter_subjects: list[str]
    deliver_subject: str
    ack_policy: Literal["none"]
    max_deliver: int
    replay_policy: Literal["instant"]
    flow_control: bool
    idle_heartbeat: int
    inactive_threshold: int
    mem_storage: bool
    num_replicas: int
    description: str = ""
    opt_start_seq: int | None = None


class _Create(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    stream_name: str
    config: _ConsumerConfig


class _GetMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    last_by_subj: str = ""
    next_by_subj: str = ""
    seq: int | None = None


def readable_by(spec: AgentSpec, subjects: Subjects) -> frozenset[str]:
    """The filters of the stream that the agent of `spec` may read: the kinds that it listens to, and what it writes."""
    name = spec.name
    listened = {subjects.all_of(kind) for kind in spec.listens if kind != "timer"}
    own = {f"{subjects.ns}.*.*.{name}", f"{subjects.ns}.timer.*.{name}", subjects.epoch(name)}
    return frozenset(listened | own)


class AgentGateway:
    """The rights of one agent, by which its requests are checked."""

    def __init__(self, spec: AgentSpec, subjects: Subjects, public_key: str, host: str) -> None:
        self._name = name = spec.name
        self._subjects, self._inbox = subjects, inbox_of(public_key) + "."
        self.answers = answers_of(inbox_of(public_key), host) + "."
        """What the subjects begin with at which this host may answer the agent."""
        self._readable = readable_by(spec, subjects)
        self._keys = {
            f"KV_{bucket}": f"$KV.{bucket}.{key}"
            for bucket, key in (
                (subjects.state_bucket, name),
                (subjects.registry_bucket, name),
                (subjects.memory_bucket, f"{subjects.ns}/{name}/"),
            )
        }
        self._consumers: dict[str, None] = {}

    def check(self, command: str, reply: str, body: bytes) -> int | None:
        """Return if the agent may make this request; with a sequence, if the message there `has_own_id`.

        Raises:
            RequestRefused: it may not.
        """
        if reply and not reply.startswith(self.answers):
            raise RequestRefused(f"{command}: expected an answer below {self.answers}, not to {reply}")
        operation, stream, rest = _parts(command)
        try:
            if operation == "STREAM.INFO" and not rest and stream == self._subjects.stream:
                if body.strip():
                    raise RequestRefused(f"{command}: expected an empty request")
            elif operation == "STREAM.MSG.GET" and not rest:
                return self._check_get(command, stream, msgspec.json.decode(body, type=_GetMessage))
            elif operation == "CONSUMER.CREATE" and stream == self._subjects.stream:
                self._check_create(command, stream, rest, msgspec.json.decode(body, type=_Create))
            elif operation == "CONSUMER.DELETE" and rest in self._consumers:
                del self._consumers[rest]
            else:
                raise RequestRefused(f"{command}: not among the requests of an agent")
        except msgspec.ValidationError as error:
            raise RequestRefused(f"{command}: {error}") from None
        except ValueError:  # no JSON, or no UTF-8, which is not among msgspec's errors
            raise RequestRefused(f"{command}: expected JSON") from None
        return None

    def has_own_id(self, stored: StoredMessage) -> bool:
        """Whether a message has an id that this agent uses, so that it may read what has taken it."""
        return stored.headers.get(h.MSG_ID, "").startswith((f"{self._name}:", POISON))

    def _check_get(self, command: str, stream: str, wanted: _GetMessage) -> int | None:
        if stream == self._subjects.stream and wanted.seq is not None and not wanted.last_by_subj + wanted.next_by_subj:
            return wanted.seq
        if stream == self._subjects.stream:
            if wanted.last_by_subj and not wanted.next_by_subj:
                allowed = wanted.last_by_subj in self._readable
            else:
                allowed = wanted.next_by_subj in self._readable
            subject = wanted.last_by_subj or wanted.next_by_subj
        else:
            subject, own = wanted.last_by_subj, self._keys.get(stream)
            exact = own is not None and not own.endswith("/") and subject == own
            below = own is not None and own.endswith("/") and subject.startswith(own) and _is_literal(subject)
            allowed = (exact or below) and wanted.seq is None and not wanted.next_by_subj
        if not allowed:
            raise RequestRefused(f"{command}: the agent may not read {subject or 'by sequence'}")
        return None

    def _check_create(self, command: str, stream: str, name: str, wanted: _Create) -> None:
        config = wanted.config
        if wanted.stream_name != stream or config.name != name or "." in name:
            raise RequestRefused(f"{command}: expected the names of the subject in the body")
        if name.rpartition("-")[0] != self._name:
            raise RequestRefused(f"{command}: expected a name that begins with {self._name}-")
        if config.inactive_threshold != INACTIVE_NS or not config.mem_storage or config.num_replicas != 1:
            raise RequestRefused(
                f"{command}: expected inactive_threshold {INACTIVE_NS}, and mem_storage with one replica"
            )
        if config.description not in ("", self._name):
            raise RequestRefused(f"{command}: expected the agent's name as description")
        if not config.deliver_subject.startswith(self._inbox) or not _is_literal(config.deliver_subject):
            raise RequestRefused(f"{command}: expected a deliver subject below {self._inbox}")
        if not config.filter_subjects or not self._readable.issuperset(config.filter_subjects):
            foreign = sorted(set(config.filter_subjects) - self._readable) or ["everything"]
            raise RequestRefused(f"{command}: the agent may not read {', '.join(foreign)}")
        self._consumers[name] = None

    def surplus(self) -> list[str]:
        """The names of the agent's oldest consumers beyond MAX_CONSUMERS, to be deleted now."""
        names = list(self._consumers)[:-MAX_CONSUMERS]
        for name in names:
            del self._consumers[name]
        return names


def _is_literal(subject: str) -> bool:
    return not any(token in ("*", ">", "") for token in subject.split("."))


def _parts(command: str) -> tuple[str, str, str]:
    """Operation, stream and the rest of a command of the API."""
    for operation in ("STREAM.INFO", "STREAM.MSG.GET", "CONSUMER.CREATE", "CONSUMER.DELETE"):
        if command.startswith(operation + "."):
            stream, _, rest = command[len(operation) + 1 :].partition(".")
            return operation, stream, rest
    return command, "", ""


@dataclass(eq=False, slots=True)
class _Incarnation:
    """One that this host serves, or was the last of its agent to be served."""

    agent: str
    epoch: int
    rights: AgentGateway
    started_at: float = field(default_factory=time.monotonic)
    subscription: Any = None
    doubted: list[tuple[str, RequestRefused]] = field(default_factory=list)
    """Refused requests that another incarnation may have made: command and problem."""


class ApiGateway:
    """Serves the agents of `host` over its connection `bus`, and reports what it refuses by `reports`.

    It receives the requests of all incarnations of an agent, also of those that other hosts serve before and after its
    own. Their answers go elsewhere, so that it refuses them. They are not reported: see `_doubt`.
    """

    def __init__(self, bus: NatsBus, reports: EventPublisher, host: str) -> None:
        self._bus, self._reports, self._host = bus, reports, host
        self._refused: AttemptCounts[tuple[str, str]] = AttemptCounts()
        self._problems: dict[tuple[str, str], str] = {}
        self._serving: dict[str, _Incarnation] = {}
        self._served: dict[str, _Incarnation] = {}
        self._looking: set[asyncio.Task[None]] = set()

    async def admit(self, spec: AgentSpec, public_key: str, epoch: int) -> None:
        """Serve this incarnation of the agent of `spec`, whose user has this nkey, until `dismiss`."""
        name, connection = spec.name, self._bus.connection
        rights = AgentGateway(spec, self._bus.subjects, public_key, self._host)
        await self.dismiss(name)
        served = _Incarnation(name, epoch, rights)
        prefix = self._bus.subjects.api(name) + "."

        def on_request(subject: str, reply: str, body: bytes, _: bytes) -> None:
            command = subject[len(prefix) :]
            try:
                sequence = rights.check(command, reply, body)
            except RequestRefused as error:
                self._refuse(served, command, reply, body, error)
                return
            if sequence is not None:
                if len(self._looking) < MAX_LOOKING:  # else it asks again
                    self._start(self._look(served, command, reply, body, sequence))
                return
            with contextlib.suppress(BusError):  # the connection is down: the agent asks again
                for consumer in rights.surplus():
                    connection.write(f"$JS.API.CONSUMER.DELETE.{self._bus.subjects.stream}.{consumer}", b"")
                connection.write(f"$JS.API.{command}", body, reply)

        served.subscription = await connection.subscribe_directly(prefix + ">", on_request)
        self._serving[name] = served

    def _start(self, looking: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(looking, name="gateway-look")
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)

    async def _look(self, served: _Incarnation, command: str, reply: str, body: bytes, sequence: int) -> None:
        """Pass on a read by sequence if the message there has an id of the agent's own, or if there is none."""
        with contextlib.suppress(BusError):  # the agent asks again
            stored = await self._bus.message(sequence)
            if stored is None or served.rights.has_own_id(stored):
                self._bus.connection.write(f"$JS.API.{command}", body, reply)
            else:
                error = RequestRefused(
                    f"{command}: the agent may not read message {sequence}, which has no id of its own"
                )
                self._refuse(served, command, reply, body, error)

    def _refuse(self, served: _Incarnation, command: str, reply: str, body: bytes, error: RequestRefused) -> None:
        if reply.startswith(served.rights.answers):
            self._report(served.agent, command, error)
            with contextlib.suppress(BusError):
                self._bus.connection.write(reply, orjson.dumps(_refusal(error)))
            return
        former = self._served.get(served.agent)
        if former is not None and reply.startswith(former.rights.answers):
            try:
                former.rights.check(command, reply, body)
            except RequestRefused as problem:
                self._report(served.agent, command, problem)
            return
        if time.monotonic() - served.started_at < LATE_S and _is_for_a_host(command, reply):
            log.debug("late_request", of=served.agent, command=command, reply=reply)
        elif len(served.doubted) < MAX_DOUBTED:
            served.doubted.append((command, error))
            if len(served.doubted) == 1:
                self._start(self._doubt(served))

    async def _doubt(self, served: _Incarnation) -> None:
        """Report requests whose answers this host may not give, unless the agent was moved away.

        A host that was stopped receives what the agent's next incarnation has requested of another host meanwhile, and
        only then learns that it has lost the agent. The other host refuses and reports what is to be refused.
        """
        try:
            newest = await last_claim(self._bus, served.agent)
            doubted, served.doubted = served.doubted, []
        except BusError:  # what cannot be judged accuses nobody
            served.doubted = []
            return
        if newest is not None and newest.sequence > served.epoch:
            log.info("agent_moved_away", of=served.agent, epoch=served.epoch, claimed=newest.sequence)
            if self._serving.get(served.agent) is served:
                await self.dismiss(served.agent)
            return
        for command, error in doubted:
            self._report(served.agent, command, error)

    def _report(self, name: str, command: str, error: RequestRefused) -> None:
        """Alert for each agent and kind of request at once, then by `check`; the log has every one."""
        log.warning("request_refused", of=name, command=command, problem=str(error))
        operation = _parts(command)[0][:MAX_OPERATION]
        self._refused.add((name, operation), (name, ""))
        self._problems = {(name, operation): str(error)}  # of the newest one, which may be reported now
        self.check()

    def check(self) -> None:
        """Alert about what has been refused since the last alert about it. Call it about once a second."""
        for (name, operation), count in self._refused.due():
            problem = self._problems.get((name, operation), operation or "other requests")
            text = (
                f"agent {name} requested what it may not: {problem}; its code never does, so find out what runs there"
            )
            self._reports.alert("warning", "api_request_refused", text, agent=name, attempt=operation, count=count)

    async def dismiss(self, name: str) -> None:
        """Serve the agent `name` no longer."""
        if (served := self._serving.pop(name, None)) is not None:
            self._served[name] = served
            with contextlib.suppress(Exception):
                await served.subscription.unsubscribe()


def _is_for_a_host(command: str, reply: str) -> bool:
    """Whether a host is to answer this request. Agents delete their consumers without an answer."""
    if not reply:
        return _parts(command)[0] == "CONSUMER.DELETE"
    tokens = reply.split(".")
    return len(tokens) > 4 and reply.startswith(answers_of(inbox_of(tokens[1]), tokens[3]) + ".")


def _refusal(error: RequestRefused) -> Mapping[str, Any]:
    """An answer in the form of JetStream's API."""
    return {"error": {"code": FORBIDDEN, "err_code": FORBIDDEN, "description": str(error)}}
