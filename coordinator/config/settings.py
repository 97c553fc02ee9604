"""A swarm's settings as frozen dataclasses, with their defaults and limits.

`SwarmConfig` is what swarm.toml contains (coordinator/config/loader.py fills it). `ResolvedSwarm` is the same after its
agents' classes were imported: it also knows which agents vote and which decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from agents.builtin.command import CommandAgent
from agents.runtime.output_rate import MAX_OUTPUTS_PER_S
from agents.spec import AgentSpec, ClassTraits, load_class
from bus.errors import ConfigError, UsageError
from bus.server.config import Durability
from coordinator.config.connection import AuthenticationSetting
from coordinator.config.convert import convert, similar
from coordinator.config.e2b import E2bSettings
from coordinator.config.secrets import SecretSettings

if TYPE_CHECKING:
    from bus.mirror.follower import Retention
    from bus.nats.streams import StreamLimits

__all__ = [
    "AgentSettings",
    "AlertSettings",
    "CoordinatorSettings",
    "DashboardSettings",
    "MetricsSettings",
    "MirrorSettings",
    "NatsSettings",
    "ResolvedAgent",
    "ResolvedSwarm",
    "SandboxSpec",
    "StreamSettings",
    "SwarmConfig",
    "WatchdogSettings",
]

SHORTEST_MAX_AGE_S = 120.0
"""The stream's deduplication window; max_age may not be shorter."""

VOTING_KINDS = frozenset({"signal", "sentiment"})
"""An agent that publishes one of these votes, unless its table sets `votes`."""

NO_TRAITS: Mapping[str, ClassTraits] = MappingProxyType({})

Positive = Annotated[float, Meta(gt=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
PositiveFraction = Annotated[float, Meta(gt=0, le=1)]
LONGEST_S = 366 * 24 * 3600
"""A year, the longest wait. (The stream keeps messages for a hundred years at most: the server counts nanoseconds in
64 bits.)"""
Seconds = Annotated[float, Meta(gt=0, le=LONGEST_S)]
Milliseconds = Annotated[int, Meta(ge=1, le=LONGEST_S * 1000)]
Count = Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """A sandbox for agents. `packages` are to be installed by its provider; `e2b` are its settings at E2B.

    `price_per_hour` is in USD, None if no price is set; `price_source` names the source of that value.
    """

    name: str
    provider: str = "local"
    packages: tuple[str, ...] = ()
    price_per_hour: float | None = None
    price_source: str = ""
    e2b: E2bSettings | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """One [agents.NAME] table: the spec for its host, and the weight of its vote.

    `votes` is None where the table does not set it: the kinds that its class publishes then decide.
    """

    spec: AgentSpec
    external: bool = False
    votes: bool | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedAgent(AgentSettings):
    """An agent whose class was imported: whether it votes, and whether it publishes decisions."""

    votes: bool
    decides: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorSettings:
    """How votes become decisions: the content of the VotingConfig event."""

    quorum: Annotated[float, Meta(ge=0, lt=1)] = 0.5
    """Share of the voting weight that must be exceeded. Otherwise the decision is hold."""
    buy_at: Fraction = 0.55
    """Pooled probability of a rise at or above which the decision is buy."""
    sell_at: Fraction = 0.45
    """Pooled probability of a rise up to which the decision is sell. At most `buy_at`."""
    round_timeout_ms: Milliseconds = 400
    """Milliseconds that a round waits for votes."""
    position_cap: PositiveFraction = 0.5
    """Largest position, a fraction of capital."""
    vol_target: Positive = 0.01
    """Volatility a candle above which the risk rises."""
    drawdown_max: PositiveFraction = 0.25
    """Paper drawdown at which the risk is 1."""
    cvar_max: PositiveFraction = 0.02
    """Tail loss a candle that a position may have, a fraction of capital."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """What the stream keeps, and what an acknowledged message survives."""

    max_age_s: Annotated[float, Meta(ge=SHORTEST_MAX_AGE_S, le=100 * LONGEST_S)] = 7 * 24 * 3600.0
    """Seconds that messages are kept."""
    max_bytes: Annotated[int, Meta(ge=1 << 20, le=(1 << 63) - 1)] = 1 << 30
    """Bytes that are kept. Beyond that the oldest messages are removed. With the embedded server the stream keeps less
    if the disk has no room for so much and for the mirror."""
    durability: Durability = "process"
    """What an acknowledged message survives. `process`: the death of any process, nats-server included (the disk
    follows every second). `power`: a loss of power too (the disk is written before each acknowledgement)."""
    replicas: Annotated[int, Meta(ge=1, le=5)] = 1
    """Servers of a cluster that keep the stream and the buckets. More than one needs `--nats` with the addresses of
    that cluster."""

    def limits(self) -> StreamLimits:
        """The limits with which the stream is created."""
        from bus.nats.streams import StreamLimits

        return StreamLimits(max_age_s=self.max_age_s, max_bytes=self.max_bytes, replicas=self.replicas)


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchdogSettings:
    """When the watchdog suspects, restarts and quarantines an agent."""

    heartbeat_ms: Milliseconds = 100
    """Milliseconds between two heartbeats of an agent."""
    suspect_ms: Milliseconds = 300
    """Milliseconds of silence after which an agent is suspected. More than `heartbeat_ms`."""
    dead_ms: Milliseconds = 600
    """Milliseconds of silence after which the host probes the process. More than `suspect_ms`."""
    start_grace_ms: Milliseconds = 3000
    """Milliseconds that a new process has until its first heartbeat."""
    start_timeout_s: Seconds = 60.0
    """Seconds that the import of an agent's class, and its `setup`, may take: each step in the check of `up`, and both
    together in the agent's process."""
    starved_ms: Milliseconds = 5000
    """Longest silence, in milliseconds, of a process that computes or waits for a CPU: the longest that a handler may
    take. More than `dead_ms`."""
    quarantine_deaths: Count = 10
    """Number of deaths within `quarantine_window_s`, or in a row at the same input, after which an agent is
    quarantined: it is not started again."""
    quarantine_window_s: Seconds = 30.0
    """Seconds within which deaths are counted together."""
    return_agents: bool = False
    """Whether agents that moved because their sandbox was lost return by themselves, one after the other, when it has
    been back for 10 s. Otherwise `signalmesh rebalance` brings them back."""
    max_outputs_per_s: Count = MAX_OUTPUTS_PER_S
    """Outputs a second that an agent may publish; one of more than 1 KiB counts as one for each KiB. A faster agent
    waits. After 10 s of that it is quarantined."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorSettings:
    """What the mirror's file keeps."""

    enabled: bool = True
    """Whether `up` runs a mirror."""
    max_age_s: Annotated[float, Meta(ge=0)] = 0.0
    """Seconds that its file keeps messages; 0: without limit."""
    max_rows: Annotated[int, Meta(ge=0)] = 0
    """Number of messages that its file keeps; 0: all."""
    revisions: Count = 32
    """Newest writes that are kept of each key of the buckets, snapshots included."""

    def retention(self) -> Retention:
        """The retention of the mirror's file."""
        from bus.mirror.follower import Retention

        return Retention(max_age_s=self.max_age_s, max_rows=self.max_rows, revisions=self.revisions)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSettings:
    """Where metrics are served."""

    listen: str = ""
    """`HOST:PORT` at which `up` serves the metrics, such as `127.0.0.1:9464`; empty: no page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DashboardSettings:
    """Where the dashboard is served, and what it links to."""

    listen: str = "127.0.0.1:8080"
    """`HOST:PORT` of the pages; if that port is in use, the next free one. `off`: `up` runs no dashboard. Any other
    address than loopback needs the token for reading too."""
    jaeger: str = ""
    """Address of Jaeger, such as `http://localhost:16686`: decisions and recoveries link to their traces there. Empty:
    no links."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertSettings:
    """Where alerts are posted."""

    webhook: str = field(default="", repr=False)
    """http:// or https:// URL that alerts are posted to; empty: none. It is a secret: better in `[secrets.webhook]`, or
    in the environment as `SIGNALMESH_WEBHOOK`, which takes precedence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsSettings:
    """How the server admits clients."""

    authentication: AuthenticationSetting = "auto"
    """`keys`: each process has a key of its own, and the server lets it publish and subscribe to its own subjects
    alone; a client without a key receives the read side, and publishes nothing. `open`: whoever reaches the port may do
    everything. `auto`: `keys` on the embedded server; on a server of `--nats` what its own configuration has."""
    tls: bool = False
    """The embedded server demands TLS of every client, with certificates of a local authority in `tls/` of the state
    directory. It also does so, whatever is written here, if `signalmesh keys init --tls` has made that directory."""
    tls_verify_clients: bool = False
    """Mutual TLS: every client of the embedded server has to present a certificate of that authority as well."""
    max_messages_per_s: Count = 10_000
    """Messages a second that a key outside the swarm, of a voter or another operator, may send to the embedded server;
    one of more than 1 KiB counts as one for each KiB. A faster one is suspended: it may publish nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmConfig:
    """A whole swarm as configured, its agents' classes not imported. `file` is swarm.toml's path, or BUILT_IN."""

    file: str
    swarm: str
    max_agents: int
    sandboxes: tuple[SandboxSpec, ...]
    agents: tuple[AgentSettings, ...]
    coordinator: CoordinatorSettings = field(default_factory=CoordinatorSettings)
    stream: StreamSettings = field(default_factory=StreamSettings)
    watchdog: WatchdogSettings = field(default_factory=WatchdogSettings)
    mirror: MirrorSettings = field(default_factory=MirrorSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    alerts: AlertSettings = field(default_factory=AlertSettings)
    dashboard: DashboardSettings = field(default_factory=DashboardSettings)
    secrets: SecretSettings = field(default_factory=SecretSettings)
    nats: NatsSettings = field(default_factory=NatsSettings)

    def agent(self, name: str) -> AgentSettings:
        """The agent of this name.

        Raises:
            UsageError: there is none; the message lists the configured ones.
        """
        for settings in self.agents:
            if settings.spec.name == name:
                return settings
        names = [settings.spec.name for settings in self.agents]
        raise UsageError(f"no agent {name!r} in {self.file}{similar(name, names)}; it has: {', '.join(names)}")

    def resolve(self, known: Mapping[str, ClassTraits] = NO_TRAITS) -> ResolvedSwarm:
        """Find out the kind of every agent and whether it votes.

        The class of an agent is imported, and its options are checked, unless `known` has its traits.

        Raises:
            ConfigError: a class cannot be imported or is no agent, an option is wrong, or no vote has weight.
        """
        traits = {
            settings.spec.name: known.get(settings.spec.name) or self.inspect_class(settings.spec)
            for settings in self.agents
            if settings.spec.class_path
        }
        agents = tuple(self._resolve_agent(settings, traits.get(settings.spec.name)) for settings in self.agents)
        given = {item.name: getattr(self, item.name) for item in fields(SwarmConfig)}
        resolved = ResolvedSwarm(**{**given, "agents": agents}, traits=traits)
        if resolved.voters and not any(resolved.voters.values()):
            raise ConfigError(self.file, "agents", "all voters have weight 0; give at least one of them more")
        return resolved

    def inspect_class(self, spec: AgentSpec) -> ClassTraits:
        """Import the class of an agent of this swarm in this process, and check the agent's options.

        Raises:
            ConfigError: the class cannot be imported or is no agent, or an option is wrong.
        """
        key = f"agents.{spec.name}"
        try:
            cls = load_class(spec)
        except UsageError as error:
            raise ConfigError(self.file, f"{key}.{'kind' if spec.kind else 'class'}", str(error)) from None
        convert(spec.options, cls.Options, self.file, f"{key}.options")
        return ClassTraits.of(cls)

    def _resolve_agent(self, settings: AgentSettings, traits: ClassTraits | None) -> ResolvedAgent:
        """Resolve one agent; `traits` are those of its class, if it has one."""
        spec, publishes = settings.spec, settings.spec.publishes
        if spec.command:
            convert(spec.options, CommandAgent.Options, self.file, f"agents.{spec.name}.options")
        if traits is not None:
            publishes = traits.publishes
            spec = replace(spec, kind=traits.kind, listens=traits.listens, publishes=publishes)
        can_vote = settings.external or not VOTING_KINDS.isdisjoint(publishes)
        if settings.votes and not can_vote:
            raise ConfigError(
                self.file,
                f"agents.{spec.name}.votes",
                f"it publishes no {' and no '.join(sorted(VOTING_KINDS))}, so every round would time out; remove it",
            )
        return ResolvedAgent(
            spec=spec,
            external=settings.external,
            votes=can_vote if settings.votes is None else settings.votes,
            weight=settings.weight,
            decides="decision" in publishes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedSwarm(SwarmConfig):
    """A swarm whose agents' classes were imported and checked."""

    agents: tuple[ResolvedAgent, ...]
    traits: Mapping[str, ClassTraits]
    """Agent -> traits of its class, of the agents that are neither commands nor external."""

    @property
    def voters(self) -> dict[str, float]:
        """Agent -> weight of all agents that vote."""
        return {settings.spec.name: settings.weight for settings in self.agents if settings.votes}

    @property
    def deciders(self) -> tuple[str, ...]:
        """The names of all agents that publish decisions, sorted."""
        return tuple(sorted(settings.spec.name for settings in self.agents if settings.decides))

    @property
    def sources(self) -> set[str]:
        """The names of the agents that produce data by themselves."""
        return {name for name, traits in self.traits.items() if traits.is_source}
