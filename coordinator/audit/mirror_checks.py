"""The mirror in an audit: its rows compared with the stream's messages, or its file instead of the stream."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bus.interface import StoredMessage
from bus.mirror.reader import Mirrored, MirroredValue, MirrorFile
from bus.mirror.schema import MirrorGap
from coordinator.audit.models import Findings, MirrorAudit

OWN_REASONS = frozenset({"before", "pruned"})
"""Reasons of a gap in the file that are no fault: it started later, or its settings removed the rows."""

REASONS = {
    "before": "stored before the mirror started",
    "retention": "retention",
    "pruned": "the mirror's own settings",
    "lost": "left unused after the bus was lost",
}
"""Reason of a gap -> its text."""


def why_gone(file: MirrorFile) -> str:
    """All reasons for which messages are not in the file, as recorded there."""
    return ", ".join(sorted({REASONS.get(gap.reason, gap.reason) for gap in file.gaps()}))


def stored_of(mirrored: Mirrored) -> StoredMessage:
    """The message of a row."""
    row = mirrored.row
    return StoredMessage(row.subject, row.sequence, row.payload, row.headers, stored_ns=row.stored_ns)


class MirrorComparison:
    """Compares the stream with a mirror, message by message, up to the mirror's cursor at the start of the audit."""

    def __init__(self, file: MirrorFile, findings: Findings) -> None:
        self.audit = MirrorAudit(file=str(file.path), cursor=file.cursor())
        self._findings = findings
        self._file = file
        self._own = self._own_gaps()
        self._rows: Iterator[Mirrored] = file.messages(last=self.audit.cursor)
        self._row = next(self._rows, None)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def take(self, stored: StoredMessage) -> None:
        """Compare the next message of the stream."""
        audit, sequence = self.audit, stored.sequence
        if sequence > audit.cursor:
            return
        while self._row is not None and self._row.row.sequence < sequence:
            audit.older += 1
            self._check_intact(self._row)
            self._row = next(self._rows, None)
        found = self._row
        if found is None or found.row.sequence != sequence:
            if self._is_own(sequence):
                audit.unmirrored += 1
                return
            audit.missing += 1
            text = f"message {sequence} under {stored.subject} is not in the mirror, which is at {audit.cursor}"
            self._problem(stored, "a row", "none", text)
            return
        audit.compared += 1
        self._row = next(self._rows, None)
        if self._check_intact(found):
            self._compare(stored, stored_of(found))

    def _own_gaps(self) -> list[tuple[int, int]]:
        return [(gap.first, gap.last) for gap in self._file.gaps() if gap.reason in OWN_REASONS]

    def _is_own(self, sequence: int) -> bool:
        """Whether the mirror has left out this message by its own settings, perhaps during this audit."""
        if not any(first <= sequence <= last for first, last in self._own):
            self._own = self._own_gaps()
        return any(first <= sequence <= last for first, last in self._own)

    def _check_intact(self, found: Mirrored) -> bool:
        if not found.intact:
            self.audit.damaged += 1
            text = f"the row of message {found.row.sequence} does not match its checksum: the file was changed"
            self._problem(stored_of(found), "an intact row", "a changed one", text)
        return found.intact

    def _compare(self, stored: StoredMessage, row: StoredMessage) -> None:
        for what in ("subject", "data", "headers"):
            expected, found = getattr(stored, what), getattr(row, what)
            if what == "headers":
                expected, found = dict(expected), dict(found)
            if expected != found:
                self.audit.differing += 1
                text = f"message {stored.sequence} under {stored.subject} has other {what} in the mirror"
                self._problem(stored, expected, found, text)
                return

    def _problem(self, stored: StoredMessage, expected: object, found: object, text: str) -> None:
        shown = [item.decode(errors="replace") if isinstance(item, bytes) else item for item in (expected, found)]
        self._findings.problem(
            "mirror",
            text,
            agent=stored.subject.rpartition(".")[2] or None,
            subject=stored.subject,
            sequences=[stored.sequence],
            expected=shown[0],
            found=shown[1],
        )


def values_at(file: MirrorFile, bucket: str, before_ns: int) -> dict[str, bytes]:
    """The values of a bucket when the last message of the file was stored (`before_ns`): key -> value.

    A snapshot is written after the outputs that it counts are stored, so all of them are in the file.
    """
    found: dict[str, bytes] = {}
    for key, newest in file.values(bucket).items():
        value: MirroredValue | None = newest
        if newest.row.stored_ns > before_ns:
            older = (item for item in reversed(file.value_history(bucket, key)) if item.row.stored_ns <= before_ns)
            value = next(older, None)
        if value is not None and value.row.operation == "PUT":
            found[key] = value.row.value
    return found


def check_gaps(file: MirrorFile, findings: Findings) -> None:
    """The file's list of gaps against its rows: each is in the mirrored range, missing, and listed once.

    Whether every missing message is in the list is found by reading all rows (Checks).
    """
    cursor, before = file.cursor(), None
    for gap in file.gaps():
        listed = f"the file lists messages {gap.first} to {gap.last} as missing ({REASONS.get(gap.reason, gap.reason)})"
        if not 1 <= gap.first <= gap.last <= cursor:
            text = f"{listed}, but it mirrors messages 1 to {cursor}"
            _gap_problem(findings, gap, text, f"a range within 1 to {cursor}", f"{gap.first} to {gap.last}")
        count, first = file.held(gap.first, gap.last)
        if count:
            text = f"{listed}, but holds {count} of them, from message {first} on"
            _gap_problem(findings, gap, text, "no row", f"{count} rows from message {first} on")
        if before is not None and gap.first <= before.last and not _left_by_pruning(before, gap):
            text = f"{listed}, though messages {before.first} to {before.last} are listed as well"
            _gap_problem(findings, gap, text, "each message listed once", f"{before.first} to {before.last} too")
        if before is None or gap.last > before.last:
            before = gap


def _left_by_pruning(one: MirrorGap, other: MirrorGap) -> bool:
    """Whether one was recorded as removed over the other, which was there before: release 0.1.0 left both."""
    newer, older = (one, other) if one.recorded_ns > other.recorded_ns else (other, one)
    return newer.reason == "pruned" and older.reason != "pruned"


def _gap_problem(findings: Findings, gap: MirrorGap, text: str, expected: str, found: str) -> None:
    findings.problem("gaps", text, sequences=[gap.first, gap.last], expected=expected, found=found)


def check_file(file: MirrorFile, findings: Findings) -> None:
    """SQLite's own check of the file, its list of gaps, and values of buckets that do not match their checksum."""
    check_gaps(file, findings)
    for problem in file.problems():
        text = f"the file's structure is broken: {problem}"
        findings.problem("mirror", text, sequences=[], expected="ok", found=problem)
    for bucket in (file.subjects.state_bucket, file.subjects.registry_bucket, file.subjects.memory_bucket):
        for key, value in file.values(bucket).items():
            if not value.intact:
                text = f"revision {value.row.revision} of {key} in {bucket} does not match its checksum"
                findings.problem(
                    "mirror", text, sequences=[value.row.revision], expected="an intact row", found="a changed one"
                )


def open_comparison(path: Path, swarm: str, created: str, findings: Findings) -> MirrorComparison | None:
    """The mirror in `path`, if it is of this swarm's stream (created at `created`); else None, and a note."""
    if not path.is_file():
        return None
    file = MirrorFile(path)
    file.freeze()
    incarnations = file.incarnations()
    if file.swarm != swarm or not incarnations or incarnations[-1].created != created:
        file.close()
        findings.note(f"{path} mirrors another stream (swarm {file.swarm!r}): it is not compared")
        return None
    check_file(file, findings)
    comparison = MirrorComparison(file, findings)
    file.thaw()
    return comparison
