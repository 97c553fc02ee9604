"""What each process of a swarm may publish and subscribe to. It follows from the subject grammar and the configuration.

A subject names its one writer, so that each process may write under its own name alone. Agents request JetStream's API
of their host (agents/host/api_gateway.py) and have no permission for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from agents.spec import AgentSpec
from bus.messages.guard import guarded
from bus.messages.subjects import DASHBOARD, PROTOCOL_SERVICE, PROVIDER, STANDBY, STORED_KINDS, WATCHDOG, Subjects
from bus.nats.credentials import SERVICES, answers_of, inbox_of

__all__ = [
    "ANSWERS",
    "ANSWERS_S",
    "UNNAMED",
    "Permissions",
    "agent_permissions",
    "observer_permissions",
    "role_permissions",
    "sandbox_permissions",
    "subscriber_permissions",
    "voter_permissions",
]

UNNAMED = "clients without a key"
"""In place of an identity: it has no file, for nobody has its seed."""
VOTES = ("signal", "sentiment")
"""What an agent outside the swarm may publish, if its table does not say."""
REQUESTS = ("restart", "revive")
"""Requests to the watchdog that the dashboard makes."""
PROTOCOL_INBOX = f"{inbox_of(PROTOCOL_SERVICE)}.>"
"""Where the SDKs of the Synadia Agent Protocol await answers, whatever inbox prefix their connection has."""
DISCOVERY = ("PING", "INFO", "STATS")
"""Requests of service discovery."""
SHARED_SERVICES = ("", f".{PROTOCOL_SERVICE}", f".{PROTOCOL_SERVICE}.*")
"""What discovery asks all agents at once, and the instances of the service that all have; their ids are random."""
ANSWERS, ANSWERS_S = 2, 5
"""How many answers to a request a user with `answers` may publish, and for how many seconds."""
ORDERS = ("spawn", "kill", "signal", "check", "probe")
"""Requests to a sandbox host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Permissions:
    """What a user may publish and subscribe to, beside its inboxes.

    `answers`: it may also answer whatever request it receives, soon, at any subject that the request names. That is for
    users alone that may publish everything anyway: whoever can send a request to itself would have the same right.
    """

    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    never_subscribe: tuple[str, ...] = ()
    answers: bool = False

    @property
    def mapped_publish(self) -> tuple[str, ...]:
        """What the server allows to be published: it judges a message by the subject to which it maps it."""
        return tuple(map(guarded, self.publish))

    def subscriptions(self, public_key: str) -> tuple[str, ...]:
        """The subjects that the user with this nkey may subscribe to: with its own inboxes, if it may publish."""
        return (*self.subscribe, f"{inbox_of(public_key)}.>") if self.publish else self.subscribe


def agent_permissions(spec: AgentSpec, memory_key: str, subjects: Subjects) -> Permissions:
    """Those of an agent that a host runs, which publishes the kinds of `spec` and has this memory key."""
    ns, name = subjects.ns, spec.name
    return Permissions(
        publish=(
            *(f"in.{ns}.{kind}.*.{name}" for kind in (*spec.publishes, "timer", "alert")),
            f"in.{ns}.lifecycle.{name}.{name}",
            subjects.heartbeat(name),
            subjects.protocol("hb", name),
            f"$KV.{subjects.state_bucket}.{name}",
            f"$KV.{subjects.registry_bucket}.{name}",
            f"$KV.{subjects.memory_bucket}.{subjects.memory_key(name, memory_key)}",
            f"{subjects.api(name)}.>",
            f"$JS.FC.{subjects.stream}.>",
            *_answers(name),
            f"{inbox_of('*')}.{SERVICES}.>",
            PROTOCOL_INBOX,
        ),
        subscribe=(
            subjects.epoch(name),
            f"{ns}.control.{name}.*",
            *(subjects.protocol(verb, name) for verb in ("prompt", "status")),
            *(f"$SRV.{verb}{service}" for verb in DISCOVERY for service in SHARED_SERVICES),
            *(f"$SRV.*.{own}" for own in (name, f"{name}.*")),
        ),
    )


def voter_permissions(name: str, kinds: Iterable[str], subjects: Subjects) -> Permissions:
    """Those of an agent that runs as a program outside the swarm: its votes, and the read side."""
    votes = tuple(f"in.{subjects.ns}.{kind}.*.{name}" for kind in (tuple(kinds) or VOTES))
    return replace(observer_permissions(subjects), publish=(*votes, subjects.heartbeat(name)))


def sandbox_permissions(name: str, subjects: Subjects) -> Permissions:
    """Those of the host of sandbox `name`, which requests JetStream's API for its agents too."""
    ns, stream = subjects.ns, subjects.stream
    buckets = (subjects.state_bucket, subjects.memory_bucket, subjects.registry_bucket)
    return Permissions(
        publish=(
            *_reports(name, subjects),
            *_reading(stream),
            *(f"$JS.API.STREAM.MSG.GET.KV_{bucket}" for bucket in buckets),
            *_answers(name),
        ),
        subscribe=(subjects.epoch(WATCHDOG), f"{ns}.control.{name}.*", f"{subjects.api('*')}.>"),
    )


def observer_permissions(subjects: Subjects) -> Permissions:
    """Those of a client without a key: it receives the read side, and publishes nothing."""
    return Permissions(subscribe=(f"{subjects.ns}.>",), never_subscribe=(f"{subjects.ns}.control.>",))


def subscriber_permissions(subjects: Subjects) -> Permissions:
    """Those of a program that receives decisions, and nothing else."""
    return Permissions(subscribe=(subjects.all_of("decision"),))


def role_permissions(role: str, subjects: Subjects) -> Permissions:
    """Those of `up`, the operator, and every other role but a sandbox host.

    Raises:
        KeyError: there is no such role.
    """
    ns, observer = subjects.ns, observer_permissions(subjects)
    reading = (*_reading(*_streams(subjects)), "$JS.API.INFO", "$SYS.REQ.USER.INFO")
    control = f"{ns}.control"
    all_of_it = Permissions(
        publish=(
            f"in.{ns}.>",
            f"{subjects.restore_prefix}>",
            f"{ns}.heartbeat.*",
            f"{control}.*.*",
            *(f"$KV.{stream.removeprefix('KV_')}.>" for stream in _streams(subjects)[1:]),
            "$JS.API.>",
            "$JS.ACK.>",
            "$JS.FC.>",
            "$SRV.>",
            "$SYS.REQ.USER.INFO",
        ),
        subscribe=(f"{ns}.>", f"{subjects.api('*')}.>", "$SRV.>", "$JS.EVENT.>", guarded(subjects.probe)),
        answers=True,
    )
    table = {
        "up": all_of_it,
        "operator": replace(
            all_of_it,
            publish=(*all_of_it.publish, *(subjects.protocol(verb, "*") for verb in ("prompt", "status"))),
            subscribe=(*all_of_it.subscribe, f"{PROTOCOL_SERVICE}.hb.*.*.*", PROTOCOL_INBOX),
        ),
        WATCHDOG: Permissions(
            publish=(
                *_reports(WATCHDOG, subjects),
                f"in.{ns}.epoch.*",
                subjects.probe,
                subjects.write(subjects.config(WATCHDOG)),
                subjects.heartbeat(STANDBY),
                *(f"{control}.*.{order}" for order in ORDERS),
                f"$KV.{subjects.registry_bucket}.*",
                f"$KV.{subjects.state_bucket}.*",  # it deletes the state of agents that are removed for good
                *reading,
                *(f"$JS.API.STREAM.{verb}.{each}" for each in _streams(subjects) for verb in ("CREATE", "UPDATE")),
                *_answers(WATCHDOG),
            ),
            subscribe=(
                *(subjects.all_of(kind) for kind in STORED_KINDS),
                f"{ns}.heartbeat.*",
                f"{control}.{WATCHDOG}.*",
                guarded(subjects.probe),
            ),
        ),
        PROVIDER: Permissions(
            publish=(*_reports(PROVIDER, subjects), *_reading(subjects.stream)),
            subscribe=(f"{ns}.heartbeat.*", subjects.config(WATCHDOG), subjects.lifecycle("*", WATCHDOG)),
        ),
        "mirror": replace(observer, publish=(*_notices("mirror", subjects), *reading)),
        "metrics": replace(
            observer,
            publish=(
                *_notices("metrics", subjects),
                *reading,
                f"$JS.API.CONSUMER.INFO.{subjects.stream}.*",
                f"$JS.API.CONSUMER.MSG.NEXT.{subjects.stream}.*",
                f"$JS.ACK.{subjects.stream}.>",
            ),
        ),
        DASHBOARD: replace(
            observer,
            publish=(
                *_notices(DASHBOARD, subjects),
                *reading,
                *(f"{control}.{WATCHDOG}.{request}" for request in REQUESTS),
                f"{control}.*.signal",
            ),
        ),
        "proxy": Permissions(
            publish=(subjects.heartbeat("proxy"), *_answers("proxy")), subscribe=(f"{control}.proxy.*",)
        ),
    }
    return table[role]


def _streams(subjects: Subjects) -> tuple[str, ...]:
    buckets = (subjects.state_bucket, subjects.memory_bucket, subjects.registry_bucket)
    return (subjects.stream, *(f"KV_{bucket}" for bucket in buckets))


def _notices(writer: str, subjects: Subjects) -> tuple[str, ...]:
    """What every process but an agent publishes under its name."""
    return (f"in.{subjects.ns}.alert.*.{writer}", subjects.heartbeat(writer))


def _reports(writer: str, subjects: Subjects) -> tuple[str, ...]:
    """The same of those that start and end others: bus/messages/reporters.py says what each may report."""
    return (f"in.{subjects.ns}.lifecycle.*.{writer}", *_notices(writer, subjects))


def _answers(name: str) -> tuple[str, ...]:
    """Where a process answers requests: below the inboxes of whoever asks it, under its own name."""
    return (f"{answers_of(inbox_of('*'), name)}.>",)


def _reading(*streams: str) -> tuple[str, ...]:
    """What reading these streams needs: a consumer is the only way to read many messages."""
    return tuple(
        subject
        for stream in streams
        for subject in (
            f"$JS.API.STREAM.INFO.{stream}",
            f"$JS.API.STREAM.MSG.GET.{stream}",
            f"$JS.API.CONSUMER.CREATE.{stream}.*",
            f"$JS.API.CONSUMER.DELETE.{stream}.*",
            f"$JS.FC.{stream}.>",
        )
    )
