"""The checks of an audit over the stored messages in stream order: pure, and constant memory per agent.

`Checks.take` gets one message after another, from the live stream or a mirror's file; `finish` compares the snapshots
and registry records, which were read before the stream, with them. Everything is checked up to the end that the stream
had at the start of the audit, so later messages of a running swarm are no problem.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import Any

from bus.durable.registry import Record
from bus.durable.snapshots import Snapshot
from bus.durable.stream_scan import is_kept
from bus.errors import MessageError
from bus.interface import StoredMessage
from bus.messages import Alert, Decision, Lifecycle, MarketData, Message, VotingConfig, check_lifetime, decode
from bus.messages import headers as h
from bus.messages.subjects import AGENT_KINDS, Address, Subjects
from coordinator.audit.agent_checks import AgentChecks
from coordinator.audit.models import AgentAudit, Findings, Hole, SnapshotAudit, StreamAudit
from coordinator.audit.round_checks import RoundChecker
from coordinator.supervisor.config_publisher import changes_in

MAX_HOLES = 1000


class Checks:
    """One pass over a stream, from `first` to `last`."""

    def __init__(
        self,
        subjects: Subjects,
        source: str,
        first: int,
        last: int,
        snapshots: Mapping[str, Snapshot] | None = None,
        records: Mapping[str, Record] | None = None,
        findings: Findings | None = None,
        gone: Sequence[tuple[int, int]] | None = None,
        gone_by: str = "retention",
    ) -> None:
        """`gone` are the ranges that a file lists as missing, in order and apart, for the reason `gone_by`; None for a
        stream, where retention may have removed the oldest.
        """
        self.findings = findings or Findings()
        self._gone, self._gone_by = gone, gone_by
        self.stream = StreamAudit(source=source, first=first, last=last)
        self.rounds = RoundChecker(self.findings)
        self._subjects = subjects
        self._snapshots, self._records = snapshots or {}, records or {}
        self._agents: dict[str, AgentChecks] = {}
        self._next = first
        self._open: list[Hole] = []
        """Those without an explanation yet."""
        self._gone_count = self._gone_last = 0
        """Count of messages in holes that `gone` or retention explains, and the last of them."""
        self._gap_end = 0
        if first > 1:
            self._lost_until(first - 1)
        for name in sorted({*self._snapshots, *self._records}):
            self._agent(name)

    def _lost_until(self, last: int) -> None:
        self._gap_end = last
        self.rounds.forget()

    def _agent(self, name: str) -> AgentChecks:
        found = self._agents.get(name)
        if found is None:
            found = AgentChecks(
                name,
                self.findings,
                self._snapshots.get(name),
                self._records.get(name),
                outlives_stream=self._gone is not None,
            )
            self._agents[name] = found
        return found

    def take(self, stored: StoredMessage) -> None:
        """Check the next message of the stream."""
        self.stream.messages += 1
        self._check_order(stored)
        try:
            address = self._subjects.parse(stored.subject)
        except MessageError as error:
            self.findings.poison_message(stored.sequence, stored.subject, error.problem)
            return
        message: Message | None = None
        try:
            check_lifetime(address, stored.subject, stored.headers)
            message = decode(address, stored.subject, stored.data)
        except MessageError as error:
            self.findings.poison_message(stored.sequence, stored.subject, error.problem)
        self._check_writer(address, stored, message)
        if isinstance(message, MarketData):
            self.rounds.tick(stored, message)
        elif isinstance(message, Decision):
            if h.OUTPUT in stored.headers:
                self.rounds.decision(address.agent, stored, message)
        elif isinstance(message, Lifecycle):
            self._on_lifecycle(address, message)
        elif isinstance(message, VotingConfig):
            self.rounds.changed(changes_in(message))
        elif isinstance(message, Alert):
            self.stream.alerts[message.code] = self.stream.alerts.get(message.code, 0) + 1

    def damaged(self, sequence: int, subject: str) -> None:
        """The row of the next message does not match its checksum."""
        self.findings.problem(
            "mirror",
            f"the row of message {sequence} under {subject} does not match its checksum: the file was changed",
            subject=subject,
            sequences=[sequence],
            expected="an intact row",
            found="a changed one",
        )
        if sequence != self._next:
            self._missing(self._next, sequence - 1)
        self._next = sequence + 1
        self._lost_until(sequence)

    def _check_order(self, stored: StoredMessage) -> None:
        sequence, stream = stored.sequence, self.stream
        if sequence != self._next:
            self._missing(self._next, sequence - 1)
        self._next = sequence + 1
        if stream.kept_from is None and not is_kept(stored.headers):
            stream.kept_from = sequence

    def _missing(self, first: int, last: int) -> None:
        """Messages `first` to `last` are missing: one hole, or several if the file lists a part of them."""
        if self._gone is None:
            self._hole(first, last, explained=self.stream.kept_from is None)
            return
        at = bisect.bisect_left(self._gone, first, key=lambda gap: gap[1])
        while first <= last and at < len(self._gone) and self._gone[at][0] <= last:
            low, high = self._gone[at]
            if first < low:
                self._hole(first, low - 1, explained=False)
            self._hole(max(first, low), min(last, high), explained=True)
            first, at = high + 1, at + 1
        if first <= last:
            self._hole(first, last, explained=False)

    def _hole(self, first: int, last: int, *, explained: bool) -> None:
        hole = Hole(first=first, last=last, explained=explained)
        if len(self.stream.holes) < MAX_HOLES:
            self.stream.holes.append(hole)
        if explained:
            self._gone_count += last - first + 1
            self._gone_last = last
            self._lost_until(last)
        else:
            self._open.append(hole)

    def _on_rebuilt(self, detail: Mapping[str, Any]) -> None:
        """Holes that the event of a restore explains: unused sequences, and damaged rows."""
        left_out, free_from = [], detail.get("missing_from")
        for name in ("damaged", "foreign"):
            sequences = detail.get(name)
            left_out += sequences if isinstance(sequences, list) else []
        for hole in list(self._open):
            if hole.first == free_from:
                what = f"{hole.first} to {hole.last} were left unused: messages from {hole.first} on may be lost"
            elif hole.last - hole.first < len(left_out) and set(range(hole.first, hole.last + 1)) <= set(left_out):
                what = f"{hole.first} to {hole.last} were damaged in the mirror's file, or none of this swarm's"
            else:
                continue
            hole.explained = True
            self._open.remove(hole)
            self.findings.note(f"the stream was restored from the mirror: messages {what}")

    def _report_holes(self) -> None:
        stored = "older ones are stored" if self._gone is None else "no gap that the file lists covers them"
        for at, hole in enumerate(self._open):  # first: other problems follow from them
            one = hole.first == hole.last
            what = f"message {hole.first} is" if one else f"messages {hole.first} to {hole.last} are"
            self.findings.problem(
                "holes",
                f"{what} missing, though {stored}",
                sequences=[hole.first, hole.last],
                expected=f"{hole.last - hole.first + 1} messages",
                found="none",
                at=at,
            )

    def _check_writer(self, address: Address, stored: StoredMessage, message: Message | None) -> None:
        if address.kind == "epoch":
            self._agent(address.agent).on_claim(stored, message, self._gap_end)
        elif h.OUTPUT in stored.headers:
            self._agent(address.agent).on_output(stored, self._gap_end)
        elif h.EPOCH in stored.headers:
            self._agent(address.agent).check_epoch(stored, self._gap_end)
        elif address.kind in AGENT_KINDS:
            counts = self.stream.unnumbered
            counts[address.agent] = counts.get(address.agent, 0) + 1
            if address.agent in self._agents and self._agents[address.agent].claimed:
                self.findings.problem(
                    "outputs",
                    f"{address.agent}: message {stored.sequence} under {stored.subject} has no output number: another "
                    "writer has published in its name",
                    agent=address.agent,
                    subject=stored.subject,
                    sequences=[stored.sequence],
                    expected=h.OUTPUT,
                    found="none",
                )

    def _on_lifecycle(self, address: Address, message: Lifecycle) -> None:
        if message.event == "rebuilt":
            self._on_rebuilt(message.detail)
        sequence = message.detail.get("sequence")
        if message.event == "skipped" and address.agent == message.agent and isinstance(sequence, int):
            self._agent(message.agent).on_skipped(sequence)
            self.rounds.skipped(message.agent, sequence)

    # -- at the end

    def finish(self) -> tuple[dict[str, AgentAudit], dict[str, SnapshotAudit]]:
        """The results for each agent and each snapshot."""
        stream = self.stream
        if self._next <= stream.last:
            self._missing(self._next, stream.last)
        self._report_holes()
        self.rounds.finish()
        agents, snapshots = {}, {}
        for name, checks in sorted(self._agents.items()):
            if (snapshot := checks.finish(stream.last, self._gap_end)) is not None:
                snapshots[name] = snapshot
            if checks.audit.outputs or snapshot is not None:
                agents[name] = checks.audit
        self._note()
        return agents, snapshots

    def _note(self) -> None:
        stream, note = self.stream, self.findings.note
        if stream.first > 1:
            note(f"it starts at message {stream.first}: earlier messages are no longer stored, and unchecked")
        if self._gone_count:
            what = f"{self._gone_count} messages are missing ({self._gone_by}), the last of them {self._gone_last}"
            note(f"{what}: they are unchecked")
        for name, count in sorted(stream.unnumbered.items()):
            note(f"{name}: {count} events without a number, so a missing one cannot be detected")
        for code in ("replay_diverged", "output_gap", "retention_gap"):
            if code in stream.alerts:
                note(f"{stream.alerts[code]} alerts {code} are stored")
