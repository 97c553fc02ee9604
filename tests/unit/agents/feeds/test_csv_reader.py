"""Small compressed files that unpack to large ones: refused in bounded memory."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.feeds.csv_reader import LONGEST_LINE_BYTES, open_table
from agents.feeds.headlines import MAX_BYTES, load_headlines
from bus.errors import DataError

MIB = 1 << 20
MOST_MEMORY = 16 * MIB


def write_bomb(path: Path, header: bytes, piece: bytes, pieces: int) -> Path:
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header)
        for _ in range(pieces):
            file.write(piece)
    return path


@pytest.fixture
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()


def read(path: Path) -> None:
    with open_table(path, "", ("a", "b")) as table:
        for _ in table.rows:
            pass


@pytest.mark.slow
@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("piece", [b"x" * MIB, b"\0" * MIB, b'"' * MIB, b"," * MIB, b'"' + b"x" * (MIB - 1)])
def test_a_line_without_end_is_refused_in_little_memory(tmp_path, piece):
    bomb = write_bomb(tmp_path / "bomb.csv.gz", b"a,b\n1,2\n", piece, 200)
    assert bomb.stat().st_size < 2 * MIB
    with pytest.raises(DataError, match=f"line 3: is longer than {LONGEST_LINE_BYTES} bytes"):
        read(bomb)
    with pytest.raises(DataError, match="line 1: is longer than"):
        read(write_bomb(tmp_path / "header.csv.gz", b"a,b", piece, 200))


@pytest.mark.usefixtures("little_memory")
def test_a_quoted_value_without_end_is_refused_in_little_memory(tmp_path):
    with pytest.raises(DataError, match="not CSV: field larger than"):
        read(write_bomb(tmp_path / "bomb.csv.gz", b'a,b\n1,"', b"x\n" * (MIB // 2), 50))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_long_lines_and_many_lines_are_read(tmp_path, end):
    long = "x" * 100_000
    (tmp_path / "long.csv").write_text("a,b" + end + f"{long},1{end}" * 30, newline="")
    with open_table(tmp_path / "long.csv", "", ("a", "b")) as table:
        assert len([fields for _, fields in table.rows if fields[0] == long]) == 30


@pytest.mark.slow
def test_headlines_of_a_small_file_that_unpacks_to_a_large_one_are_refused(tmp_path):
    with gzip.open(tmp_path / "bomb.csv.gz", "wb", compresslevel=1) as file:
        file.write(b"date,symbols,text\n")
        for number in range(MAX_BYTES // 100_000 + 2):
            file.write(b"2017-08-01,BTC/USD,%d" % number + b"x" * 100_000 + b"\n")
    with pytest.raises(DataError, match="at most 64 MiB unpacked"):
        load_headlines(tmp_path / "bomb.csv.gz")
