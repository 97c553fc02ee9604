"""Recorded feeds as CSV files: the strict reader that all of them share, and hourly candles as the first user of it.

A wrong figure in a feed becomes a wrong decision much later, so nothing is guessed here: whatever is not exactly as
described raises a DataError that names the file, the line (the first line of the file is 1) and the column.
Replaying candles at a pace is the business of agents/market_data.py.
"""

from __future__ import annotations

import csv
import functools
import gzip
import io
import math
import re
import zlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import NoReturn, overload

from bus.errors import DataError

COLUMNS = ("timestamp", "open", "high", "low", "close", "volume")
"""Columns that a candle file must have, in any order; others are ignored."""
RECORDING = "btc-usd-1h.csv.gz"
"""The packaged recording: 20,111 hourly BTC/USD candles, 2017-07-01 to 2019-10-17 (data/NOTICE.md says whose)."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_UTC_OFFSET = timedelta(0)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
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
    """Candles in columns of plain numbers, each one made anew when it is asked for.

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
        self._stamps.append((candle.timestamp - _EPOCH) // _MICROSECOND)
        row = (candle.open, candle.high, candle.low, candle.close, candle.volume)
        for column, number in zip(self._numbers, row, strict=True):
            column.append(number)

    def __len__(self) -> int:
        return len(self._stamps)

    @overload
    def __getitem__(self, at: int) -> Candle: ...
    @overload
    def __getitem__(self, at: slice) -> list[Candle]: ...
    def __getitem__(self, at: int | slice) -> Candle | list[Candle]:
        if isinstance(at, slice):
            return [self[index] for index in range(*at.indices(len(self)))]
        return Candle(_EPOCH + self._stamps[at] * _MICROSECOND, *(column[at] for column in self._numbers))


@dataclass(frozen=True, slots=True)
class Table:
    """A CSV file that has been read: where each wanted column stands, and the rows with their line numbers."""

    file: str
    columns: dict[str, int]
    rows: list[tuple[int, list[str]]]
    plain: bool
    """Only ASCII and no underscore in it: then Python's float() accepts no more than a CSV file should contain."""

    def fail(self, line: int, column: str | None, problem: str) -> NoReturn:
        """Raise the DataError of one cell."""
        raise DataError(self.file, line, column, problem)

    def text(self, line: int, fields: list[str], column: str) -> str:
        """The cell of `column`, without blanks around it.

        Raises:
            DataError: it is missing or empty.
        """
        at = self.columns[column]
        value = fields[at].strip() if at < len(fields) else ""
        if not value:
            self.fail(line, column, "missing value")
        return value

    def number(self, line: int, fields: list[str], column: str) -> float:
        """The cell of `column` as a finite number.

        Raises:
            DataError: it is missing, not a number, or not finite.
        """
        value = self.text(line, fields, column)
        if value.lower().lstrip("+-") in ("nan", "inf", "infinity"):
            self.fail(line, column, f"expected a finite number, not {value!r}")
        if not _NUMBER.fullmatch(value):
            self.fail(line, column, f"expected a number, not {value!r}")
        number = float(value)
        if not math.isfinite(number):
            self.fail(line, column, f"expected a finite number, {value!r} is too large")
        return number

    def time(self, line: int, fields: list[str], column: str) -> datetime:
        """The cell of `column` as a UTC time.

        Raises:
            DataError: it is missing, not ISO 8601, or does not say that it is UTC.
        """
        value = self.text(line, fields, column)
        try:
            stamp = datetime.fromisoformat(value)
        except ValueError:
            stamp = None
        if stamp is None or stamp.utcoffset() != _UTC_OFFSET:
            self.fail(line, column, f"expected ISO 8601 in UTC like 2017-07-01T11:00:00Z, not {value!r}")
        return stamp.replace(tzinfo=UTC)


def _read_bytes(path: str | Path, packaged: str) -> tuple[str, bytes]:
    """Name and contents of the file at `path`, or of the packaged one where `path` is empty."""
    name = str(path) or packaged
    try:
        if str(path):
            data = Path(path).read_bytes()
        else:
            data = resources.files("agents.feeds").joinpath("data", packaged).read_bytes()
    except FileNotFoundError:
        raise DataError(name, None, None, "no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL byte
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(name, None, None, f"cannot be read: {reason}") from None
    if name.endswith(".gz"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(name, None, None, f"not gzip, though its name ends in .gz: {error}") from None
    return name, data


def _split(name: str, text: str, *, comments: bool) -> list[tuple[int, list[str]]]:
    """The values of each line that is neither empty nor a comment before the header, with its number."""
    source = io.StringIO(text, newline="")
    skipped = start = 0
    while comments and source.readline().startswith("#"):
        skipped += 1
        start = source.tell()
    source.seek(start)
    reader = csv.reader(source, strict=True)
    rows: list[tuple[int, list[str]]] = []
    line = skipped
    try:
        for fields in reader:
            if fields:
                rows.append((line + 1, fields))  # where it begins: a quoted value may go on for several lines
            line = skipped + reader.line_num
    except csv.Error as error:
        raise DataError(name, line + 1, None, f"not CSV: {error}") from None
    return rows


def read_table(path: str | Path, packaged: str, columns: tuple[str, ...], *, comments: bool = False) -> Table:
    """Read a CSV file (gzipped if its name ends in .gz), or the packaged one where `path` is empty.

    The first line is the header; with `comments`, lines before it that begin with '#' are skipped. Empty lines are.

    Raises:
        DataError: no such file, not gzip, not UTF-8, empty, a wanted column missing or given twice, more values in a
            row than the header has, or broken quoting.
    """
    name, data = _read_bytes(path, packaged)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(name, line, None, f"not UTF-8: byte 0x{data[error.start]:02x}") from None
    rows = _split(name, text, comments=comments)
    if not rows:
        raise DataError(name, None, None, f"is empty, expected a header with {','.join(columns)}")
    header_line, header = rows.pop(0)
    header = [column.strip() for column in header]
    for column in columns:
        if (count := header.count(column)) != 1:
            problem = "missing from the header" if not count else "stands in the header twice"
            raise DataError(name, header_line, column, f"{problem}, expected {','.join(columns)} in any order")
    if not rows:
        raise DataError(name, header_line + 1, None, "is empty, expected at least one row after the header")
    for line, fields in rows:
        if len(fields) > len(header):
            raise DataError(name, line, str(len(header) + 1), f"expected {len(header)} values, not {len(fields)}")
    body_is_plain = text.isascii() and "_" not in text
    return Table(name, {column: header.index(column) for column in columns}, rows, body_is_plain)


def load_candles(path: str | Path = "") -> Candles:
    """The candles of a CSV or CSV.gz file, oldest first; of the packaged recording where `path` is empty.

    Raises:
        DataError: as `read_table`; or a value that is missing, not a number or not finite, a price of 0 or less, a
            negative volume, high < low, a timestamp that is not ISO 8601 UTC, unsorted or given twice.
    """
    return _packaged() if not str(path) else _parse(read_table(path, RECORDING, COLUMNS))


@functools.cache
def _packaged() -> Candles:
    """The packaged recording, parsed once in a process: a host that preloads it hands it to every child it forks."""
    return _parse(read_table("", RECORDING, COLUMNS))


def _parse(table: Table) -> Candles:
    candles = Candles()
    before: datetime | None = None
    for line, fields in table.rows:
        candle = (table.plain and _quick(table.columns, fields)) or _careful(table, line, fields)
        if before is not None and candle.timestamp <= before:
            what = "given twice" if candle.timestamp == before else "older than the one before it"
            table.fail(line, "timestamp", f"{candle.timestamp.isoformat()} is {what}, expected a later one")
        before = candle.timestamp
        candles.append(candle)
    return candles


def _quick(columns: dict[str, int], fields: list[str]) -> Candle | None:
    """The row as a candle if everything in it is right. A start waits for this, so it finds no words for mistakes."""
    try:
        stamp = datetime.fromisoformat(fields[columns["timestamp"]])
        low, high = float(fields[columns["low"]]), float(fields[columns["high"]])
        first, last = float(fields[columns["open"]]), float(fields[columns["close"]])
        volume = float(fields[columns["volume"]])
    except (ValueError, IndexError):
        return None
    # Chained comparisons with a bound on both sides are false for NaN and the infinities as well.
    if (
        stamp.tzinfo is UTC
        and 0 < low <= high < math.inf
        and 0 < first < math.inf
        and 0 < last < math.inf
        and 0 <= volume < math.inf
    ):
        return Candle(stamp, first, high, low, last, volume)
    return None


def _careful(table: Table, line: int, fields: list[str]) -> Candle:
    """The row as a candle, or the error that says what is wrong with it."""
    stamp = table.time(line, fields, "timestamp")
    numbers = {column: table.number(line, fields, column) for column in COLUMNS[1:]}
    for column in ("open", "high", "low", "close"):
        if numbers[column] <= 0:
            table.fail(line, column, f"expected a price of more than 0, not {numbers[column]}")
    if numbers["volume"] < 0:
        table.fail(line, "volume", f"expected 0 or more, not {numbers['volume']}")
    if numbers["high"] < numbers["low"]:
        table.fail(line, "high", f"{numbers['high']} is less than the low of {numbers['low']}")
    return Candle(stamp, **numbers)
