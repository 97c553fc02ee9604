"""The strict reader of CSV files that all recorded feeds share.

A wrong value in a feed becomes a wrong decision much later, so nothing is guessed here: whatever is not exactly as
described raises a DataError that names the file, the line (the first line of the file is 1) and the column.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import NoReturn

from bus.errors import DataError

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_UTC_OFFSET = timedelta(0)


@dataclass(frozen=True, slots=True)
class Table:
    """A CSV file that has been read: the position of each wanted column, and the rows with their line numbers."""

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
            DataError: it is missing, not ISO 8601, or not marked as UTC.
        """
        value = self.text(line, fields, column)
        try:
            stamp = datetime.fromisoformat(value)
        except ValueError:
            stamp = None
        if stamp is None or stamp.utcoffset() != _UTC_OFFSET:
            self.fail(line, column, f"expected ISO 8601 in UTC like 2017-07-01T11:00:00Z, not {value!r}")
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
    for magic, what in OTHER_FORMATS.items():
        if data.startswith(magic):
            raise DataError(name, None, None, f"is {what}, expected CSV, plain or gzipped; unpack or convert it")
    if name.lower().endswith(".gz") or data.startswith(GZIP):  # whatever its name
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
    """Read a CSV file (plain or gzipped), or the packaged one where `path` is empty.

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
    if _NUMBER.fullmatch(header[-1]) or not set(header) & set(columns):
        found = ",".join(header)[:80]
        raise DataError(name, header_line, None, f"is no header ({found}); expected {','.join(columns)} in any order")
    for column in columns:
        if (count := header.count(column)) != 1:
            problem = "missing from the header" if not count else "given twice in the header"
            raise DataError(name, header_line, column, f"{problem}, expected {','.join(columns)} in any order")
    if not rows:
        raise DataError(name, header_line + 1, None, "is empty, expected at least one row after the header")
    for line, fields in rows:
        if len(fields) > len(header):
            raise DataError(name, line, str(len(header) + 1), f"expected {len(header)} values, not {len(fields)}")
    body_is_plain = text.isascii() and "_" not in text
    return Table(name, {column: header.index(column) for column in columns}, rows, body_is_plain)
