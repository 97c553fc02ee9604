"""Old claims and an old VotingConfig: the leader renews them before the stream removes them.

A full stream removes its oldest messages, whatever they are; by age alone it removes neither claims nor VotingConfigs.
Without its claim the fence refuses an incarnation, and without a VotingConfig a new reader has no settings. So what has
become old is renewed: the VotingConfig is published again, each agent is drained and started again, one after another,
and the leader ends its term, for a new one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from bus.errors import BusError
from bus.interface import StoredMessage
from bus.messages.subjects import WATCHDOG
from bus.nats.bus import NatsBus
from coordinator.supervisor.config_publisher import ConfigPublisher
from coordinator.supervisor.host_client import HostClient
from coordinator.supervisor.policy import Policy

CHECK_S = 1.0
STEP_S = 0.2
"""The same while an agent is being replaced."""
RETRY_S = 1.0
"""A request to drain is repeated after so many seconds: its answer may have been lost."""
DRAIN_S = 10.0
"""An agent that has not drained after so many seconds is killed."""
READY_S = 10.0
"""How long the next agent waits for the successor of the last one to become ready."""
CLAIM_SHARE = 1 / 2
CONFIG_SHARE = 1 / 16
"""Shares of what the stream keeps, from its end on, beyond which a message is old. A VotingConfig is renewed sooner:
the decisions that are kept from before the first one cannot be explained."""
FULL = 0.9
"""Share of its bytes from which on a stream is about to remove its oldest messages."""

log = structlog.get_logger("signalmesh.watchdog")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSpan:
    """What the stream stores, and whether it is `full`: about to remove its oldest messages."""

    first: int
    last: int
    full: bool = False

    def why_old(self, sequence: int, share: float) -> str | None:
        """Why this message must be renewed, as it is not in that share of what is kept; None: it need not be yet."""
        if sequence < self.first:
            return "is no longer stored"
        if self.full and sequence < self.last - (self.last - self.first) * share:
            return "is in the older part of a stream that is full"
        return None


async def read_span(bus: NatsBus) -> StreamSpan:
    """The present span of the swarm's stream.

    Raises:
        BusError: the bus does not answer.
    """
    info: dict[str, Any] = await bus.api(f"STREAM.INFO.{bus.subjects.stream}")
    config, state = info["config"], info["state"]
    return StreamSpan(
        first=max(1, state["first_seq"]),
        last=state["last_seq"],
        full=0 < config.get("max_bytes", -1) * FULL < state["bytes"],
    )


@dataclass(slots=True)
class _Replacing:
    name: str
    epoch: int
    since: float
    asked_at: float = 0.0


class Renewal:
    """Renews what is old while this process leads. `on_old_term` is called when its own claim is."""

    def __init__(
        self,
        bus: NatsBus,
        term: int,
        policy: Policy,
        hosts: HostClient,
        config_publisher: ConfigPublisher,
        on_old_term: Callable[[], None],
    ) -> None:
        self._bus, self._term, self._policy, self._hosts = bus, term, policy, hosts
        self._config_publisher, self._on_old_term = config_publisher, on_old_term
        self._config: StoredMessage | None = None
        self._replacing: _Replacing | None = None

    async def run(self) -> None:
        """Check and renew, until cancelled."""
        while True:
            try:
                await self.check()
            except BusError as error:
                log.debug("renewal_retried", error=str(error))
            await asyncio.sleep(CHECK_S if self._replacing is None else STEP_S)

    async def check(self) -> None:
        """Renew what has become old, and go on with what is being renewed.

        Raises:
            BusError: the bus does not answer.
        """
        span = await read_span(self._bus)
        if self._term < span.first:
            self._end_term("is no longer stored")  # whatever is published until then is refused
            return
        await self._check_config(span)
        if self._replacing is not None:
            await self._replace(self._replacing)
        if self._replacing is not None:
            return
        if (why := span.why_old(self._term, CLAIM_SHARE)) is not None:
            # An agent that was requested to drain would not be started again by a leader that does not know of it.
            if not self._policy.is_restarting:
                self._end_term(why)
        else:
            await self._choose(span)

    def _end_term(self, why: str) -> None:
        log.info("term_ends", term=self._term, reason=f"its claim {why}")
        self._on_old_term()

    async def _check_config(self, span: StreamSpan) -> None:
        subject = self._bus.subjects.config(WATCHDOG)
        if self._config is None or _is_old(span, self._config):
            self._config = await self._bus.last(subject)
        if self._config is None or _is_old(span, self._config):
            await self._config_publisher.publish(again=True)
            self._config = None

    async def _choose(self, span: StreamSpan) -> None:
        agents = self._policy.agents
        for state in sorted(agents.values(), key=lambda state: state.epoch):
            if state.phase != "running" or state.sandbox not in self._policy.hosts:
                continue
            why = span.why_old(state.epoch, CLAIM_SHARE)
            if why is not None:
                log.info("claim_renewed", of=state.name, epoch=state.epoch, reason=f"its claim {why}")
                self._replacing = _Replacing(state.name, state.epoch, time.monotonic())
                await self._replace(self._replacing)
                return

    async def _replace(self, replacing: _Replacing) -> None:
        """Have the incarnation drain, which saves its state; the policy starts its successor."""
        now = time.monotonic()
        lasted_s = now - replacing.since
        state = self._policy.agents.get(replacing.name)
        if state is None or state.epoch != replacing.epoch or state.phase not in ("starting", "running"):
            if state is None or state.phase in ("running", "quarantined", "drained") or lasted_s > DRAIN_S + READY_S:
                self._replacing = None
            return
        if now - replacing.asked_at < RETRY_S:
            return
        replacing.asked_at = now
        self._policy.restart(replacing.name)
        if lasted_s < DRAIN_S:
            await self._hosts.terminate(state.sandbox, replacing.name, state.pid)
        else:
            await self._hosts.kill(state.sandbox, replacing.name, state.epoch)


def _is_old(span: StreamSpan, stored: StoredMessage) -> bool:
    return span.why_old(stored.sequence, CONFIG_SHARE) is not None
