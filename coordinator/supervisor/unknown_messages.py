"""Alerts about messages of unknown kinds: the stream accepts any subject, but no agent reads these.

It polls the stream's counts by subject: receiving every message would cost far more.
"""

from __future__ import annotations

import asyncio

import structlog

from bus.durable.events import EventPublisher
from bus.errors import BusError
from bus.messages.subjects import STORED_KINDS
from bus.nats.bus import NatsBus

POLL_INTERVAL_S = 5.0
MAX_REPORTED_KINDS = 100
"""Further kinds are not reported: a writer that invents so many would flood the alerts."""

log = structlog.get_logger("signalmesh.watchdog")


class UnknownMessageMonitor:
    """Alerts once for each unknown kind of message in the stream, during the life of this process."""

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
