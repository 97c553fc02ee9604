"""A source of market data: replays recorded candles of one or several symbols, in one fixed order, at a pace.

It owns where to resume (after its own last stored event), the pace, and how far it may run ahead of the decisions.
Reading and checking the files is done by agents/feeds/candles.py; storing and resending is the runtime's business.
"""

from __future__ import annotations

import asyncio
import bisect
import heapq
import math
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import NoReturn

from agents.agent import Agent
from agents.feeds.candles import Candle, Candles, PrefixDigest, load_candles
from bus.errors import DataError, UsageError
from bus.messages import Decision, MarketData, VotingConfig
from bus.messages.subjects import WATCHDOG

DEFAULT_SYMBOLS = {"BTC/USD": ""}
"""What is replayed where nothing else is set: the packaged recording."""


class MarketDataAgent(Agent):
    """Yields every candle once, ordered by (timestamp, symbol); `sequence` counts a symbol's candles from 1.

    A round is undecided from its candle to the decision about it. A source has no more than `max_open_rounds` of them,
    each symbol its share: the next candle in order waits, and with it all those behind it, so that the order never
    depends on the decisions.
    """

    kind = "market-data"
    listens = ("decision", "config")
    publishes = ("market",)
    capabilities = ("market_data_collection", "volume_tracking")
    memory_key = "market_data"

    @dataclass
    class State:
        """What was received.

        `decided` maps a symbol to the highest of this agent's own rounds that a decision was received on;
        `deciders` are the agents that may decide by the active VotingConfig (empty: all). `digests` maps a symbol to
        the number of candles up to the last decided round, and a digest of them.
        """

        decided: dict[str, int] = field(default_factory=dict)
        deciders: tuple[str, ...] = ()
        digests: dict[str, tuple[int, str]] = field(default_factory=dict)

    @dataclass(frozen=True)
    class Options:
        """Options of `market-data`."""

        symbols: dict[str, str] | None = None
        """Symbol to CSV or CSV.gz file. `""` and the default are the packaged recording of BTC/USD."""
        speed: float = 2.0
        """Candles a second, all symbols together; 0: as fast as decisions come."""
        history: int = 250
        """Number of initial candles of each symbol without pacing, so that strategies have a window to measure."""
        max_open_rounds: int = 256
        """Undecided rounds that may be open, shared equally by the symbols; 0: no bound. A full window is refilled when
        half of it is decided."""
        limit: int = 0
        """Ends after so many candles of each symbol; 0: never."""

    state: State
    options: Options

    def setup(self) -> None:
        """Read all files, so that a mistake in one of them ends the start instead of a running replay.

        Raises:
            UsageError: a setting is out of range.
            DataError: a file is not what it should be.
        """
        options = self.options
        for setting in ("history", "max_open_rounds", "limit"):
            if getattr(options, setting) < 0:
                self._wrong(setting, "0 or more", getattr(options, setting))
        if not 0 <= options.speed < math.inf:
            self._wrong("speed", "a finite number of candles per second, 0 or more", options.speed)
        symbols = DEFAULT_SYMBOLS if options.symbols is None else options.symbols
        if not symbols or not all(symbols):
            self._wrong("symbols", "at least one symbol, each with the path of its file", symbols)
        self._candles: dict[str, Candles] = {symbol: load_candles(symbols[symbol]) for symbol in symbols}
        self._decided = asyncio.Event()
        self._awaited = ("", 0)
        """The symbol and the round whose decision makes room."""
        self._digests = {symbol: PrefixDigest(candles) for symbol, candles in self._candles.items()}
        self._checked: set[str] = set()
        """Symbols whose candles were compared with the digest of an earlier process."""

    def _wrong(self, setting: str, expected: str, value: object) -> NoReturn:
        raise UsageError(f"agent {self.name!r}: {setting}: expected {expected}, not {value!r}")

    def on_decision(self, decision: Decision) -> None:
        """Note that a round of this agent is decided. Rounds close in order, so the highest one is enough."""
        if self.state.deciders and decision.source not in self.state.deciders:
            return  # of an unknown writer: it decides nothing, and counting it would open the window
        symbol, number = decision.symbol, decision.round
        parts = (decision.decision_id or "").rsplit(":", 2)  # from the right: a symbol may contain ':', a name not
        if len(parts) == 3 and parts[2].isdecimal():
            if parts[1].partition("=")[0] != self.name:  # after '=': the run of a feed that restarted at 1
                return  # the round of another source
            symbol, number = parts[0], int(parts[2]) if number is None else number
        if symbol is None or number is None or not 0 < number <= len(self._candles.get(symbol, ())):
            return  # no such round: counting it would open the window for good
        if number > self.state.decided.get(symbol, 0):
            self.state.decided[symbol] = number
            self._check_past(symbol)
            self.state.digests[symbol] = (number, self._digests[symbol].of(number))
        if self.state.decided.get(self._awaited[0], 0) >= self._awaited[1]:
            self._decided.set()  # only wakes produce(), which checks the state again

    def _check_past(self, symbol: str) -> None:
        """Compare the candles of decided rounds with those that an earlier process has read.

        Raises:
            DataError: they are others: the rounds that are stored would not be those of this file.
        """
        if symbol in self._checked:
            return
        self._checked.add(symbol)
        count, digest = self.state.digests.get(symbol, (0, ""))
        candles = self._candles[symbol]
        if count and (count > len(candles) or self._digests[symbol].of(count) != digest):
            raise DataError(
                (self.options.symbols or DEFAULT_SYMBOLS)[symbol] or "the packaged recording",
                None,
                None,
                f"the first {count} candles of {symbol} differ from those that were read before; restore the file, or "
                "start with an empty --state-dir",
            )

    def on_config(self, config: VotingConfig) -> None:
        """The agents whose decisions count from here on."""
        if config.source == WATCHDOG:
            self.state.deciders = config.deciders

    async def produce(self, last: MarketData | None) -> AsyncIterator[MarketData]:
        """All candles after `last`, this agent's own last stored one (None: from the beginning).

        After a stall, of the loop or of the decisions, one candle at most follows another without a pause.

        Raises:
            UsageError: `last` is not a candle of the files that are set now.
            DataError: a file has other candles before it than when they were read.
        """
        for symbol in self._candles:
            self._check_past(symbol)
        clock = asyncio.get_running_loop().time
        period_s = 1 / self.options.speed if self.options.speed else 0.0
        due = clock()  # after a restart the next candle is due at once
        for candle, symbol, sequence in self._after(last):
            await self._room(symbol, sequence)
            if period_s and sequence > self.options.history:
                await asyncio.sleep(due - clock())
                due = max(due + period_s, clock())  # the schedule, not the moment of waking, or else it would drift
            else:
                await asyncio.sleep(0)  # nothing to wait for, but let other tasks run
                due = clock() + period_s
            yield self._tick(candle, symbol, sequence)

    async def _room(self, symbol: str, sequence: int) -> None:
        """Wait until the round `sequence` of `symbol` may be opened.

        A full window is refilled when half of it is decided: a tick for each decision costs a turn of every process
        for each round instead of one for many.
        """
        bound = max(1, self.options.max_open_rounds // len(self._candles)) if self.options.max_open_rounds else 0
        if not bound or sequence - self.state.decided.get(symbol, 0) <= bound:
            return
        self._awaited = symbol, sequence - bound + max(1, bound // 2) - 1
        while self.state.decided.get(symbol, 0) < self._awaited[1]:
            self._decided.clear()
            await self._decided.wait()

    def _tick(self, candle: Candle, symbol: str, sequence: int) -> MarketData:
        return MarketData(
            symbol=symbol,
            price=candle.close,
            volume=candle.volume,
            timestamp=candle.timestamp,
            source=self.name,
            sequence=sequence,
            open=candle.open,
            high=candle.high,
            low=candle.low,
        )

    def _after(self, last: MarketData | None) -> Iterator[tuple[Candle, str, int]]:
        """The candles after `last` with their symbols and sequences, merged by (timestamp, symbol)."""
        sent = self._sent(last)

        def remaining(symbol: str) -> Iterator[tuple[Candle, str, int]]:
            candles = self._candles[symbol]
            end = min(self.options.limit or len(candles), len(candles))
            return ((candles[at], symbol, at + 1) for at in range(sent[symbol], end))

        rest = [remaining(symbol) for symbol in sorted(self._candles)]
        return heapq.merge(*rest, key=lambda item: (item[0].timestamp, item[1]))

    def _sent(self, last: MarketData | None) -> dict[str, int]:
        """How many candles of each symbol there are up to `last` in the merged order.

        Files and settings may have changed between two runs. Other values under the same sequence numbers would
        contradict the stored rounds, so that is an error.
        """
        if last is None:
            return dict.fromkeys(self._candles, 0)
        candles = self._candles.get(last.symbol)
        if candles is None or last.sequence is None:
            self._wrong("symbols", f"{last.symbol!r} among them, as in its last stored event", [*self._candles])
        if not 0 < last.sequence <= len(candles) or candles[last.sequence - 1].timestamp != last.timestamp:
            self._wrong(
                "symbols",
                f"the same file for {last.symbol!r} as before (its last stored event is candle {last.sequence} "
                f"of {last.timestamp.isoformat()}), or an empty state directory",
                (self.options.symbols or DEFAULT_SYMBOLS)[last.symbol] or "the packaged recording",
            )
        sent = {}
        for symbol, others in self._candles.items():
            # Of several candles with the same timestamp, those of symbols up to this one come first.
            find = bisect.bisect_right if symbol <= last.symbol else bisect.bisect_left
            sent[symbol] = find(others, last.timestamp, key=lambda candle: candle.timestamp)
        return sent
