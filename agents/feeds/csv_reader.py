"""The strict reader of CSV files that all recorded feeds share.

A wrong value in a feed becomes a wrong decision much later, so nothing is guessed here: whatever is not exactly as
described raises a DataError that names the file, the line (the first line of the file is 1) and the column.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import itertools
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn, cast

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

from bus.errors import DataError
from bus.messages import format_value

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_UTC_OFFSET = timedelta(0)


@dataclass(frozen=True, slots=True)
class Table:
    """A CSV file that is being read: the position of each wanted column, and the rows with their line numbers.

    Rows are read as they are requested, once.
    """

    file: str
    columns: dict[str, int]
    rows: Iterator[tuple[int, list[str]]]
    check: TextCheck

    def fail(self, line: int, column: str | None, problem: str) -> NoReturn:
        """Raise the DataError of one cell, or that of a later mistake in the form of the file: it explains more."""
        for _ in self.rows:
            pass
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
            self.fail(line, column, f"expected a finite number, not {format_value(value)}")
        if not _NUMBER.fullmatch(value):
            self.fail(line, column, f"expected a number, not {format_value(value)}")
        number = float(value)
        if not math.isfinite(number):
            self.fail(line, column, f"expected a finite number, {format_value(value)} is too large")
        return number

    def time(self, line: int, fields: list[str], column: str) -> datetime:
        """The cell of `column` as a UTC time.

        Raises:
            DataError: it is missing, not ISO 8601, or not marked as UTC.
        """
        value = self.text(line, fields, column)
        try:
            stamp = datetime.fromisoformat(value)
        except ValueError:
            stamp = None
        if stamp is None or stamp.utcoffset() != _UTC_OFFSET:
            self.fail(line, column, f"expected ISO 8601 in UTC like 2017-07-01T11:00:00Z, not {format_value(value)}")
        return stamp.replace(tzinfo=UTC)


GZIP = b"\x1f\x8b"
OTHER_FORMATS = {
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"\xfd7zXZ\x00": "compressed by xz",
    b"BZh": "compressed by bzip2",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"PAR1": "a Parquet file",
    b"SQLite format 3": "an SQLite database",
    b"\xff\xfe": "in UTF-16",
    b"\xfe\xff": "in UTF-16",
}
"""First bytes of files that people name as data files."""
FIRST_BYTES = max(map(len, OTHER_FORMATS))
CHUNK_BYTES = 1 << 18
"""How much of a file is in memory at a time."""
LONGEST_LINE_BYTES = 1 << 20
"""A line is in memory as a whole, and a small compressed file can hold one of gigabytes."""


_LINE_END = re.compile(rb"[\r\n]")


class TextCheck(io.RawIOBase):
    """The bytes of `source`, which must be UTF-8."""

    def __init__(self, name: str, source: BinaryIO, max_bytes: int | None = None) -> None:
        self._name, self._source, self._max_bytes = name, source, max_bytes
        self._bytes = self._line_bytes = 0
        """Read so far, of the file and of its present line."""
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._lines = 0
        self.plain = True
        """Only ASCII and no underscore so far: then Python's float() accepts no more than a CSV file should contain."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Raises: DataError: not UTF-8, not gzip, too large, or it cannot be read."""
        view = memoryview(buffer).cast("B")
        data = self._read(len(view))
        self._check_size(data)
        if not data.isascii() or b"_" in data:
            self.plain = False
        if not self.plain or not data:
            try:
                self._decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                line = self._lines + error.object.count(b"\n", 0, error.start) + 1
                while self._read(CHUNK_BYTES):  # a file that is damaged as a whole is reported as such
                    pass
                raise DataError(self._name, line, None, f"not UTF-8: byte 0x{error.object[error.start]:02x}") from None
        self._lines += data.count(b"\n")
        view[: len(data)] = data
        return len(data)

    def _check_size(self, data: bytes) -> None:
        self._bytes += len(data)
        if self._max_bytes is not None and self._bytes > self._max_bytes:
            limit = f"{self._max_bytes >> 20} MiB"
            raise DataError(self._name, None, None, f"expected at most {limit} unpacked, it has more; divide the file")
        end = _LINE_END.search(data)
        longest = self._line_bytes + (len(data) if end is None else end.start())
        self._line_bytes = longest if end is None else len(data) - max(data.rfind(b"\n"), data.rfind(b"\r")) - 1
        if longest > LONGEST_LINE_BYTES:  # a longer one inside of `data` does not exist: a chunk is shorter
            problem = f"is longer than {LONGEST_LINE_BYTES} bytes, expected one row a line"
            raise DataError(self._name, self._lines + 1, None, problem)

    def _read(self, count: int) -> bytes:
        try:
            return self._source.read(count)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(self._name, None, None, f"not gzip, though its name ends in .gz: {error}") from None
        except OSError as error:
            raise unreadable(self._name, error) from None


def unreadable(name: str, error: OSError | ValueError) -> DataError:
    """The DataError of a file that cannot be opened or read."""
    if isinstance(error, FileNotFoundError):
        return DataError(name, None, None, "no such file")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return DataError(name, None, None, f"cannot be read: {reason}")


def _unpacked(name: str, file: io.BufferedReader) -> BinaryIO:
    """The contents of `file`, which may be gzipped, whatever its name."""
    try:
        first = file.peek(FIRST_BYTES)
    except OSError as error:
        raise unreadable(name, error) from None
    for magic, what in OTHER_FORMATS.items():
        if first.startswith(magic):
            raise DataError(name, None, None, f"is {what}, expected CSV, plain or gzipped; unpack or convert it")
    if name.lower().endswith(".gz") or first.startswith(GZIP):
        return cast("BinaryIO", gzip.GzipFile(fileobj=file, mode="rb"))
    return file


def _split(name: str, text: io.TextIOWrapper, *, comments: bool) -> Iterator[tuple[int, list[str]]]:
    """The values of each line that is neither empty nor a comment before the header, with its number."""
    lines: Iterator[str] = text
    skipped = 0
    if comments:
        for first in text:
            if not first.startswith("#"):
                lines = itertools.chain([first], text)
                break
            skipped += 1
    reader = csv.reader(lines, strict=True)
    line = skipped
    try:
        for fields in reader:
            if fields:
                yield line + 1, fields  # where it begins: a quoted value may go on for several lines
            line = skipped + reader.line_num
    except csv.Error as error:
        while text.read(CHUNK_BYTES):  # what is wrong with the file as a whole is reported first
            pass
        raise DataError(name, line + 1, None, f"not CSV: {error}") from None


def _checked_length(name: str, rows: Iterator[tuple[int, list[str]]], length: int) -> Iterator[tuple[int, list[str]]]:
    for line, fields in rows:
        if len(fields) > length:
            for _ in rows:
                pass
            raise DataError(name, line, str(length + 1), f"expected {length} values, not {len(fields)}")
        yield line, fields


def _check_header(name: str, line: int, header: list[str], columns: tuple[str, ...]) -> None:
    if _NUMBER.fullmatch(header[-1]) or not set(header) & set(columns):
        found = ",".join(header)[:80]
        raise DataError(name, line, None, f"is no header ({found}); expected {','.join(columns)} in any order")
    for column in columns:
        if (count := header.count(column)) != 1:
            problem = "missing from the header" if not count else "given twice in the header"
            raise DataError(name, line, column, f"{problem}, expected {','.join(columns)} in any order")


@contextlib.contextmanager
def open_table(
    path: str | Path, packaged: str, columns: tuple[str, ...], *, comments: bool = False, max_bytes: int | None = None
) -> Iterator[Table]:
    """Read a CSV file (plain or gzipped), or the packaged one where `path` is empty, row by row.

    The first line is the header; with `comments`, lines before it that begin with '#' are skipped. Empty lines are.
    A line may have LONGEST_LINE_BYTES, the unpacked file `max_bytes`.

    Raises:
        DataError: no such file, not gzip, not UTF-8, empty, too large, a wanted column missing or given twice, more
            values in a row than the header has, or broken quoting. Also from `Table.rows`, as the rows are read.
    """
    name = str(path) or packaged
    source = Path(path) if str(path) else resources.files("agents.feeds").joinpath("data", packaged)
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(cast("io.BufferedReader", source.open("rb")))
        except (OSError, ValueError) as error:  # ValueError: a path with a NUL byte
            raise unreadable(name, error) from None
        check = TextCheck(name, _unpacked(name, file), max_bytes)
        text = io.TextIOWrapper(io.BufferedReader(check, CHUNK_BYTES), encoding="utf-8-sig", newline="")
        rows = _split(name, text, comments=comments)
        header_line, header = next(rows, (0, None))
        if header is None:
            raise DataError(name, None, None, f"is empty, expected a header with {','.join(columns)}")
        header = [column.strip() for column in header]
        try:
            _check_header(name, header_line, header, columns)
        except DataError:
            for _ in rows:
                pass
            raise
        rows = _checked_length(name, rows, len(header))
        if (first := next(rows, None)) is None:
            raise DataError(name, header_line + 1, None, "is empty, expected at least one row after the header")
        rows = itertools.chain([first], rows)
        yield Table(name, {column: header.index(column) for column in columns}, rows, check)
