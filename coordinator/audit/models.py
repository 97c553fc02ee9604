"""What an audit finds: the types of `audit --json`, and the collector that keeps a flood of findings bounded."""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_PROBLEMS = 1000
"""Problems that are kept in full; `problems_total` counts the rest as well."""
MAX_EXAMPLES = 100
"""Poison messages that are kept in full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something that does not hold. `check` is one of: agents, causes, claims, fence, holes, ids, outputs, mirror,
    registry, rounds, skips, snapshots. `sequences` are the stream sequences that it is about; of a hole its first and
    last.
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
    """A stored message that no reader can read: set aside by all of them, so no failure of the swarm's."""

    sequence: int
    subject: str
    problem: str


@dataclass(slots=True, kw_only=True)
class AgentAudit:
    """One agent's outputs. `gaps` and `doubled` count missing and repeated numbers; `first` and `last` are numbers.

    `claims` are the incarnations whose claim is stored; `skipped` the inputs that its handlers raised on, as recorded.
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
    """An agent's snapshot, beside what the stream says of it. `implied` are the outputs that answer inputs up to its
    cursor; None where the stream cannot say.
    """

    epoch: int
    cursor: int
    outputs: int
    implied: int | None = None
    ok: bool = True


@dataclass(slots=True, kw_only=True)
class MirrorAudit:
    """The mirror beside the stream, up to the mirror's `cursor`. `file` is None where there was none to look at.

    `missing` and `differing` count the stream's messages; `damaged` rows do not fit their own checksum; `older` rows
    are of messages that the stream does not hold (any more); `unmirrored` ones were stored before the mirror began, or
    its own settings have removed them.
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
    """Sequences `first` to `last` that are not stored. `explained`: all that is older and expires is gone as well
    (retention), the mirror's file says why it does not have them, or the report of a rebuild does.
    """

    first: int
    last: int
    explained: bool


@dataclass(slots=True, kw_only=True)
class StreamAudit:
    """What was read. `kept_from`: from here on nothing may be missing (below it only what never expires is kept)."""

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
    """What could not be checked, and why; nothing of it makes an audit fail."""
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
        """Count a problem and keep it, if there is room; in place `at` of those that are kept, by default the last."""
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

    def set_aside(self, sequence: int, subject: str, problem: str) -> None:
        self.poison_total += 1
        if len(self.poison) < MAX_EXAMPLES:
            self.poison.append(Poison(sequence=sequence, subject=subject, problem=problem))

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
