"""The types of `replay --json`, and a difference between two outputs as text."""

from __future__ import annotations

from dataclasses import dataclass

from agents.runtime.output_log import output_headers
from agents.runtime.replay import Mismatch
from bus.durable.message_ids import is_id
from bus.messages import headers as h
from coordinator.audit.models import Hole
from coordinator.reporting.differences import FieldDifference, payload_differences

MOST_NAMED = 8
"""Ranges of missing messages that a text lists."""


@dataclass(slots=True, kw_only=True)
class ReplayedAgent:
    """One agent: `inputs` handled, `compared` recorded outputs, of which `differing` differ.

    `waiting` outputs of the replay have no stored counterpart yet. `left_out` is the reason why the agent was not
    compared, or from which message on.
    """

    kind: str
    inputs: int = 0
    compared: int = 0
    differing: int = 0
    waiting: int = 0
    left_out: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first difference of an agent. `cause` is the stream sequence of the input that the output answers."""

    agent: str
    sequence: int
    output: int
    cause: int | None
    subject: str | None
    fields: list[FieldDifference]
    text: str


@dataclass(slots=True, kw_only=True)
class Replay:
    """`replay --json`. `ok`: at least one output was compared, none differs, and `missing` has only what is explained.

    `missing` are the messages that are not stored, though older ones were read; `explained`: retention has meanwhile
    removed those as well.
    """

    ok: bool
    swarm: str
    source: str
    config: str
    first: int
    last: int
    messages: int
    inputs: int
    compared: int
    differing: int
    agents: dict[str, ReplayedAgent]
    differences: list[Difference]
    missing: list[Hole]
    notes: list[str]
    duration_s: float
    inputs_per_s: float


def describe_missing(replay: Replay) -> str:
    """The messages that are missing without a reason; empty if none are."""
    holes = [f"{hole.first} to {hole.last}" for hole in replay.missing if not hole.explained]
    if not holes:
        return ""
    more = f" and {len(holes) - MOST_NAMED} more ranges" if len(holes) > MOST_NAMED else ""
    return (
        f"messages {', '.join(holes[:MOST_NAMED])}{more} are missing, though older ones are stored; what follows them "
        "is not compared"
    )


def explain(agent: str, mismatch: Mismatch) -> Difference:
    """A difference as text and fields."""
    recorded, replayed = mismatch.recorded, mismatch.replayed
    fields: list[FieldDifference] = []
    cause = replayed.cause if replayed is not None else None
    if recorded is not None and (recorded_cause := h.number(recorded.headers, h.CAUSE)) is not None:
        cause = recorded_cause
    answers = f", which answers message {cause}," if cause is not None else ""
    where = f"{agent}: output {mismatch.number} at message {mismatch.sequence}{answers}"
    if mismatch.why:
        text = f"{agent}: the replay fails at message {mismatch.sequence} ({mismatch.why}); the recorded run did not"
    elif recorded is None:
        text = f"{where} is in the replay, but was not recorded"
    elif replayed is None:
        text = f"{where} was recorded, but is not in the replay"
    else:
        headers = output_headers(agent, mismatch.number, replayed.cause)
        pairs: dict[str, tuple[str | None, str | None]] = {"subject": (recorded.subject, replayed.subject)}
        pairs |= {
            name: (recorded.headers.get(name), headers.get(name)) for name in (h.OUTPUT, h.CAUSE, h.MSG_ID)
        }  # fmt: skip
        if is_id(pairs[h.MSG_ID][0] or "", pairs[h.MSG_ID][1] or ""):
            del pairs[h.MSG_ID]
        fields += [FieldDifference(field=n, recorded=a, replayed=b) for n, (a, b) in pairs.items() if a != b]
        fields += payload_differences(recorded.data, replayed.data)
        text = f"{where} differs in the replay"
    subject = recorded.subject if recorded is not None else replayed.subject if replayed is not None else None
    return Difference(
        agent=agent, sequence=mismatch.sequence, output=mismatch.number, cause=cause, subject=subject, fields=fields,
        text=text,
    )  # fmt: skip
