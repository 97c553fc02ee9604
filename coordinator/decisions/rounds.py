"""An open round: which votes count in it, when it is complete, and the decision that closes it.

Pure functions over rounds and votes. agent.py keeps the open rounds of the present; coordinator/explain computes a
past one again by the same functions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from bus.messages import Decision, Sentiment, Side, Signal, VotingConfig
from coordinator.decisions.pooling import Electorate, Synthesis, synthesise, vote_probability
from coordinator.decisions.risk import WINDOW, Assessment, Market, assess

MAX_EARLY_VOTES = 64
"""Votes stored for one round before the first VotingConfig names the voters; further ones are refused."""
WINDOW_BUDGET = 32 * WINDOW
"""Closes kept over all feeds, some 160 KiB encoded, which fits a snapshot. With more than 32 feeds each one's window is
shorter; with agent.MAX_FEEDS it is 31 closes, still enough for risk.MIN_RETURNS."""

NO_CONFIG = VotingConfig(voters={}, timestamp=datetime(1970, 1, 1, tzinfo=UTC), source="")
"""Used to close a round before any VotingConfig: no voters, so no quorum, so hold."""

VoteOutcome = Literal["counted", "unknown", "repeated", "late", "refused"]
"""counted; unknown: the writer is no voter; repeated: it has voted on that open round already; late: no such round is
open; refused: beyond MAX_EARLY_VOTES."""


@dataclass(slots=True)
class OpenRound:
    """A tick without a decision yet, of its feed's `run`. `votes` maps a voter to its probability of a rise.

    `config` is the number of the VotingConfig at its tick: voters of a later one have not seen that tick.
    """

    source: str
    sequence: int
    price: float
    timestamp: datetime
    run: int = 1
    timed_out: bool = False
    config: int = 0
    votes: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClosedRound:
    """A decision, and the terms that it follows from."""

    decision: Decision
    synthesis: Synthesis
    assessment: Assessment


def round_id(symbol: str, source: str, sequence: int, run: int = 1) -> str:
    """`symbol:source:sequence`, the decision_id and the timer's name; different rounds never share one.

    From a feed's second run on it is `symbol:source=run:sequence`. A colon in the source (agent names have none, but a
    payload's source may be any text) is written =3A, and = as =3D, so that the last two colons are always the
    separators, and a run is never part of a name.
    """
    if ":" in source or "=" in source:
        source = source.replace("=", "=3D").replace(":", "=3A")
    return f"{symbol}:{source}:{sequence}" if run == 1 else f"{symbol}:{source}={run}:{sequence}"


@dataclass(frozen=True, slots=True)
class RoundName:
    """The parts of a round's id."""

    symbol: str
    source: str
    sequence: int
    run: int = 1


_ROUND_ID = re.compile(r"(.+):([^:]+?)(?:=([1-9][0-9]{0,17}))?:(-?[0-9]{1,18})", re.DOTALL)


def parse_round_id(name: str) -> RoundName | None:
    """The inverse of `round_id`; None if `name` is no id of a round."""
    found = _ROUND_ID.fullmatch(name)
    if found is None:
        return None
    source = found[2].replace("=3A", ":").replace("=3D", "=")
    parsed = RoundName(found[1], source, int(found[4]), int(found[3] or 1))
    return parsed if round_id(parsed.symbol, source, parsed.sequence, parsed.run) == name else None


@dataclass(slots=True)
class Electors:
    """Who is expected in a round: the voters at its tick that are voters still.

    `number` counts the VotingConfigs. `joined` maps a voter to the number of the first one that has it, unless that was
    the first of all. A round waits for no agent that joined after its tick, nor for one that left.
    """

    number: int = 0
    joined: dict[str, int] = field(default_factory=dict)

    def take(self, before: VotingConfig | None, config: VotingConfig) -> None:
        """`config` is in force from now on, in place of `before`."""
        self.number += 1
        stayed = {name: number for name, number in self.joined.items() if name in config.voters}
        new = () if before is None else config.voters.keys() - before.voters.keys()
        self.joined = {**stayed, **dict.fromkeys(sorted(new), self.number)}

    def expects(self, waiting: OpenRound, voter: str) -> bool:
        """Whether `voter`, which the VotingConfig in force has, is expected in the round."""
        return self.joined.get(voter, 0) <= waiting.config

    def voters_of(self, waiting: OpenRound, config: VotingConfig) -> dict[str, float]:
        """Agent -> weight of those that are expected in the round."""
        if not self.joined:
            return config.voters
        return {name: weight for name, weight in config.voters.items() if self.expects(waiting, name)}


def count_vote(
    vote: Sentiment | Signal, rounds: Sequence[OpenRound], config: VotingConfig | None, electors: Electors
) -> tuple[VoteOutcome, OpenRound | None]:
    """Add a vote to its round among the open `rounds` of its symbol, if that lacks it; the round if it was counted."""
    voter = vote.source
    if config is not None and voter not in config.voters:
        return "unknown", None
    # The integer identifies the tick, not its source: of two rounds with one sequence the older is served first.
    known = False
    for waiting in rounds if vote.round is not None else rounds[-1:]:
        if vote.round is None or waiting.sequence == vote.round:
            if not electors.expects(waiting, voter):
                return "unknown", None
            if voter not in waiting.votes:
                break
            known = True
    else:
        return ("repeated" if known else "late"), None
    if config is None and len(waiting.votes) >= MAX_EARLY_VOTES:
        return "refused", None
    waiting.votes[voter] = vote_probability(vote)
    return "counted", waiting


def is_complete(waiting: OpenRound, config: VotingConfig | None, electors: Electors) -> bool:
    """Whether every expected voter has voted; never before a VotingConfig names them."""
    return config is not None and all(
        voter in waiting.votes or not electors.expects(waiting, voter) for voter in config.voters
    )


def window_of(feed_count: int) -> int:
    """Closes that each of `feed_count` feeds may keep."""
    return min(WINDOW, WINDOW_BUDGET // feed_count)


def signed_position(action: Side, size: float) -> float:
    """The position that a decision takes: short below 0, 0 for hold."""
    return -size if action == "sell" and size else size


def close_round(
    symbol: str, closing: OpenRound, market: Market, voters: Electorate, config: VotingConfig, decider: str
) -> ClosedRound:
    """The decision on `closing` by `decider`; `voters` are those of `config`, `market` is measured at its tick."""
    synthesis = synthesise(closing.votes, voters, config)
    assessment = assess(synthesis, market, config)
    decision = Decision(
        final_decision=synthesis.action,
        position_size=assessment.position_size,
        risk_score=assessment.risk_score,
        consensus_level=synthesis.consensus,
        agents_consulted=synthesis.consulted,
        timestamp=closing.timestamp,
        source=decider,
        decision_id=round_id(symbol, closing.source, closing.sequence, closing.run),
        symbol=symbol,
        round=closing.sequence,
        absent=synthesis.absent,
    )
    return ClosedRound(decision, synthesis, assessment)
