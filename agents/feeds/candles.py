"""Recorded hourly candles: the packaged recording, and files of the same form.

The market-data agent (agents/builtin/market_data.py) publishes them at a pace.
"""

from __future__ import annotations

import functools
import hashlib
import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, overload

from agents.feeds.csv_reader import Table, read_table

COLUMNS = ("timestamp", "open", "high", "low", "close", "volume")
"""Columns that a candle file must have, in any order; others are ignored."""
RECORDING = "btc-usd-1h.csv.gz"
"""The packaged recording: 20,111 hourly BTC/USD candles, 2017-07-01 to 2019-10-17 (data/NOTICE.md names the source)."""

_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Candle:
    """What was traded in one interval. Prices in the quote currency, volume in the base currency.

    `timestamp` is UTC, the one in the file: by custom the opening of the interval.
    """

    timestamp: datetime
    open: float
    high: float
    low: float
    close: float
    volume: float


class Candles(Sequence[Candle]):
    """Candles in columns of plain numbers, each candle created when it is requested.

    20,000 of them take 1 MB instead of 5, and none of it is written to by reading: so a process that was forked with
    them goes on sharing their memory.
    """

    def __init__(self, candles: Iterable[Candle] = ()) -> None:
        self._stamps = array("q")  # microseconds since 1970
        self._numbers = tuple(array("d") for _ in range(5))
        for candle in candles:
            self.append(candle)

    def append(self, candle: Candle) -> None:
        """Add one at the end."""
        self._stamps.append((candle.timestamp - _UNIX_EPOCH) // _MICROSECOND)
        row = (candle.open, candle.high, candle.low, candle.close, candle.volume)
        for column, number in zip(self._numbers, row, strict=True):
            column.append(number)

    def columns(self, first: int, last: int) -> list[bytes]:
        """The values of the candles from index `first` up to `last`, column by column."""
        columns: tuple[array[Any], ...] = (self._stamps, *self._numbers)
        return [column[first:last].tobytes() for column in columns]

    def __len__(self) -> int:
        return len(self._stamps)

    @overload
    def __getitem__(self, at: int) -> Candle: ...
    @overload
    def __getitem__(self, at: slice) -> list[Candle]: ...
    def __getitem__(self, at: int | slice) -> Candle | list[Candle]:
        if isinstance(at, slice):
            return [self[index] for index in range(*at.indices(len(self)))]
        return Candle(_UNIX_EPOCH + self._stamps[at] * _MICROSECOND, *(column[at] for column in self._numbers))


class PrefixDigest:
    """Digests of the beginning of `candles`. A count that grows from call to call costs no more than its growth."""

    def __init__(self, candles: Candles) -> None:
        self._candles = candles
        self._start()

    def _start(self) -> None:
        self._count = 0
        self._hashes = [hashlib.blake2b(digest_size=8) for _ in self._candles.columns(0, 0)]

    def of(self, count: int) -> str:
        """The digest of the first `count` candles."""
        if count < self._count:
            self._start()
        for values, found in zip(self._candles.columns(self._count, count), self._hashes, strict=True):
            found.update(values)
        self._count = count
        return hashlib.blake2b(b"".join(found.digest() for found in self._hashes), digest_size=8).hexdigest()


def load_candles(path: str | Path = "") -> Candles:
    """The candles of a CSV or CSV.gz file, oldest first; of the packaged recording where `path` is empty.

    Raises:
        DataError: as `read_table`; or a value that is missing, not a number or not finite, a price of 0 or less, a
            negative volume, high < low, an open or close outside of both, a timestamp that is not ISO 8601 UTC,
            unsorted or given twice.
    """
    return _packaged() if not str(path) else _parse(read_table(path, RECORDING, COLUMNS))


@functools.cache
def _packaged() -> Candles:
    """The packaged recording, parsed once in a process: every child of a host that preloads it shares it."""
    return _parse(read_table("", RECORDING, COLUMNS))


def _parse(table: Table) -> Candles:
    candles = Candles()
    before: datetime | None = None
    for line, fields in table.rows:
        candle = (table.plain and _parse_fast(table.columns, fields)) or _parse_checked(table, line, fields)
        if before is not None and candle.timestamp <= before:
            what = "given twice" if candle.timestamp == before else "older than the one before it"
            table.fail(line, "timestamp", f"{candle.timestamp.isoformat()} is {what}, expected a later one")
        before = candle.timestamp
        candles.append(candle)
    return candles


def _parse_fast(columns: dict[str, int], fields: list[str]) -> Candle | None:
    """The row as a candle if everything in it is right. A start waits for this, so it does not describe mistakes."""
    try:
        stamp = datetime.fromisoformat(fields[columns["timestamp"]])
        low, high = float(fields[columns["low"]]), float(fields[columns["high"]])
        first, last = float(fields[columns["open"]]), float(fields[columns["close"]])
        volume = float(fields[columns["volume"]])
    except (ValueError, IndexError):
        return None
    # Chained comparisons with a bound on both sides are false for NaN and the infinities as well.
    if stamp.tzinfo is UTC and 0 < low <= first <= high < math.inf and low <= last <= high and 0 <= volume < math.inf:
        return Candle(stamp, first, high, low, last, volume)
    return None


def _parse_checked(table: Table, line: int, fields: list[str]) -> Candle:
    """The row as a candle, or an error that names what is wrong with it."""
    stamp = table.time(line, fields, "timestamp")
    numbers = {column: table.number(line, fields, column) for column in COLUMNS[1:]}
    for column in ("open", "high", "low", "close"):
        if numbers[column] <= 0:
            table.fail(line, column, f"expected a price of more than 0, not {numbers[column]}")
    if numbers["volume"] < 0:
        table.fail(line, "volume", f"expected 0 or more, not {numbers['volume']}")
    if numbers["high"] < numbers["low"]:
        table.fail(line, "high", f"{numbers['high']} is less than the low of {numbers['low']}")
    for column in ("open", "close"):
        if not numbers["low"] <= numbers[column] <= numbers["high"]:
            outside = f"{numbers[column]} is outside of the candle's low {numbers['low']} and high {numbers['high']}"
            table.fail(line, column, outside)
    return Candle(stamp, **numbers)
