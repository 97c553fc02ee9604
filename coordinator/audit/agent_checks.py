"""The checks of one agent's messages, one after another (numbers, ids, causes, claims, fence), and of its snapshot and
registry record. Constant memory: only counters and the last values are kept.

`gap_end` is the end of the last range of the stream that is missing for a known reason (0: none is): messages up to it
cannot be checked.
"""

from __future__ import annotations

from operator import itemgetter

from bus.durable.message_ids import is_id, is_substitute
from bus.durable.registry import Record
from bus.durable.snapshots import Snapshot
from bus.interface import StoredMessage
from bus.messages import Epoch, Message
from bus.messages import headers as h
from coordinator.audit.models import AgentAudit, Findings, SnapshotAudit

MAX_SKIPPED = 4096
"""Recorded skips of an agent that are remembered, to compare its causes with them."""
MAX_LATE = 4096
"""Missing outputs that may still come, as their ids were squatted; more are reported as missing at once."""


class AgentChecks:
    """The checks of one agent (or of the watchdog, whose claims are terms)."""

    def __init__(
        self,
        name: str,
        findings: Findings,
        snapshot: Snapshot | None,
        record: Record | None,
        *,
        outlives_stream: bool = False,
    ) -> None:
        """`outlives_stream`: the messages are kept for longer than the stream has kept them."""
        self.name = name
        self._outlives_stream = outlives_stream
        self._anew = 0
        """Claims that were published when the stream had removed those before them."""
        self.audit = AgentAudit()
        self._findings = findings
        self._snapshot, self._record = snapshot, record
        self._claim = 0
        self._cause = 0
        self._produces = False
        self._skipped: set[int] = set()
        self._implied: int | None = None
        self._implied_at = 0
        self._output_at = 0
        self._missing: dict[int, StoredMessage] = {}
        """Number -> the output before which it is missing."""
        self._counted: int | None = None
        self._record_claim: str | None = None

    @property
    def claimed(self) -> bool:
        return self._claim > 0

    def _problem(self, check: str, stored: StoredMessage, expected: object, found: object, text: str) -> None:
        self._findings.problem(
            check,
            f"{self.name}: message {stored.sequence} under {stored.subject}: {text}",
            agent=self.name,
            subject=stored.subject,
            sequences=[stored.sequence],
            expected=expected,
            found=found,
        )

    # -- message by message

    def on_claim(self, stored: StoredMessage, message: Message | None, gap_end: int) -> None:
        """A message on the agent's epoch subject is a claim whatever its content: the server checks only subjects."""
        expected = h.number(stored.headers, h.EXPECTED_LAST_SUBJECT_SEQUENCE)
        if expected == 0 and self._claim and self._outlives_stream:
            self._anew += 1
        elif expected is not None and expected != self._claim and not self._claim < expected <= gap_end:
            text = f"it follows claim {self._claim or 'none'}, but was published to follow {expected or 'none'}"
            self._problem("claims", stored, self._claim, expected, text)
        self._claim = stored.sequence
        self.audit.claims += 1
        if self._record is not None and self._record.epoch == stored.sequence and isinstance(message, Epoch):
            self._record_claim = message.claim

    def check_epoch(self, stored: StoredMessage, gap_end: int) -> None:
        """A message must carry the epoch of the newest claim before it in the stream."""
        epoch = h.number(stored.headers, h.EPOCH)
        if epoch is None:
            self._problem("fence", stored, self._claim, "none", f"it carries no epoch ({h.EPOCH})")
        elif epoch != self._claim and not self._claim < epoch <= gap_end:
            if epoch < self._claim:
                text = f"stored under epoch {epoch} although {self._claim} was claimed before: the fence did not hold"
            else:
                text = f"stored under epoch {epoch}, which was never claimed (the last claim is {self._claim})"
            self._problem("fence", stored, self._claim, epoch, text)
        elif h.number(stored.headers, h.EXPECTED_LAST_SUBJECT_SEQUENCE) != epoch:
            found = stored.headers.get(h.EXPECTED_LAST_SUBJECT_SEQUENCE, "none")
            text = f"it carries no fence for its epoch {epoch} ({h.EXPECTED_LAST_SUBJECT_SEQUENCE}: {found})"
            self._problem("fence", stored, epoch, found, text)

    def on_output(self, stored: StoredMessage, gap_end: int) -> None:
        """A numbered output."""
        audit = self.audit
        audit.outputs += 1
        number = h.number(stored.headers, h.OUTPUT)
        self.check_epoch(stored, gap_end)
        if number is None:
            found = stored.headers[h.OUTPUT]
            self._problem("outputs", stored, (audit.last or 0) + 1, found, f"{h.OUTPUT} is no number: {found!r}")
            return
        wanted_id, msg_id = f"{self.name}:{number}", stored.headers.get(h.MSG_ID, "none")
        if number in self._missing and is_substitute(msg_id, wanted_id):
            del self._missing[number]
            self._on_cause(stored, number, is_late=True)
            return
        if not is_id(msg_id, wanted_id):
            self._problem("ids", stored, wanted_id, msg_id, f"output {number} has the id {msg_id}, not {wanted_id}")
        if audit.last is None:
            audit.first = number
        expected = (audit.last or 0) + 1
        if self._output_at < gap_end:
            expected = max(expected, number)
        if number < expected:
            audit.duplicated += 1
            text = f"output {number} is repeated or out of order: {expected} was next"
            self._problem("outputs", stored, expected, number, text)
            return
        if number > expected:
            if number - expected + len(self._missing) > MAX_LATE:
                self._report_missing(stored, expected, number)
            else:
                self._missing |= dict.fromkeys(range(expected, number), stored)
        audit.last = number
        self._output_at = stored.sequence
        self._on_cause(stored, number)

    def _report_missing(self, before: StoredMessage, first: int, number: int) -> None:
        self.audit.gaps += number - first
        missing = f"output {first} is" if number == first + 1 else f"outputs {first} to {number - 1} are"
        self._problem("outputs", before, first, number, f"{missing} missing before output {number}")

    def _report_all_missing(self) -> None:
        """What did not come later either, a range at a time."""
        first, until = 0, 0
        at: StoredMessage | None = None
        for number, before in sorted(self._missing.items(), key=itemgetter(0)):
            if at is not None and (number != until or before is not at):
                self._report_missing(at, first, until)
                at = None
            if at is None:
                first, at = number, before
            until = number + 1
        if at is not None:
            self._report_missing(at, first, until)

    def _on_cause(self, stored: StoredMessage, number: int, *, is_late: bool = False) -> None:
        snapshot = self._snapshot
        if snapshot is not None and stored.sequence <= snapshot.output_sequence:
            self._counted = max(number, self._counted or 0)
        if h.CAUSE not in stored.headers:
            self._produces = True
            return
        cause = h.number(stored.headers, h.CAUSE)
        if cause is None or cause >= stored.sequence:
            found = stored.headers[h.CAUSE]
            text = f"output {number} answers message {found}, expected an earlier one"
            self._problem("causes", stored, f"below {stored.sequence}", found, text)
            return
        if cause < self._cause and not is_late:
            text = f"output {number} answers message {cause}, but an earlier one has answered {self._cause}"
            self._problem("causes", stored, f"at least {self._cause}", cause, text)
        if cause in self._skipped:
            text = f"output {number} answers message {cause}, which is recorded as skipped"
            self._problem("skips", stored, "no answer", cause, text)
        if cause > self._cause and self._skipped:
            self._skipped = {sequence for sequence in self._skipped if sequence >= cause}
        self._cause = max(cause, self._cause)
        if snapshot is not None and cause <= snapshot.cursor:
            self._implied, self._implied_at = max(number, self._implied or 0), stored.sequence

    def on_skipped(self, sequence: int) -> None:
        """The agent has reported that it skips the input at `sequence`."""
        self.audit.skipped += 1
        if len(self._skipped) < MAX_SKIPPED:
            self._skipped.add(sequence)

    # -- at the end

    def finish(self, last: int, gap_end: int) -> SnapshotAudit | None:
        """Compare the snapshot and the registry record, which were read before the stream, with the stream."""
        self._report_all_missing()
        if self._anew:
            self._findings.note(f"{self.name}: {self._anew} claims follow one that the stream had removed by then")
        if self._record is not None:
            self._check_record(self._record, gap_end)
        snapshot = self._snapshot
        if snapshot is None:
            return None
        audit = SnapshotAudit(
            epoch=snapshot.epoch, cursor=snapshot.cursor, outputs=snapshot.outputs, implied=self._implied
        )
        if self._implied_at < gap_end:
            audit.implied = None
        elif self._implied is None and not self._produces:
            audit.implied = 0
        before = self._findings.problems_total
        self._check_snapshot(snapshot, audit.implied, last, gap_end)
        audit.ok = self._findings.problems_total == before
        return audit

    def _check_snapshot(self, snapshot: Snapshot, implied: int | None, last: int, gap_end: int) -> None:
        def wrong(expected: object, found: object, text: str, *sequences: int) -> None:
            self._findings.problem(
                "snapshots",
                f"{self.name}: its snapshot {text}",
                agent=self.name,
                sequences=list(sequences),
                expected=expected,
                found=found,
            )

        if snapshot.epoch > max(self._claim, gap_end):
            text = f"is of epoch {snapshot.epoch}, but its last claim is {self._claim or 'none'}"
            wrong(f"at most {self._claim}", snapshot.epoch, text, snapshot.epoch)
        if snapshot.cursor > last:
            text = f"has read up to message {snapshot.cursor}, but the stream ends at {last}"
            wrong(f"at most {last}", snapshot.cursor, text, snapshot.cursor)
        stored = self.audit.last
        if stored is None and gap_end:
            self._findings.note(f"{self.name}: none of its outputs are kept, so its snapshot's count is unchecked")
            return
        if snapshot.outputs > (stored or 0):
            text = f"counts {snapshot.outputs} outputs, but {stored or 0} are stored"
            wrong(f"at most {stored or 0}", snapshot.outputs, text)
        elif self._counted is not None and self._counted > snapshot.outputs:
            text = f"counts {snapshot.outputs} outputs up to message {snapshot.output_sequence}, the stream has more"
            wrong(self._counted, snapshot.outputs, text, snapshot.output_sequence)
        # A source's own events have no cause but are counted: its count may be higher.
        elif implied is not None and (
            implied > snapshot.outputs or (implied < snapshot.outputs and not self._produces)
        ):
            text = f"counts {snapshot.outputs} outputs at message {snapshot.cursor}, the stream implies {implied}"
            wrong(implied, snapshot.outputs, text, snapshot.cursor)

    def _check_record(self, record: Record, gap_end: int) -> None:
        claim = self._claim
        if record.epoch > max(claim, gap_end):
            self._findings.problem(
                "registry",
                f"{self.name}: its registry record is of epoch {record.epoch}, but its last claim is {claim or 'none'}",
                agent=self.name,
                sequences=[record.epoch],
                expected=f"at most {claim}",
                found=record.epoch,
            )
        elif self._record_claim is not None and self._record_claim != record.agent_id:
            self._findings.problem(
                "registry",
                f"{self.name}: its registry record has {record.agent_id}, but claim {record.epoch} is of "
                f"{self._record_claim}",
                agent=self.name,
                sequences=[record.epoch],
                expected=self._record_claim,
                found=record.agent_id,
            )
