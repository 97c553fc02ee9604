"""`explain`: computes one past decision again from the stored messages, and compares it with the published one.

The cost is bounded by the windows: it reads the messages of the round, and the ticks and decisions on its symbol back
to the oldest of the rounds (at most risk.WINDOW) that its risk is computed from. The positions before this one are
those that were published, so that each decision is computed from the ones before it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bus.interface import StoredMessage
from bus.messages import Decision, Epoch, Lifecycle, MarketData, Sentiment, Signal, VotingConfig, encode
from bus.messages import headers as h
from bus.messages.subjects import WATCHDOG
from coordinator.decisions.pooling import Electorate, electorate, log_odds, pooled_log_odds, vote_probability
from coordinator.decisions.risk import WINDOW, measure
from coordinator.decisions.rounds import NO_CONFIG, ClosedRound, close_round, signed_position, window_of
from coordinator.explain.errors import RoundRemoved
from coordinator.explain.flips import flip_of
from coordinator.explain.models import (
    Closing,
    ExplainedConfig,
    ExplainedPools,
    ExplainedQuorum,
    ExplainedRisk,
    ExplainedSize,
    ExplainedTick,
    ExplainedVoter,
    Explanation,
    IgnoredVote,
    PublishedDecision,
    RoundEvent,
)
from coordinator.explain.round_history import (
    DecidedRound,
    DecodedMessage,
    RoundHistory,
    StoredVote,
    decode_all,
    decoded,
    follow_round,
    later_rounds,
    pair_rounds,
)
from coordinator.explain.selection import SelectedDecision, Selector, select
from coordinator.explain.sources import BusSource, Filter, MessageSource, read_all
from coordinator.reporting.differences import FieldDifference, payload_differences

if TYPE_CHECKING:  # a file is read without the NATS client, which takes long to import
    from bus.nats.bus import NatsBus

FIRST_SPAN = 2048
"""Messages before a decision among which its windows are looked for first; then four times as many."""
LATE_VOTES = 300
"""Votes of an absent voter after the decision among which a late one is looked for: a source keeps 256 rounds open."""
MAX_EVENTS = 200
"""Events of a round that are listed, the newest."""


@dataclass(frozen=True, slots=True)
class _Window:
    """The rounds before a decision: `feed` are those of its own feed, `all` those on its symbol by its decider."""

    wanted: DecidedRound
    feed: list[DecidedRound]
    all: list[DecidedRound]
    messages: list[DecodedMessage]


async def explain(source: MessageSource, selector: Selector) -> Explanation:
    """Explain the decision that `selector` means.

    Raises:
        UnknownRound, AmbiguousRound, RoundOpen, RoundRemoved: there is no decision, several, not yet, or not any more.
        RowChanged: a row of the mirror's file that is needed was changed.
        BusError, MirrorDamaged, MirrorFailing: nothing can be read.
    """
    started_at = time.perf_counter()
    counting = _CountingSource(source)
    selected = await select(counting, selector)
    return await _Explainer(counting, selected).explain(started_at)


async def explain_bus(bus: NatsBus, selector: Selector) -> Explanation:
    """`explain` over the stream of `bus`."""
    return await explain(BusSource(bus), selector)


async def explain_file(path: Path, selector: Selector) -> Explanation:
    """`explain` over a mirror's file, with the bus up or down.

    Raises:
        MirrorUnusable: it cannot be read.
    """
    from bus.mirror.reader import MirrorFile
    from coordinator.explain.file_source import FileSource

    with MirrorFile(path) as file:
        return await explain(FileSource(file), selector)


class _CountingSource:
    """A source that counts the messages that are read."""

    def __init__(self, source: MessageSource) -> None:
        self._source = source
        self.subjects, self.elsewhere = source.subjects, source.elsewhere
        self.last_sequence, self.missing = source.last_sequence, source.missing
        self.writers, self.snapshot = source.writers, source.snapshot
        self.count = 0

    @property
    def name(self) -> str:
        return self._source.name

    async def newest(self, wanted: Filter) -> StoredMessage | None:
        self.count += 1
        return await self._source.newest(wanted)

    async def first_from(self, wanted: Filter, sequence: int) -> StoredMessage | None:
        self.count += 1
        return await self._source.first_from(wanted, sequence)

    async def read(
        self, wanted: Iterable[Filter], first: int, last: int, limit: int | None = None
    ) -> list[StoredMessage]:
        found = await self._source.read(wanted, first, last, limit)
        self.count += len(found)
        return found

    async def read_before(self, wanted: Iterable[Filter], before: int, limit: int) -> list[StoredMessage]:
        found = await self._source.read_before(wanted, before, limit)
        self.count += len(found)
        return found


class _Explainer:
    def __init__(self, source: _CountingSource, selected: SelectedDecision) -> None:
        self._source, self._selected = source, selected
        self._subjects = source.subjects
        self._notes: list[str] = []
        self._tick_ns = 0

    async def explain(self, started_at: float) -> Explanation:
        source, selected = self._source, self._selected
        window = await self._read_window()
        wanted = window.wanted
        self._tick_ns = wanted.tick.stored_ns
        history, messages = await self._follow(window)
        config = history.config or NO_CONFIG
        voters = electorate(history.electors.voters_of(history.round, config))
        closes = [*(one.market.price for one in window.feed), wanted.market.price]
        positions = [signed_position(one.decision.final_decision, one.decision.position_size) for one in window.feed]
        market = measure(closes, positions)
        closed = close_round(selected.name.symbol, history.round, market, voters, config, selected.decider)
        differences = self._differences(closed, history)
        oldest = window.feed[0].tick if window.feed else wanted.tick
        risk, sizing = closed.assessment, closed.assessment.sizing
        stored = selected.stored
        return Explanation(
            same=not differences,
            swarm=self._subjects.ns,
            source=source.name,
            decision_id=selected.decision_id,
            symbol=selected.name.symbol,
            round=selected.name.sequence,
            decider=selected.decider,
            sequence=stored.sequence,
            stored_at=_time(stored),
            after_tick_ms=self._after_tick_ms(stored),
            epoch=h.number(stored.headers, h.EPOCH),
            trace_id=_trace_id(stored),
            tick=_tick(wanted),
            config=_config(history),
            voters=await self._voters(history, config, voters, closed, wanted.tick.sequence),
            ignored=[self._ignored(outcome, vote) for outcome, vote in history.ignored],
            pools=_pools(closed, voters),
            quorum=ExplainedQuorum(
                present=closed.synthesis.present, required=config.quorum, reached=closed.synthesis.quorate
            ),
            risk=ExplainedRisk(
                agreement=risk.factors.agreement,
                volatility=risk.volatility,
                volatility_factor=risk.factors.volatility,
                drawdown=risk.drawdown,
                drawdown_factor=risk.factors.drawdown,
                cvar=risk.cvar,
                risk_score=risk.risk_score,
                first_sequence=oldest.sequence,
                closes=closes,
                positions=positions,
            ),
            size=ExplainedSize(
                edge=sizing.edge,
                uncapped=sizing.uncapped,
                cvar_cap=sizing.cvar_cap,
                position_cap=config.position_cap,
                position_size=sizing.size,
                bound_by=sizing.bound,
            ),
            closing=self._closing(history, messages),
            events=await self._events(closed, wanted.tick.sequence),
            published=_published(selected.decision),
            computed=_published(closed.decision),
            differences=differences,
            notes=self._notes,
            read=source.count,
            duration_ms=round((time.perf_counter() - started_at) * 1000, 1),
        )

    # -- reading

    async def _read_window(self) -> _Window:
        """The rounds that the risk of the decision is computed from.

        Raises:
            RoundRemoved: not all of them are stored any more.
        """
        selected, topic = self._selected, self._selected.topic
        wanted = (Filter("market", topic), Filter("decision", topic, selected.decider))
        needed = await self._window_length() - 1
        last, span, end = selected.stored.sequence, FIRST_SPAN, selected.stored.sequence
        messages: list[DecodedMessage] = []
        while True:
            first = max(1, last - span)
            messages = [*decode_all(self._subjects, await self._source.read(wanted, first, end)), *messages]
            pairs = pair_rounds(messages)
            mine = next((one for one in reversed(pairs) if one.stored.sequence == last), None)
            before = [one for one in pairs if one.name.source == selected.name.source and one.stored.sequence < last]
            if first == 1 or (mine is not None and len(before) >= needed):
                break
            span, end = span * 4, first - 1
        feed = before[-needed:]
        oldest = next(iter(feed), mine)
        is_first = oldest is not None and (oldest.name.sequence, oldest.name.run) == (1, 1)
        start = oldest.tick.sequence if oldest is not None and (is_first or len(feed) == needed) else 1
        missing = await self._source.missing(start, selected.cause)
        if mine is None or missing is not None:
            why = missing or "its tick is not stored"
            raise RoundRemoved(
                f"explain {selected.decision_id}: it follows from its votes and from the {needed} rounds of "
                f"{selected.name.source} before it, of which {len(feed)} are stored: {why}; {self._source.elsewhere}"
            )
        return _Window(mine, feed, pairs, messages)

    async def _window_length(self) -> int:
        """Closes that the feed could have at the decision: WINDOW, and fewer only with many feeds."""
        snapshot = await self._source.snapshot(self._selected.decider)
        state = snapshot.state if snapshot is not None and isinstance(snapshot.state, dict) else {}
        known = state.get("feed_count", 0)
        feeds = max(known if isinstance(known, int) else 0, len(await self._source.writers("market")), 1)
        if window_of(feeds) == WINDOW:
            return WINDOW
        found: set[tuple[str, str]] = set()
        async for stored in read_all(self._source, (Filter("market"),), 1, self._selected.cause):
            tick = decoded(self._subjects, stored)
            if isinstance(tick, MarketData):
                found.add((tick.symbol, tick.source))
        return window_of(len(found))

    async def _follow(self, window: _Window) -> tuple[RoundHistory, list[StoredMessage]]:
        """The history of the round, and the messages of it that the decider handled.

        Raises:
            RoundRemoved: the VotingConfig is not stored any more.
        """
        selected, topic, wanted = self._selected, self._selected.topic, window.wanted
        start = _first_tick(wanted, window.all)
        kinds = (Filter("market", topic), Filter("sentiment", topic), Filter("signal", topic))
        config = Filter("config", "swarm", WATCHDOG)
        found = await self._source.read(
            (*kinds, Filter("timer", topic, selected.decider), config), start, selected.cause
        )
        skipped = await self._skipped()
        messages = [stored for stored in found if stored.sequence not in skipped]
        configs = [
            stored for stored in await self._source.read((config,), 1, start - 1) if stored.sequence not in skipped
        ]
        if not configs and (missing := await self._source.missing(1, start - 1)) is not None:
            raise RoundRemoved(
                f"explain {selected.decision_id}: the VotingConfig that was active at its tick is no longer stored: "
                f"{missing}; {self._source.elsewhere}"
            )
        later = later_rounds(window.messages, wanted.tick.sequence)
        return follow_round(wanted, window.all, later, configs, messages, self._subjects), messages

    async def _skipped(self) -> set[int]:
        """The messages that the decider has reported as skipped, as its handler failed on them."""
        decider = self._selected.decider
        stored = await self._source.read(
            (Filter("lifecycle", decider, decider),), 1, await self._source.last_sequence()
        )
        events = (decoded(self._subjects, one) for one in stored)
        found = {
            event.detail.get("sequence")
            for event in events
            if isinstance(event, Lifecycle) and event.event == "skipped"
        }
        return {sequence for sequence in found if isinstance(sequence, int)}

    # -- the parts

    def _differences(self, closed: ClosedRound, history: RoundHistory) -> list[FieldDifference]:
        stored, cause = self._selected.stored, self._selected.cause
        found = payload_differences(stored.data, encode(closed.decision))
        if history.closable_at != cause:
            found.append(FieldDifference(field=h.CAUSE, recorded=cause, replayed=history.closable_at))
        return found

    def _after_tick_ms(self, stored: StoredMessage) -> float:
        return round((stored.stored_ns - self._tick_ns) / 1e6, 3)

    async def _voters(
        self, history: RoundHistory, config: VotingConfig, voters: Electorate, closed: ClosedRound, tick: int
    ) -> list[ExplainedVoter]:
        votes = history.round.votes
        found = []
        for name, weight, p_up in zip(voters.names, voters.weights, closed.synthesis.probabilities, strict=True):
            counted = history.counted.get(name)
            answer = counted if counted is not None else await self._late_vote(name, history, tick)
            vote = None if answer is None else answer.vote
            voted = None if vote is None else vote_probability(vote)
            found.append(
                ExplainedVoter(
                    name=name,
                    status="counted" if counted is not None else "late" if answer is not None else "absent",
                    weight=weight,
                    configured_weight=config.voters[name],
                    p_up=p_up,
                    log_odds=weight * log_odds(p_up),
                    flip=flip_of(name, votes, voters, config, late=None if counted is not None else voted),
                    side=_side(vote),
                    strength=_strength(vote),
                    voted_p_up=voted,
                    indicators=dict(vote.indicators) if isinstance(vote, Signal) else {},
                    sources=list(vote.sources) if isinstance(vote, Sentiment) else [],
                    sequence=None if answer is None else answer.stored.sequence,
                    stored_at=None if answer is None else _time(answer.stored),
                    after_tick_ms=None if answer is None else self._after_tick_ms(answer.stored),
                    epoch=None if answer is None else h.number(answer.stored.headers, h.EPOCH),
                )
            )
        return found

    async def _late_vote(self, voter: str, history: RoundHistory, tick: int) -> StoredVote | None:
        """The vote of an absent voter on this round that was stored after the message that closed it."""
        topic, last = self._selected.topic, await self._source.last_sequence()
        wanted = (Filter("sentiment", topic, voter), Filter("signal", topic, voter))
        for stored in await self._source.read(wanted, self._selected.cause + 1, last, LATE_VOTES):
            vote = decoded(self._subjects, stored)
            if (
                isinstance(vote, (Sentiment, Signal))
                and vote.round == history.round.sequence
                and (vote.timestamp == history.round.timestamp or h.number(stored.headers, h.CAUSE) == tick)
            ):
                return StoredVote(stored, vote)
        return None

    def _ignored(self, reason: str, found: StoredVote) -> IgnoredVote:
        return IgnoredVote(
            voter=found.vote.source,
            reason=reason,
            p_up=vote_probability(found.vote),
            sequence=found.stored.sequence,
            stored_at=_time(found.stored),
            after_tick_ms=self._after_tick_ms(found.stored),
        )

    def _closing(self, history: RoundHistory, messages: Sequence[StoredMessage]) -> Closing:
        cause = self._selected.cause
        stored = next((one for one in messages if one.sequence == cause), None)
        if stored is None:
            self._notes.append(f"message {cause}, which closed the round, is not of a kind that closes one")
            stored = self._selected.stored
        return Closing(
            reason=history.reason,
            by=stored.subject.rpartition(".")[2],
            sequence=cause,
            stored_at=_time(stored),
            after_tick_ms=self._after_tick_ms(stored),
        )

    async def _events(self, closed: ClosedRound, tick: int) -> list[RoundEvent]:
        """Claims and lifecycle events inside the round, and of an absent voter without one the last before it."""
        wanted = (Filter("lifecycle"), Filter("epoch"))
        found = await self._source.read(wanted, tick, self._selected.stored.sequence)
        about = {stored.subject.split(".")[2] for stored in found}  # an agent: of claims and of events
        for voter in closed.synthesis.absent:
            if voter in about:
                continue
            wanted = (Filter("lifecycle", voter), Filter("epoch", agent=voter))
            found += await self._source.read_before(wanted, tick, 1)
        if len(found) > MAX_EVENTS:
            self._notes.append(f"of {len(found)} events in the round the newest {MAX_EVENTS} are listed")
        events = []
        for stored in sorted(found, key=lambda one: one.sequence)[-MAX_EVENTS:]:
            message = decoded(self._subjects, stored)
            epoch: int | None = stored.sequence
            if isinstance(message, Epoch):
                event, reason = "claimed", f"by {message.claimed_by}"
            elif isinstance(message, Lifecycle):
                event, epoch, reason = message.event, message.epoch, message.reason or ""
            else:
                continue
            events.append(
                RoundEvent(
                    event=event,
                    agent=message.agent,
                    epoch=epoch,
                    reason=reason or None,
                    sequence=stored.sequence,
                    stored_at=_time(stored),
                    after_tick_ms=self._after_tick_ms(stored),
                )
            )
        return events


def _first_tick(wanted: DecidedRound, rounds: Sequence[DecidedRound]) -> int:
    """The first tick of the rounds that could take votes of `wanted`: it, and those of its number that were open."""
    start = wanted.tick.sequence
    for one in sorted(rounds, key=lambda one: one.tick.sequence, reverse=True):
        if one.name.sequence == wanted.name.sequence and one.tick.sequence < start <= one.cause:
            start = one.tick.sequence
    return start


def _time(stored: StoredMessage) -> datetime:
    return datetime.fromtimestamp(stored.stored_ns / 1e9, UTC)


def _trace_id(stored: StoredMessage) -> str | None:
    parts = stored.headers.get(h.TRACEPARENT, "").split("-")
    return parts[1] if len(parts) == 4 else None


def _side(vote: Sentiment | Signal | None) -> str | None:
    if isinstance(vote, Sentiment):
        return vote.sentiment
    return None if vote is None else vote.signal


def _strength(vote: Sentiment | Signal | None) -> float | None:
    if isinstance(vote, Sentiment):
        return vote.confidence
    return None if vote is None else vote.strength


def _tick(wanted: DecidedRound) -> ExplainedTick:
    tick = wanted.market
    return ExplainedTick(
        symbol=tick.symbol,
        source=tick.source,
        number=wanted.name.sequence,
        price=tick.price,
        volume=tick.volume,
        timestamp=tick.timestamp,
        sequence=wanted.tick.sequence,
        stored_at=_time(wanted.tick),
    )


def _config(history: RoundHistory) -> ExplainedConfig:
    config, stored = history.config or NO_CONFIG, history.config_message
    return ExplainedConfig(
        sequence=None if stored is None else stored.sequence,
        stored_at=None if stored is None else _time(stored),
        voters=dict(config.voters),
        quorum=config.quorum,
        buy_at=config.buy_at,
        sell_at=config.sell_at,
        round_timeout_ms=config.round_timeout_ms,
        position_cap=config.position_cap,
        vol_target=config.vol_target,
        drawdown_max=config.drawdown_max,
        cvar_max=config.cvar_max,
        changed_in_round=history.config_changed,
    )


def _pools(closed: ClosedRound, voters: Electorate) -> ExplainedPools:
    synthesis = closed.synthesis
    return ExplainedPools(
        log_odds=pooled_log_odds(synthesis.probabilities, voters.weights),
        log_pool=synthesis.pooled,
        linear_pool=synthesis.mean,
        disagreement=synthesis.disagreement,
        consensus=synthesis.consensus,
    )


def _published(decision: Decision) -> PublishedDecision:
    return PublishedDecision(
        final_decision=decision.final_decision,
        position_size=decision.position_size,
        risk_score=decision.risk_score,
        consensus_level=decision.consensus_level,
        agents_consulted=list(decision.agents_consulted),
        absent=list(decision.absent),
    )
