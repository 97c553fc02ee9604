"""The strict CSV reader, by the candles that it reads."""

from __future__ import annotations

import gzip
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from agents.feeds.candles import Candle, load_candles
from bus.errors import EXIT_USAGE, DataError

HEADER = "timestamp,open,high,low,close,volume"
FIRST = "2017-07-01T11:00:00Z,2505.56,2513.38,2495.12,2509.17,114.6"
SECOND = "2017-07-01T12:00:00Z,2509.17,2512.87,2484.99,2488.43,157.36"


def write(tmp_path, *lines):
    path = tmp_path / "candles.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_packaged_recording_is_whole():
    candles = load_candles()
    assert len(candles) == 20_111
    assert candles[0] == Candle(datetime(2017, 7, 1, 11, tzinfo=UTC), 2505.56, 2513.38, 2495.12, 2509.17, 114.6)
    assert candles[-1].timestamp == datetime(2019, 10, 17, 9, tzinfo=UTC)
    steps = {after.timestamp - before.timestamp for before, after in pairwise(candles)}
    assert steps == {timedelta(hours=1)}


def test_packaged_recording_is_read_once():
    assert load_candles() is load_candles("")


def test_they_are_a_sequence(tmp_path):
    stamps = [datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), datetime(2024, 2, 29, 1, 2, 3, 4, tzinfo=UTC)]
    rows = [Candle(stamp, 1.1, 2.2, 0.1 + 0.2, 1e-300 + 1, 5e300) for stamp in stamps]
    lines = [f"{row.timestamp.isoformat()},{row.open},{row.high},{row.low},{row.close},{row.volume}" for row in rows]
    candles = load_candles(write(tmp_path, HEADER, *lines))
    assert [*candles] == [candles[0], candles[-1]] == candles[:5] == rows
    assert candles[0].timestamp.tzinfo is UTC
    assert (len(candles), rows[1] in candles, candles.index(rows[1])) == (2, True, 1)
    with pytest.raises(IndexError):
        candles[2]


def test_columns_in_any_order_with_others_between(tmp_path):
    path = write(tmp_path, "note,volume,close,low,high,open,timestamp", "x,5,2,1,4,3,2020-01-01T00:00:00+00:00")
    assert [*load_candles(path)] == [Candle(datetime(2020, 1, 1, tzinfo=UTC), 3, 4, 1, 2, 5)]


def test_gzip_bom_crlf_and_empty_lines(tmp_path):
    path = tmp_path / "candles.csv.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + f"{HEADER}\r\n\r\n{FIRST}\r\n{SECOND}\r\n".encode()))
    assert [candle.close for candle in load_candles(str(path))] == [2509.17, 2488.43]


def test_signs_exponents_and_zero_volume(tmp_path):
    path = write(tmp_path, HEADER, "2020-01-01T00:00:00Z,+1.5,2e3,.5,7.,0")
    assert [*load_candles(path)] == [Candle(datetime(2020, 1, 1, tzinfo=UTC), 1.5, 2000.0, 0.5, 7.0, 0.0)]


@pytest.mark.parametrize(
    ("lines", "line", "column", "problem"),
    [
        (["timestamp,open,high,low,close", FIRST], 1, "volume", "missing from the header"),
        ([FIRST], 1, None, "is no header"),
        ([HEADER, "2017-07-01T12:00:00Z,5,4,1,2,1"], 2, "open", "5.0 is outside of the candle's low 1.0 and high 4.0"),
        ([HEADER, "2017-07-01T12:00:00Z,3,4,2,1.5,1"], 2, "close", "1.5 is outside"),
        ([HEADER + ",low", FIRST], 1, "low", "twice"),
        ([HEADER], 2, None, "empty"),
        ([HEADER, FIRST, "2017-07-01T12:00:00Z,1,1,1,1"], 3, "volume", "missing value"),
        ([HEADER, "2017-07-01T12:00:00Z,1,,1,1,1"], 2, "high", "missing value"),
        ([HEADER, ",1,1,1,1,1"], 2, "timestamp", "missing value"),
        ([HEADER, FIRST, "", "2017-07-01T12:00:00Z,1,1,1,one,1"], 4, "close", "expected a number"),
        ([HEADER, "2017-07-01T12:00:00Z,1_0,10,10,10,1"], 2, "open", "expected a number"),
        ([HEADER, "2017-07-01T12:00:00Z,٣,10,1,10,1"], 2, "open", "expected a number"),
        ([HEADER, "2017-07-01T12:00:00Z,1,1,1,nan,1"], 2, "close", "finite"),
        ([HEADER, "2017-07-01T12:00:00Z,1,inf,1,1,1"], 2, "high", "finite"),
        ([HEADER, "2017-07-01T12:00:00Z,1,1,1,1,1e999"], 2, "volume", "finite"),
        ([HEADER, "2017-07-01T12:00:00Z,0,1,1,1,1"], 2, "open", "more than 0"),
        ([HEADER, "2017-07-01T12:00:00Z,1,1,-1,1,1"], 2, "low", "more than 0"),
        ([HEADER, "2017-07-01T12:00:00Z,1,1,1,1,-0.1"], 2, "volume", "0 or more"),
        ([HEADER, "2017-07-01T12:00:00Z,1,1,2,1,1"], 2, "high", "less than the low"),
        ([HEADER, SECOND, FIRST], 3, "timestamp", "older"),
        ([HEADER, FIRST, FIRST], 3, "timestamp", "twice"),
        ([HEADER, "2017-07-01T12:00:00,1,1,1,1,1"], 2, "timestamp", "UTC"),
        ([HEADER, "2017-07-01T12:00:00+02:00,1,1,1,1,1"], 2, "timestamp", "UTC"),
        ([HEADER, "1498910400,1,1,1,1,1"], 2, "timestamp", "ISO 8601"),
        ([HEADER, "yesterday,1,1,1,1,1"], 2, "timestamp", "ISO 8601"),
        ([HEADER, FIRST + ",7"], 2, "7", "expected 6 values"),
        ([HEADER, FIRST, '"2017'], 3, None, "not CSV"),
        (["# no comments here", HEADER, FIRST], 1, None, "is no header"),
    ],
)
def test_mistakes_name_file_line_and_column(tmp_path, lines, line, column, problem):
    path = write(tmp_path, *lines)
    with pytest.raises(DataError, match=problem) as caught:
        load_candles(path)
    error = caught.value
    assert (error.file, error.line, error.column) == (str(path), line, column)
    assert error.exit_code == EXIT_USAGE


@pytest.mark.parametrize(
    ("name", "data", "line", "problem"),
    [
        ("a.csv", b"", None, "empty"),
        ("a.csv", b"\n\n", None, "empty"),
        ("a.csv.gz", gzip.compress(b"", mtime=0), None, "empty"),
        ("a.csv.gz", HEADER.encode(), None, "not gzip"),
        ("a.csv.gz", gzip.compress(FIRST.encode(), mtime=0)[:-9], None, "not gzip"),
        ("a.csv.gz", gzip.compress(FIRST.encode(), mtime=0)[:10] + b"\xff" * 20, None, "not gzip"),
        ("a.csv", f"{HEADER}\n{FIRST}\n".encode() + b"\xff\n", 3, "not UTF-8"),
        ("a.csv", b"PK\x03\x04rest", None, "is a zip archive"),
        ("a.csv.zst", b"\x28\xb5\x2f\xfdrest", None, "compressed by zstd"),
        ("a.csv", f"{HEADER}\n".encode("utf-16"), None, "in UTF-16"),
        ("a.CSV.GZ", HEADER.encode(), None, "not gzip"),
    ],
)
def test_files_that_are_none(tmp_path, name, data, line, problem):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=problem) as caught:
        load_candles(path)
    assert (caught.value.file, caught.value.line, caught.value.column) == (str(path), line, None)


def test_no_such_file_and_a_directory(tmp_path):
    with pytest.raises(DataError, match="no such file") as caught:
        load_candles(tmp_path / "none.csv")
    assert caught.value.file == str(tmp_path / "none.csv")
    with pytest.raises(DataError, match="cannot be read"):
        load_candles(tmp_path)


@pytest.mark.parametrize("name", ["a.csv.GZ", "a.csv", "a"])
def test_gzip_is_read_whatever_its_name(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(f"{HEADER}\n{FIRST}\n".encode()))
    assert len(load_candles(path)) == 1


GOOD_GZIP = gzip.compress("\n".join([HEADER, FIRST, SECOND.replace("12:00", "10:00")]).encode(), mtime=0)


@pytest.mark.parametrize(
    ("data", "line", "column", "problem"),
    [
        (GOOD_GZIP, 3, "timestamp", "older"),
        (GOOD_GZIP[:-8] + bytes(8), None, None, "not gzip.*CRC"),
        (f"{HEADER}\n{FIRST}\n{FIRST}\n{SECOND}\n".encode() + b"\xc3", 5, None, "not UTF-8: byte 0xc3"),
        (f'{HEADER}\n{FIRST}\n{FIRST}\n"'.encode(), 4, None, "not CSV"),
        (f"{HEADER}\n{FIRST}\n{FIRST}\n{SECOND},7\n".encode(), 4, "7", "expected 6 values"),
        (f'{HEADER}\n{FIRST},7\n{FIRST}\n"'.encode(), 4, None, "not CSV"),
        (f'{FIRST}\n{SECOND}\n"'.encode(), 3, None, "not CSV"),
        (f'{HEADER}\n"x"y\n'.encode() + b"\xff", 3, None, "not UTF-8: byte 0xff"),
        (f"{HEADER}\n{FIRST.replace('Z', 'é')}\n".encode() + b"\xe2\x82", 3, None, "not UTF-8: byte 0xe2"),
    ],
)
def test_of_several_mistakes_that_of_the_form_is_reported(tmp_path, data, line, column, problem):
    path = tmp_path / "candles.csv"
    path.write_bytes(data)
    with pytest.raises(DataError, match=problem) as caught:
        load_candles(path)
    assert (caught.value.line, caught.value.column) == (line, column)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("note", ["", "é", "_"])
def test_files_longer_than_a_chunk(tmp_path, end, note):
    """A character, a line end or a quoted value may lie on the border between two chunks."""
    start = datetime(2020, 1, 1, tzinfo=UTC)
    rows = []
    for hour in range(10_000):
        stamp = (start + timedelta(hours=hour)).isoformat()
        rows.append(f'{stamp},{hour + 2},{hour + 3},1,{hour + 2.5},0,"{note * (hour % 7)}{end}"')
    path = tmp_path / "candles.csv"
    path.write_bytes(end.join([HEADER + ",note", *rows, "x"]).encode())
    with pytest.raises(DataError, match="not 'x'") as caught:
        load_candles(path)
    assert caught.value.line == 20_002
    path.write_bytes(end.join([HEADER + ",note", *rows]).encode())
    assert [candle.open for candle in load_candles(path)] == [hour + 2 for hour in range(10_000)]
