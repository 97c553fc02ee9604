"""Recorded hourly candles: the packaged recording, and files of the same form.

The market-data agent (agents/builtin/market_data.py) publishes them at a pace.
"""

from __future__ import annotations

import functools
import hashlib
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import overload

from agents.feeds.candle_cache import (
    BLOCK_BYTES,
    BLOCK_RECORDS,
    DIGEST_BYTES,
    RECORD_BYTES,
    Blocks,
    MemoryBlocks,
    load_blocks,
)
from agents.feeds.csv_reader import Table, open_table

COLUMNS = ("timestamp", "open", "high", "low", "close", "volume")
"""Columns that a candle file must have, in any order; others are ignored."""
RECORDING = "btc-usd-1h.csv.gz"
"""The packaged recording: 20,111 hourly BTC/USD candles, 2017-07-01 to 2019-10-17 (data/NOTICE.md names the source)."""

_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
Row = tuple[datetime, float, float, float, float, float]
"""The fields of a Candle, in their order: 3,000,000 candles would take a third longer to create."""

_RECORD = struct.Struct("<qddddd")
"""Microseconds since 1970, open, high, low, close, volume. RECORD_BYTES long."""


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
    """Candles as records of plain numbers, each candle created when it is requested.

    20,000 of them take 1 MB instead of 5, and reading writes to none of it: a process that was forked with them shares
    their memory. Of the candles in a cache file, one block is in memory.
    """

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._held: tuple[int, bytes] = (-1, b"")

    def prefix(self, block: int) -> list[bytes]:
        """The digests of the blocks before `block`."""
        return self._blocks.digests[:block]

    def block(self, block: int) -> bytes:
        """The records of the block with this index; nothing behind the last one."""
        if block == len(self._blocks.digests):
            return b""
        held, data = self._held
        if block != held:
            data = self._blocks.read(block)
            self._held = block, data
        return data

    def __len__(self) -> int:
        return self._blocks.count

    @overload
    def __getitem__(self, at: int) -> Candle: ...
    @overload
    def __getitem__(self, at: slice) -> list[Candle]: ...
    def __getitem__(self, at: int | slice) -> Candle | list[Candle]:
        if isinstance(at, slice):
            return [self[index] for index in range(*at.indices(len(self)))]
        block, rest = divmod(range(len(self))[at], BLOCK_RECORDS)
        stamp, *numbers = _RECORD.unpack_from(self.block(block), rest * RECORD_BYTES)
        return Candle(_UNIX_EPOCH + stamp * _MICROSECOND, *numbers)


class PrefixDigest:
    """Digests of the beginning of `candles`, at the cost of one block or, if the count grows, of its growth."""

    def __init__(self, candles: Candles) -> None:
        self._candles = candles
        self._start(0)

    def _start(self, block: int) -> None:
        self._block, self._count = block, 0
        self._before = hashlib.blake2b(b"".join(self._candles.prefix(block)), digest_size=8)
        self._last = hashlib.blake2b(digest_size=DIGEST_BYTES)

    def of(self, count: int) -> str:
        """The digest of the first `count` candles."""
        block, rest = divmod(count, BLOCK_RECORDS)
        if block != self._block or rest < self._count:
            self._start(block)
        self._last.update(self._candles.block(block)[self._count * RECORD_BYTES : rest * RECORD_BYTES])
        self._count = rest
        found = self._before.copy()
        found.update(self._last.digest())
        return found.hexdigest()


def load_candles(path: str | Path = "") -> Candles:
    """The candles of a CSV or CSV.gz file, oldest first; of the packaged recording where `path` is empty.

    Raises:
        DataError: as `open_table`; or a value that is missing, not a number or not finite, a price of 0 or less, a
            negative volume, high < low, an open or close outside of both, a timestamp that is not ISO 8601 UTC,
            unsorted or given twice.
    """
    return _packaged() if not str(path) else Candles(load_blocks(Path(path), functools.partial(_parse, path)))


@functools.cache
def _packaged() -> Candles:
    """The packaged recording, parsed once in a process: every child of a host that preloads it shares it."""
    return Candles(MemoryBlocks(functools.partial(_parse, "")))


def _parse(path: str | Path, add: Callable[[bytes], None]) -> int:
    """Pass on the candles of the file as blocks of records; returns how many there are."""
    block = bytearray()
    count = 0
    before: datetime | None = None
    with open_table(path, RECORDING, COLUMNS) as table:
        for line, fields in table.rows:
            plain = table.check.plain
            row = (plain and _parse_fast(table.columns, fields)) or _parse_checked(table, line, fields)
            stamp = row[0]
            if before is not None and stamp <= before:
                what = "given twice" if stamp == before else "older than the one before it"
                table.fail(line, "timestamp", f"{stamp.isoformat()} is {what}, expected a later one")
            before = stamp
            block += _RECORD.pack((stamp - _UNIX_EPOCH) // _MICROSECOND, *row[1:])
            count += 1
            if len(block) == BLOCK_BYTES:
                add(bytes(block))
                block.clear()
    if block:
        add(bytes(block))
    return count


def _parse_fast(columns: dict[str, int], fields: list[str]) -> Row | None:
    """The row if everything in it is right. A start waits for this, so it does not describe mistakes."""
    try:
        stamp = datetime.fromisoformat(fields[columns["timestamp"]])
        low, high = float(fields[columns["low"]]), float(fields[columns["high"]])
        first, last = float(fields[columns["open"]]), float(fields[columns["close"]])
        volume = float(fields[columns["volume"]])
    except (ValueError, IndexError):
        return None
    # Chained comparisons with a bound on both sides are false for NaN and the infinities as well.
    if stamp.tzinfo is UTC and 0 < low <= first <= high < math.inf and low <= last <= high and 0 <= volume < math.inf:
        return stamp, first, high, low, last, volume
    return None


def _parse_checked(table: Table, line: int, fields: list[str]) -> Row:
    """The row, or an error that names what is wrong with it."""
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
    return stamp, numbers["open"], numbers["high"], numbers["low"], numbers["close"], numbers["volume"]
