"""Alerts about what others have stored, as a reader of the stream finds it: of a flood it makes a few."""

from __future__ import annotations

import time
from collections.abc import Callable

from bus.durable.events import EventPublisher
from bus.interface import StoredMessage
from bus.messages import now
from bus.utils.attempt_counts import REPORT_S, AttemptCounts

OTHERS = "other writers"


class RepeatedAlerts:
    """What the process `name` has found in the stream: the first of each writer at once, then once a minute their
    number.
    """

    def __init__(self, name: str, reports: EventPublisher, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._reports = name, reports
        self._counts: AttemptCounts[tuple[str, str]] = AttemptCounts(clock)
        self._newest: dict[tuple[str, str], Callable[[int], None]] = {}
        """What alerts of the number, with the newest message."""

    def poison(self, subject: str, sequence: int, problem: str) -> None:
        """A message that cannot be read. All that read it report it together: by the same ids."""
        writer = subject.rpartition(".")[2]

        def report(count: int, writer: str) -> None:
            last = f"message {sequence} under {subject} was set aside: {problem}"
            once = f"poison:{sequence}"
            if count > 1:
                last = f"{count} more messages of {writer} were set aside; the last one: {last}"
                once = f"poison:{writer}:{now().timestamp() // REPORT_S:.0f}"
            self._reports.alert(
                "warning",
                "poison_message",
                last,
                once=once,
                about=writer if count > 1 else None,
                sequence=sequence,
                subject=subject,
                writer=writer,
                count=count,
            )

        self._add("poison", writer, report)

    def unknown_writer(self, stored: StoredMessage, problem: str) -> None:
        """A message under a subject of this agent that is none of its outputs."""

        def report(count: int, _: str) -> None:
            more = "" if count == 1 else f"{count} more messages under its subjects are none of its outputs; the last: "
            self._reports.alert(
                "warning",
                "output_from_unknown_writer",
                f"agent {self._name}: {more}message {stored.sequence} under {stored.subject} is none of its outputs "
                f"({problem}) and is ignored; find out what else writes to this subject",
                agent=self._name,
                once=f"{self._name}:unknown-writer:{stored.sequence}",
                sequence=stored.sequence,
                count=count,
            )

        self._add("unknown writer", self._name, report)

    def diverged(self, sequence: int) -> None:
        """A replay gave another output than the stored message `sequence`."""

        def report(count: int, _: str) -> None:
            more = "" if count == 1 else f"for {count} more messages, the last of them {sequence}, "
            self._reports.alert(
                "critical",
                "replay_diverged",
                f"agent {self._name}: {more}the replay gave another output than the stored message {sequence}: its "
                "handlers depend on something besides state and event, or its class has changed",
                agent=self._name,
                once=f"{self._name}:diverged:{sequence}",
            )

        self._add("diverged", self._name, report)

    def _add(self, what: str, writer: str, report: Callable[[int, str], None]) -> None:
        known, named = self._counts.add((what, writer), (what, OTHERS))
        self._newest[known, named] = lambda count: report(count, named)
        self.check()

    def check(self) -> None:
        """Alert about what was found since the last alert about it. Call it about once a second."""
        for key, count in self._counts.due():
            self._newest[key](count)
