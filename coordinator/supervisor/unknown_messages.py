"""Messages of kinds that nobody reads: the stream takes them from anybody, so somebody must say that they are there.

The stream's own counts by subject are asked for, now and then; hearing every message would cost each of them.
"""

from __future__ import annotations

import asyncio

import structlog

from bus.durable.events import EventPublisher
from bus.errors import BusError
from bus.messages.subjects import KEPT_KINDS
from bus.nats.bus import NatsBus

POLL_INTERVAL_S = 5.0
MAX_TOLD = 100
"""Kinds that are told of; who invents more than so many means it."""

log = structlog.get_logger("signalmesh.watchdog")


class UnknownMessageMonitor:
    """Alerts once about each kind of message in the stream that is none of ours, as long as this process lives."""

    def __init__(self, bus: NatsBus, reports: EventPublisher) -> None:
        self._bus, self._reports = bus, reports
        self._told: set[str] = set()

    async def keep(self) -> None:
        """Look now and then, for ever."""
        while True:
            try:
                await self.look()
            except BusError as error:
                log.debug("unknown_kind_check_retried", error=str(error))
            await asyncio.sleep(POLL_INTERVAL_S)

    async def look(self) -> None:
        """Count what is stored, and tell what is new of it.

        Raises:
            BusError: the bus does not answer.
        """
        subjects = self._bus.subjects
        found: dict[str, dict[str, int]] = {}
        for subject, count in (await self._bus.subject_counts(f"{subjects.ns}.>")).items():
            kind = subject.split(".")[1]
            if kind not in KEPT_KINDS:  # a subject of ours that is malformed is poison to those who read its kind
                found.setdefault(kind, {})[subject] = count
        for kind, counts in found.items():
            if kind in self._told or len(self._told) >= MAX_TOLD:
                continue
            self._told.add(kind)
            example = min(counts)
            self._reports.alert(
                "warning",
                "unknown_message_kind",
                f"messages that nobody reads are stored: {sum(counts.values())} under {len(counts)} subjects like "
                f"in.{example}; expected in.{subjects.ns}.KIND.TOPIC.WRITER with a kind of {', '.join(KEPT_KINDS)}",
                kind=kind,
                subject=example,
                messages=sum(counts.values()),
            )
