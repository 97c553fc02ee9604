"""The active VotingConfig: the settings of swarm.toml with the current voters, and the changes made at run time.

Any process with access to the stream can publish a VotingConfig. Only the watchdog's is used, and the watchdog
publishes it again after another one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace

import structlog

from bus.durable.events import EventPublisher
from bus.errors import BusError, MessageError
from bus.interface import ReceivedMessage
from bus.messages import VotingConfig, decode, encode
from bus.messages.subjects import WATCHDOG
from bus.nats.bus import NatsBus
from coordinator.config.changes import NO_CHANGES, Changes, encode_changes, newer_changes, to_changes
from coordinator.config.live_swarm import LiveSwarm
from coordinator.config.loader import to_config_message
from coordinator.config.settings import ResolvedSwarm

CHECK_S = 1.0
"""Shortest time between two checks, so that a flood of configs does not cause one of publications."""

log = structlog.get_logger("signalmesh.watchdog")


class ConfigPublisher:
    """Publishes the VotingConfig of `swarm` and keeps it active. `voters` returns the current voters of a swarm."""

    def __init__(
        self,
        bus: NatsBus,
        swarm: LiveSwarm,
        reports: EventPublisher,
        voters: Callable[[ResolvedSwarm], Mapping[str, float]],
    ) -> None:
        self._bus, self._swarm, self._reports, self._voters = bus, swarm, reports, voters
        self._subject = bus.subjects.config(WATCHDOG)
        self._writing = asyncio.Lock()
        self._received = asyncio.Event()
        self._published: bytes | None = None
        """The VotingConfig that this process published last, encoded."""

    async def publish(self, *, again: bool = False) -> None:
        """Publish the current VotingConfig, unless it is already the newest one of all writers; `again`: even then."""
        async with self._writing:
            current = self._message(self._swarm.config, self._swarm.changes)
            await self._reports.flush()
            last = await self._bus.last(self._subject)
            if last is not None:
                # A malformed message is replaced without an alert: the agents that read the stream report it.
                present = self._decode(self._subject, last.data)
                from_others = await self._newer_than(last.sequence)
                if present is not None and self._published is not None and last.data != self._published:
                    from_others = [self._subject, *from_others]
                if from_others:
                    self._alert_overridden(from_others)
                elif not again and present is not None and replace(present, timestamp=current.timestamp) == current:
                    self._published = last.data
                    return
            self._reports.config(current)
            await self._reports.flush()
            self._published = encode(current)
            log.info("config_published", voters=dict(current.voters))

    async def commit(self, changes: Changes, config: ResolvedSwarm) -> None:
        """Store these changes, and `config`, the swarm with them; nothing has changed before that, and all after it.

        Raises:
            Fenced: another watchdog leads; whether the changes are stored is known to that one.
        """
        async with self._writing:
            current = self._message(config, changes)
            self._reports.config(current)
            await self._reports.flush()
            self._swarm.take(changes, config)
            self._published = encode(current)
            log.info("config_changed", change=changes.change, revision=changes.revision, voters=dict(current.voters))

    def _message(self, config: ResolvedSwarm, changes: Changes) -> VotingConfig:
        encoded = encode_changes(changes) if changes.revision else None
        return to_config_message(config, self._voters(config), source=WATCHDOG, changes=encoded)

    async def _newer_than(self, sequence: int) -> list[str]:
        """Subjects of other writers with a VotingConfig newer than `sequence`."""
        found = []
        for subject in await self._bus.subject_counts(self._bus.subjects.all_of("config")):
            if subject == self._subject:
                continue
            last = await self._bus.last(subject)
            if last is not None and last.sequence > sequence and self._decode(subject, last.data) is not None:
                found.append(subject)
        return found

    def _decode(self, subject: str, data: bytes) -> VotingConfig | None:
        with contextlib.suppress(MessageError):
            message = decode(self._bus.subjects.parse(subject), subject, data)
            if isinstance(message, VotingConfig):
                return message
        return None

    def _alert_overridden(self, subjects: list[str]) -> None:
        self._reports.alert(
            "warning",
            "config_overridden",
            f"another process published a VotingConfig ({', '.join(subjects)}); the watchdog republishes its own from "
            f"{self._swarm.config.file}. Find that process, and change settings only in swarm.toml",
            subjects=subjects,
        )

    async def run(self) -> None:
        """After each received VotingConfig check that the watchdog's is still active, until cancelled."""

        async def on_message(received: ReceivedMessage) -> None:
            if received.data != self._published:
                self._received.set()

        await self._bus.listen(self._bus.subjects.all_of("config"), on_message)
        while True:
            await self._received.wait()
            self._received.clear()
            try:
                await self.publish()
            except BusError as error:
                log.debug("config_check_retried", error=str(error))
                self._received.set()
            await asyncio.sleep(CHECK_S)


async def read_config(bus: NatsBus) -> VotingConfig | None:
    """The watchdog's newest VotingConfig; None if it has published none, or if the message is malformed."""
    subject = bus.subjects.config(WATCHDOG)
    stored = await bus.last(subject)
    if stored is not None:
        with contextlib.suppress(MessageError):
            message = decode(bus.subjects.parse(subject), subject, stored.data)
            return message if isinstance(message, VotingConfig) else None
    return None


def changes_in(config: VotingConfig | None) -> Changes:
    """The changes that a VotingConfig carries; none if it is not ours."""
    if config is not None and config.source == WATCHDOG:
        with contextlib.suppress(ValueError):
            return to_changes(config.changes)
    return NO_CHANGES


def read_live_swarm(base: ResolvedSwarm, stored: VotingConfig | None, known: Changes) -> LiveSwarm:
    """The swarm of `base` with the newest changes: those that the stream has, or `known` of the state directory.

    Raises:
        ConfigError: the changes do not fit swarm.toml any more.
    """
    return LiveSwarm(base, newer_changes(changes_in(stored), known))
