"""The voter on news: replays recorded headlines in event time, receives those of others, and scores both.

It owns which headlines count at a moment and how they are weighed. agents/builtin/sentiment_score.py scores one text,
agents/feeds/headlines.py reads the file.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import math
from dataclasses import dataclass, field
from datetime import datetime
from typing import NoReturn

from agents.agent import Agent
from agents.builtin.sentiment_score import Scorer
from agents.feeds.headlines import load_headlines, source_name
from bus.errors import UsageError
from bus.messages import Headline, MarketData, Sentiment, SentimentLabel

TILT = 0.5
"""How far the score moves the probability: p_up = 0.5 + 0.5 x TILT x score lies in [0.25, 0.75].

Our choice, calibrated on nothing: a headline has little information about the next candle, so the effect is small.
"""
NEUTRAL_BAND = 0.1
"""A score within +-0.1 (p_up 0.475 to 0.525) is called neutral."""
HORIZON_HALF_LIVES = 10
"""Headlines older than this many half-lives are dropped: each would weigh less than a thousandth of a fresh one."""
WINDOW_ITEMS = 256
"""Most headlines that are kept for one symbol."""
WINDOW_SYMBOLS = 1024
"""Most symbols that headlines of others are kept for: their messages must not make the state grow without end."""
EVERY_SYMBOL = ""
"""Key of the headlines that name no symbol: they count for all."""

Item = tuple[int, float, str]
"""(when it could be known, in seconds since 1970 UTC; its score in [-1, 1]; its source)."""


def sentiment_score_of(items: list[Item], at_s: int, half_life_s: float) -> float:
    """Mean score of `items` weighed by 0.5 ** (age / half-life), in [-1, 1]; 0 if there are none.

    Less than one fresh headline's weight in all counts as one: the score fades as its headlines age, where a plain
    weighted mean would keep its strength to the end.
    """
    weights = [0.5 ** ((at_s - known_s) / half_life_s) for known_s, _, _ in items]
    total = math.fsum(weight * score for weight, (_, score, _) in zip(weights, items, strict=True))
    return total / max(1.0, math.fsum(weights))


def label_of(score: float) -> tuple[SentimentLabel, float, float]:
    """(label, confidence, p_up) of a score in [-1, 1].

    The confidence is p_up as a strategy votes it (docs/concepts/decisions.md): bearish 1 - p_up, else p_up.
    """
    p_up = 0.5 + 0.5 * TILT * score
    if score >= NEUTRAL_BAND:
        return "bullish", p_up, p_up
    if score <= -NEUTRAL_BAND:
        return "bearish", 1 - p_up, p_up
    return "neutral", p_up, p_up


def _known_s(stamp: datetime) -> int:
    """First whole second at which a headline of `stamp` may count: rounded up, so never a fraction too early."""
    return math.ceil(stamp.timestamp())


Recorded = tuple[int, float, Headline]
"""When a recorded headline counts from (seconds since 1970), its score, and the message."""


@functools.cache
def packaged_scorer() -> Scorer:
    """The scorer with our lexicon, created once in a process."""
    return Scorer()


@functools.cache
def packaged_recording() -> dict[str, list[Recorded]]:
    """The packaged headlines, scored once in a process: every child of a host that preloads them shares them."""
    return _score_all("")


def _score_all(path: str) -> dict[str, list[Recorded]]:
    recorded: dict[str, list[Recorded]] = {}
    for headline in load_headlines(path):
        entry = (_known_s(headline.timestamp), packaged_scorer().score(headline.text))
        for symbol in headline.symbols:
            # One message for each symbol that it concerns: the subject it is published under can name only one.
            own = dataclasses.replace(headline, symbols=(symbol,))
            recorded.setdefault(symbol, []).append((*entry, own))
    return recorded


class SentimentAgent(Agent):
    """For each candle: the recorded headlines that have become known since the one before it, then one Sentiment."""

    kind = "sentiment"
    listens = ("market", "headline")
    publishes = ("headline", "sentiment")
    capabilities = ("sentiment_analysis", "news_monitoring")
    memory_key = "sentiment"
    receives_own_messages = False

    @dataclass
    class State:
        """What has been read.

        `window` maps a symbol to its scored headlines, sorted. `position_s` maps a symbol to the time of its latest
        candle: recorded headlines up to there have been published. `candle_s` maps it to the time of the candle before
        the present one, whichever that was. In seconds since 1970 UTC.
        """

        window: dict[str, list[Item]] = field(default_factory=dict)
        position_s: dict[str, int] = field(default_factory=dict)
        candle_s: dict[str, int] = field(default_factory=dict)

    @dataclass(frozen=True)
    class Options:
        """Options of `sentiment`."""

        headlines: str = ""
        """CSV file of headlines. `""`: the packaged ones."""
        half_life_hours: float = 24.0
        """Hours of event time after which a headline weighs half as much. More than 0."""
        lookback_days: int = 7
        """Days before a symbol's first candle whose headlines are published; older ones never are. At least 0."""

    state: State
    options: Options

    def setup(self) -> None:
        """Read and score the recorded headlines.

        Raises:
            UsageError: a setting is out of range.
            DataError: the file of headlines is not what it should be.
        """
        options = self.options
        if not 0 < options.half_life_hours < math.inf:
            self._wrong("half_life_hours", "a finite number of hours above 0", options.half_life_hours)
        if options.lookback_days < 0:
            self._wrong("lookback_days", "0 or more", options.lookback_days)
        self._half_life_s = options.half_life_hours * 3600
        self._scorer = packaged_scorer()
        self._source = source_name(options.headlines)
        self._recorded = _score_all(options.headlines) if options.headlines else packaged_recording()

    def _wrong(self, setting: str, expected: str, value: object) -> NoReturn:
        raise UsageError(f"agent {self.name!r}: {setting}: expected {expected}, not {value!r}")

    def on_headline(self, headline: Headline) -> None:
        """Keep a headline of another source; it counts from its own timestamp on, which may be in the future."""
        if headline.source == self._source:
            return  # another agent replays the same recording: it must not count twice
        item = (_known_s(headline.timestamp), self._scorer.score(headline.text), headline.source)
        for symbol in dict.fromkeys(headline.symbols or (EVERY_SYMBOL,)):
            if symbol in self.state.window or len(self.state.window) < WINDOW_SYMBOLS:
                self._keep(symbol, item)

    def on_market(self, tick: MarketData) -> list[Headline | Sentiment]:
        """The headlines that are new at `tick`, then the vote on its round."""
        now_s = math.floor(tick.timestamp.timestamp())
        outputs: list[Headline | Sentiment] = []
        for known_s, score, headline in self._news(tick.symbol, now_s):
            self._keep(tick.symbol, (known_s, score, headline.source))
            outputs.append(headline)
        outputs.append(self._sentiment(tick, self._known(tick.symbol, now_s), now_s))
        self.state.candle_s[tick.symbol] = now_s
        return outputs

    def _news(self, symbol: str, now_s: int) -> list[tuple[int, float, Headline]]:
        """Recorded headlines of `symbol` known by `now_s` and later than its position, which moves on to there."""
        start_s = self.state.position_s.get(symbol, now_s - self.options.lookback_days * 86_400 - 1)
        self.state.position_s[symbol] = max(now_s, start_s)
        recorded = self._recorded.get(symbol, [])
        first = bisect.bisect_right(recorded, start_s, key=lambda entry: entry[0])
        return recorded[first : bisect.bisect_right(recorded, now_s, key=lambda entry: entry[0])]

    def _keep(self, symbol: str, item: Item) -> None:
        """Put `item` into the window. Sorted, so that the same headlines give the same sum in whatever order they came.

        A full window drops the item that is furthest from use: the one furthest in the future, or else the oldest.
        """
        window = self.state.window.setdefault(symbol, [])
        bisect.insort(window, item)
        if len(window) > WINDOW_ITEMS:
            position_s = self.state.position_s.get(symbol)
            del window[-1 if position_s is not None and window[-1][0] > position_s else 0]

    def _known(self, symbol: str, now_s: int) -> list[Item]:
        """What counts at `now_s` for `symbol`, sorted; the windows lose what is too old.

        Too old at the candle before as well: one single candle with a time far ahead must not empty the window.
        """
        horizon_s = HORIZON_HALF_LIVES * self._half_life_s
        oldest_s = now_s - horizon_s
        forgotten_s = min(now_s, self.state.candle_s.get(symbol, now_s)) - horizon_s
        items: list[Item] = []
        for key in (symbol, EVERY_SYMBOL):
            window = self.state.window.get(key, [])
            # A headline without a symbol is for all symbols, which may be at different times: it stays.
            if key != EVERY_SYMBOL:
                del window[: bisect.bisect_left(window, forgotten_s, key=lambda item: item[0])]
            items += [item for item in window if oldest_s <= item[0] <= now_s]
        return sorted(items)

    def _sentiment(self, tick: MarketData, items: list[Item], now_s: int) -> Sentiment:
        score = sentiment_score_of(items, now_s, self._half_life_s)
        label, confidence, p_up = label_of(score)
        return Sentiment(
            sentiment=label,
            confidence=confidence,
            sources=tuple(sorted({source for _, _, source in items})),
            timestamp=tick.timestamp,
            source=self.name,
            symbol=tick.symbol,
            round=tick.sequence,
            p_up=p_up,
        )
