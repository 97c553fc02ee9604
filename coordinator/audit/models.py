"""The types of `audit --json`, and the collector that bounds the number of findings."""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_PROBLEMS = 1000
"""Problems that are kept in full; `problems_total` counts the rest as well."""
MAX_EXAMPLES = 100
"""Poison messages that are kept in full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A failed check. `check` is one of: agents, causes, claims, fence, gaps, holes, ids, outputs, mirror,
    registry, rounds, skips, snapshots. `sequences` are the stream sequences concerned; of a hole, or of a gap in a
    mirror's list, its first and last.
    """

    check: str
    agent: str | None
    subject: str | None
    sequences: list[int]
    expected: str
    found: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Poison:
    """A stored message that no reader can decode; all skip it, so it is no failure of the swarm."""

    sequence: int
    subject: str
    problem: str


@dataclass(slots=True, kw_only=True)
class AgentAudit:
    """One agent's outputs. `gaps` and `duplicated` count missing and repeated numbers; `first` and `last` are numbers.

    `claims` are the stored epoch claims; `skipped` the inputs that it has recorded as skipped after a handler failed.
    """

    outputs: int = 0
    gaps: int = 0
    duplicated: int = 0
    first: int | None = None
    last: int | None = None
    claims: int = 0
    skipped: int = 0


@dataclass(slots=True, kw_only=True)
class SnapshotAudit:
    """An agent's snapshot, compared with the stream. `implied` counts the outputs that answer inputs up to its cursor;
    None if the stream does not show it.
    """

    epoch: int
    cursor: int
    outputs: int
    implied: int | None = None
    ok: bool = True


@dataclass(slots=True, kw_only=True)
class MirrorAudit:
    """The mirror compared with the stream, up to the mirror's `cursor`. `file` is None if there was none.

    `missing` and `differing` count the stream's messages; `damaged` rows do not match their checksum; `older` rows
    are of messages that the stream no longer holds; `unmirrored` ones were stored before the mirror started, or its
    settings have removed them.
    """

    file: str | None = None
    cursor: int = 0
    compared: int = 0
    missing: int = 0
    differing: int = 0
    damaged: int = 0
    older: int = 0
    unmirrored: int = 0


@dataclass(slots=True, kw_only=True)
class Hole:
    """Sequences `first` to `last` that are not stored. `explained`: retention has removed all older messages as
    well, or the mirror's file or the event of a restore states the reason.
    """

    first: int
    last: int
    explained: bool


@dataclass(slots=True, kw_only=True)
class StreamAudit:
    """What was read. `kept_from`: no message may be missing from here on (retention has removed older ones)."""

    source: str
    first: int
    last: int
    messages: int = 0
    kept_from: int | None = None
    holes: list[Hole] = field(default_factory=list)
    unnumbered: dict[str, int] = field(default_factory=dict)
    """Writer -> events without a number: those of external programs."""
    alerts: dict[str, int] = field(default_factory=dict)
    """Code -> how many."""


@dataclass(slots=True, kw_only=True)
class RoundsAudit:
    """Decisions over all deciders. `waiting` rounds have a tick and no decision yet."""

    decided: int = 0
    waiting: int = 0
    missing: int = 0
    duplicated: int = 0


@dataclass(slots=True, kw_only=True)
class Audit:
    """`audit --json`."""

    ok: bool
    swarm: str
    stream: StreamAudit
    agents: dict[str, AgentAudit]
    rounds: RoundsAudit
    mirror: MirrorAudit
    snapshots: dict[str, SnapshotAudit]
    poison: list[Poison]
    poison_total: int
    problems: list[Problem]
    problems_total: int
    notes: list[str]
    """What could not be checked, and why; notes do not fail an audit."""
    duration_s: float


class Findings:
    """Collects problems, poison and notes."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.problems_total = 0
        self.poison: list[Poison] = []
        self.poison_total = 0
        self.notes: list[str] = []

    def problem(
        self,
        check: str,
        text: str,
        *,
        sequences: list[int],
        expected: object,
        found: object,
        agent: str | None = None,
        subject: str | None = None,
        at: int | None = None,
    ) -> None:
        """Count a problem and keep it among the first MAX_PROBLEMS; inserted at `at`, by default at the end."""
        self.problems_total += 1
        problem = Problem(
            check=check,
            agent=agent,
            subject=subject,
            sequences=sequences,
            expected=str(expected),
            found=str(found),
            text=text,
        )
        self.problems.insert(len(self.problems) if at is None else at, problem)
        del self.problems[MAX_PROBLEMS:]

    def poison_message(self, sequence: int, subject: str, problem: str) -> None:
        self.poison_total += 1
        if len(self.poison) < MAX_EXAMPLES:
            self.poison.append(Poison(sequence=sequence, subject=subject, problem=problem))

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
