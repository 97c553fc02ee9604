"""The active VotingConfig: the settings of swarm.toml with the present voters.

Every process that reaches the stream can publish a VotingConfig. Only the watchdog's counts, and the watchdog keeps its
own the newest one under its subject.
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
from coordinator.config.loader import to_config_message
from coordinator.config.settings import ResolvedSwarm

CHECK_S = 1.0
"""Somebody who floods the bus with Configs is answered at most so often."""

log = structlog.get_logger("signalmesh.watchdog")


class ConfigPublisher:
    """Puts Configs of `config` in force and keeps them there. `voters` says who votes at the moment."""

    def __init__(
        self,
        bus: NatsBus,
        config: ResolvedSwarm,
        reports: EventPublisher,
        voters: Callable[[], Mapping[str, float]],
    ) -> None:
        self._bus, self._config, self._reports, self._voters = bus, config, reports, voters
        self._subject = bus.subjects.config(WATCHDOG)
        self._writing = asyncio.Lock()
        self._received = asyncio.Event()
        self._ours: bytes | None = None
        """What we have put in force last."""

    async def put(self) -> None:
        """Put what should be in force there, unless it is already, and the newest VotingConfig of all."""
        async with self._writing:
            wanted = to_config_message(self._config, self._voters(), source=WATCHDOG)
            await self._reports.flush()
            last = await self._bus.last(self._subject)
            if last is not None:
                # Garbage there is replaced, and nothing to tell: whoever reads the stream has reported it.
                present = self._decode(self._subject, last.data)
                foreign = await self._newer_than(last.sequence)
                if present is not None and self._ours is not None and last.data != self._ours:
                    foreign = [self._subject, *foreign]
                if foreign:
                    self._complain(foreign)
                elif present is not None and replace(present, timestamp=wanted.timestamp) == wanted:
                    self._ours = last.data
                    return
            self._reports.config(wanted)
            await self._reports.flush()
            self._ours = encode(wanted)
            log.info("read_config", voters=dict(wanted.voters))

    async def _newer_than(self, sequence: int) -> list[str]:
        """Subjects of other writers whose last VotingConfig is newer than ours."""
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

    def _complain(self, subjects: list[str]) -> None:
        self._reports.alert(
            "warning",
            "config_overridden",
            f"another process has published a VotingConfig ({', '.join(subjects)}); the watchdog publishes that of "
            f"{self._config.file} again. Find out which process it was, and change settings in swarm.toml only",
            subjects=subjects,
        )

    async def keep(self) -> None:
        """Look after every VotingConfig that is heard whether ours is still in force, for ever."""

        async def on_message(received: ReceivedMessage) -> None:
            if received.data != self._ours:
                self._received.set()

        await self._bus.listen(self._bus.subjects.all_of("config"), on_message)
        while True:
            await self._received.wait()
            self._received.clear()
            try:
                await self.put()
            except BusError as error:
                log.debug("config_check_retried", error=str(error))
                self._received.set()
            await asyncio.sleep(CHECK_S)


async def read_config(bus: NatsBus) -> VotingConfig | None:
    """The watchdog's newest VotingConfig; None when it has published none, or something else stands in its place."""
    subject = bus.subjects.config(WATCHDOG)
    stored = await bus.last(subject)
    if stored is not None:
        with contextlib.suppress(MessageError):
            message = decode(bus.subjects.parse(subject), subject, stored.data)
            return message if isinstance(message, VotingConfig) else None
    return None
