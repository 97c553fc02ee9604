"""Alerts about messages of unknown kinds, and about heartbeats that are not believed."""

from __future__ import annotations

import asyncio

import structlog

from bus.durable.events import EventPublisher
from bus.errors import BusError
from bus.messages import Heartbeat
from bus.messages.subjects import RESERVED_NAMES, STANDBY, STORED_KINDS, WATCHDOG
from bus.nats.bus import NatsBus
from bus.utils.attempt_counts import AttemptCounts
from coordinator.config.live_swarm import LiveSwarm
from coordinator.supervisor.policy import Policy

POLL_INTERVAL_S = 5.0
MAX_REPORTED_KINDS = 100
"""Further kinds are not reported: a writer that invents so many would flood the alerts."""

MAX_SUBJECTS = 10_000
"""With more of them the server is not asked for all: somebody has invented them, and the answer would hold it up."""

OTHERS = "others"
PROXY = "proxy"
"""The fault proxy: a role with a key of its own whose name is not reserved."""

log = structlog.get_logger("signalmesh.watchdog")


class UnknownMessageMonitor:
    """Alerts once for each unknown kind of message in the stream, during the life of this process.

    The stream accepts any subject, but no agent reads these. It polls the stream's counts by subject: receiving every
    message would cost far more.
    """

    def __init__(self, bus: NatsBus, reports: EventPublisher) -> None:
        self._bus, self._reports = bus, reports
        self._reported: set[str] = set()

    async def run(self) -> None:
        """Check at intervals until cancelled."""
        while True:
            try:
                await self.check()
            except BusError as error:
                log.debug("unknown_kind_check_retried", error=str(error))
            await asyncio.sleep(POLL_INTERVAL_S)

    async def check(self) -> None:
        """Count the stored messages by kind, and alert about new unknown kinds.

        Raises:
            BusError: the bus does not answer.
        """
        subjects = self._bus.subjects
        state = (await self._bus.api(f"STREAM.INFO.{subjects.stream}"))["state"]
        if state.get("num_subjects", 0) > MAX_SUBJECTS:
            return
        found: dict[str, dict[str, int]] = {}
        for subject, count in (await self._bus.subject_counts(f"{subjects.ns}.>")).items():
            kind = subject.split(".")[1]
            if kind not in STORED_KINDS:  # the agents that read a known kind report its malformed subjects
                found.setdefault(kind, {})[subject] = count
        for kind, counts in found.items():
            if kind in self._reported or len(self._reported) >= MAX_REPORTED_KINDS:
                continue
            self._reported.add(kind)
            example = min(counts)
            self._reports.alert(
                "warning",
                "unknown_message_kind",
                f"the stream has messages of an unknown kind: {sum(counts.values())} under {len(counts)} subjects like "
                f"in.{example}; expected in.{subjects.ns}.KIND.TOPIC.WRITER with a kind of {', '.join(STORED_KINDS)}",
                kind=kind,
                subject=example,
                messages=sum(counts.values()),
            )


class RefusedHeartbeats:
    """Alerts about heartbeats that are not believed: of each name in their subjects at once, then once a minute."""

    def __init__(self, policy: Policy, reports: EventPublisher) -> None:
        self._policy, self._reports = policy, reports
        self._counts: AttemptCounts[tuple[str, bool]] = AttemptCounts()
        self._problems: dict[tuple[str, bool], str] = {}
        """Why the newest one was refused."""

    def add(self, name: str, problem: str, *, as_host: bool) -> None:
        """Count a heartbeat under the subject of `name`; `as_host`: it says to be a host's."""
        self._problems[self._counts.add((name, as_host), (OTHERS, as_host))] = problem
        self.check()

    def check(self) -> None:
        """Alert about what has been refused since the last alert about it. Call it about once a second."""
        for (name, as_host), count in self._counts.due():
            code = "heartbeat_refused"
            if as_host:
                code = "host_refused"
            heartbeats = "a heartbeat" if count == 1 else f"{count} heartbeats"
            self._reports.alert(
                "warning",
                code,
                f"refused {heartbeats} of {name}, the last one because: {self._problems[name, as_host]}; "
                f"find out what runs with the key of {name}",
                agent=None if name == OTHERS else name,
                who=self._identity(name),
                count=count,
            )

    def _identity(self, name: str) -> str:
        """Whose key may publish under this name."""
        if (agent := self._policy.agents.get(name)) is not None:
            return f"{'voter' if agent.phase == 'external' else 'agent'}-{name}"
        if name in self._policy.hosts:
            return f"sandbox-{name}"
        if name == STANDBY:
            return WATCHDOG
        return name if name in (OTHERS, PROXY, *RESERVED_NAMES) else f"voter-{name}"


class HostCheck:
    """Tells the heartbeat of a sandbox's host from that of an agent or voter that says to be one.

    The server binds a name to its key, and no name is that of a host and of an agent or voter. A host receives the keys
    of the agents that it is to start.
    """

    def __init__(self, swarm: LiveSwarm, policy: Policy, refused: RefusedHeartbeats, *, keyed: bool) -> None:
        """`keyed`: the swarm has keys, so that a host can be only that of one of its sandboxes."""
        self._swarm, self._policy, self._refused, self._keyed = swarm, policy, refused, keyed

    def __call__(self, heartbeat: Heartbeat) -> bool:
        """Whether this heartbeat of the role sandbox can be that of a host; if not, it is counted as refused."""
        name = heartbeat.agent
        sandboxes = {*self._swarm.changes.removed_sandboxes, *(one.name for one in self._swarm.config.sandboxes)}
        known = not self._keyed or name in self._policy.hosts or (heartbeat.group or name) in sandboxes
        if known and name not in self._policy.agents:
            return True
        self._refused.add(name, "it says to be the host of a sandbox", as_host=True)
        return False
