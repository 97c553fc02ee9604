"""Candles from the cache equal those that were parsed, whatever happens to the cache, its source and its writers."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.feeds import candle_cache
from agents.feeds import candles as candles_module
from agents.feeds.candle_cache import (
    BLOCK_BYTES,
    BLOCK_RECORDS,
    CACHE_VARIABLE,
    RECORD_BYTES,
    CacheDamaged,
    MemoryBlocks,
    load_blocks,
)
from agents.feeds.candles import Candle, Candles, PrefixDigest, load_candles
from bus.errors import DataError

HEADER = "timestamp,open,high,low,close,volume"
START = datetime(2020, 1, 1, tzinfo=UTC)
COUNT = 2 * BLOCK_RECORDS + 100
IN_PLACE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
"""Each example replaces the files of the one before, on a machine that may be busy."""


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's directory, for sources of any size and age."""
    path = tmp_path / "state" / "cache"
    monkeypatch.setenv(CACHE_VARIABLE, str(path))
    monkeypatch.setattr(candle_cache, "LEAST_SOURCE_BYTES", 0)
    monkeypatch.setattr(candle_cache, "SETTLED_NS", 0)
    return path


def write(path: Path, count: int = COUNT, volume: float = 1.5) -> Path:
    rows = [
        f"{(START + timedelta(minutes=at)).isoformat()},{at + 2},{at + 3},1,{at + 2.25},{volume}" for at in range(count)
    ]
    before = path.stat().st_ctime_ns if path.exists() else 0
    path.write_text("\n".join([HEADER, *rows, ""]))
    while path.stat().st_ctime_ns == before:  # the clock of the file system has not ticked
        path.touch()
    return path


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The sources that were parsed since."""
    found: list[Path] = []

    class Cache(candle_cache._Cache):
        def fill(self) -> candle_cache.FileBlocks:
            found.append(self._source)
            return super().fill()

    monkeypatch.setattr(candle_cache, "_Cache", Cache)
    return found


def only(directory: Path) -> Path:
    [path] = directory.iterdir()
    return path


numbers = st.floats(min_value=0, exclude_min=True, allow_infinity=False)


@settings(max_examples=60, deadline=None, suppress_health_check=IN_PLACE)
@given(st.lists(st.tuples(st.datetimes(), st.lists(numbers, min_size=5, max_size=5)), min_size=1, max_size=30))
def test_every_bit_of_every_value_is_kept(tmp_path: Path, rows: list[tuple[datetime, list[float]]]):
    expected = []
    for stamp, values in sorted(dict(rows).items()):
        low, first, last, high = sorted(values[:4])
        expected.append(Candle(stamp.replace(tzinfo=UTC), first, high, low, last, values[4]))
    lines = [f"{c.timestamp.isoformat()},{c.open!r},{c.high!r},{c.low!r},{c.close!r},{c.volume!r}" for c in expected]
    path = tmp_path / "candles.csv"
    path.write_text("\n".join([HEADER, *lines]))
    assert [*load_candles(path)] == expected
    assert [*load_candles(path)] == expected


@pytest.mark.parametrize("count", [1, BLOCK_RECORDS - 1, BLOCK_RECORDS, BLOCK_RECORDS + 1, COUNT])
def test_the_second_start_does_not_parse(tmp_path: Path, directory: Path, parsed: list[Path], count: int):
    path = write(tmp_path / "candles.csv", count)
    first = load_candles(path)
    second = load_candles(path)
    assert parsed == [path]
    assert len(first) == len(second) == count
    assert [*first] == [*second]
    assert second[-1] == Candle(START + timedelta(minutes=count - 1), count + 1, count + 2, 1, count + 1.25, 1.5)
    assert only(directory).stat().st_mode & 0o777 == 0o600


def test_a_changed_source_is_parsed_again_also_if_its_times_and_size_are_the_same(tmp_path: Path, parsed: list[Path]):
    path = write(tmp_path / "candles.csv")
    about = path.stat()
    assert load_candles(path)[0].volume == 1.5
    write(path, volume=2.5)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    while path.stat().st_ctime_ns == about.st_ctime_ns:
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (about.st_size, about.st_mtime_ns)
    assert load_candles(path)[0].volume == 2.5
    assert len(parsed) == 2


def test_a_source_with_the_same_bytes_is_not_parsed_again(tmp_path: Path, directory: Path, parsed: list[Path]):
    path = write(tmp_path / "candles.csv")
    expected = [*load_candles(path)]
    write(path)
    before = only(directory).stat().st_ino
    assert [*load_candles(path)] == expected
    assert only(directory).stat().st_ino != before  # its state is noted: no digest next time
    before = only(directory).stat().st_ino
    assert [*load_candles(path)] == expected
    assert only(directory).stat().st_ino == before
    assert len(parsed) == 1


def test_a_source_that_was_just_written_is_recognised_by_its_bytes(
    tmp_path: Path, parsed: list[Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(candle_cache, "SETTLED_NS", 3600 * 10**9)
    path = write(tmp_path / "candles.csv")
    state = candle_cache.SourceState.of(path.stat())
    assert [*load_candles(path)] == [*load_candles(path)]
    assert len(parsed) == 1
    write(path, volume=2.5)
    monkeypatch.setattr(candle_cache.SourceState, "of", lambda _: state)  # a clock that has not ticked since
    assert load_candles(path)[0].volume == 2.5


@settings(max_examples=60, deadline=None, suppress_health_check=IN_PLACE)
@given(data=st.data())
def test_a_damaged_cache_is_replaced(tmp_path: Path, directory: Path, data: st.DataObject):
    path = tmp_path / "candles.csv"
    if not path.exists():
        write(path)
    expected = [*load_candles(path)]
    file = only(directory)
    content = file.read_bytes()
    end = st.integers(COUNT * RECORD_BYTES, len(content) - 1)  # where the digests and the footer are
    at = data.draw(st.integers(0, len(content) - 1) | end)
    damaged = data.draw(
        st.sampled_from(
            [
                content[:at],
                content[:at] + bytes([content[at] ^ data.draw(st.integers(1, 255))]) + content[at + 1 :],
                content[:at] + b"\0" * (len(content) - at),
                content + content[at:],
                content[:at] + content[at + RECORD_BYTES :],
            ]
        )
    )
    replaced = file.with_suffix(".new")
    replaced.write_bytes(damaged)
    replaced.chmod(0o600)
    replaced.replace(file)
    try:
        found = [*load_candles(path)]
    except CacheDamaged:  # a block is checked when it is read; then the next process reads the source
        found = [*load_candles(path)]
    assert found == expected
    assert only(directory).read_bytes()[: COUNT * RECORD_BYTES] == content[: COUNT * RECORD_BYTES]


def test_damage_while_it_is_read_is_named_and_the_next_process_reads_the_source(
    tmp_path: Path, directory: Path, parsed: list[Path]
):
    path = write(tmp_path / "candles.csv")
    expected = [*without_cache(path)]
    candles = load_candles(path)
    assert candles[0] == expected[0]
    with only(directory).open("r+b") as file:
        file.truncate(BLOCK_RECORDS * RECORD_BYTES)
    with pytest.raises(CacheDamaged, match=rf"{path}: its cache {only(directory)} is damaged: it was removed"):
        candles[BLOCK_RECORDS]
    assert [*load_candles(path)] == expected
    assert len(parsed) == 2


def test_a_damaged_cache_that_cannot_be_removed_is_named_with_the_reason(
    tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
):
    candles = load_candles(write(tmp_path / "candles.csv"))
    with only(directory).open("r+b") as file:
        file.truncate(0)

    def unlink(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(CacheDamaged, match=r"is damaged: remove it \(Read-only file system\)"):
        candles[0]


def without_cache(path: Path) -> Candles:
    return Candles(MemoryBlocks(functools.partial(candles_module._parse, path)))


@pytest.mark.parametrize("how", ["no directory", "open to others", "a link", "an old version"])
def test_a_cache_that_cannot_be_trusted_or_written_is_done_without(
    tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch, how: str
):
    path = write(tmp_path / "candles.csv")
    expected = [*load_candles(path)]
    write(path, volume=2.5)
    new = [*load_candles(path)]
    assert new != expected
    file = only(directory)
    if how == "no directory":
        (tmp_path / "file").touch()
        monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    elif how == "open to others":
        forge(file, path, expected)
        file.chmod(0o666)
    elif how == "a link":
        forge(file, path, expected)
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    else:
        forge(file, path, expected)
        file.write_bytes(file.read_bytes()[:-1] + b"0")
    assert [*load_candles(path)] == new


def forge(file: Path, path: Path, candles: list[Candle]) -> None:
    """A sound cache file of `path`, but with other candles."""
    content = path.read_text()
    other = write(path.with_name("other.csv"))
    load_candles(other)
    [created] = [found for found in file.parent.iterdir() if found != file]
    with created.open("rb") as opened:
        footer = candle_cache._read_footer(opened)
    assert footer is not None
    state = candle_cache.SourceState.of(path.stat())
    forged = msgspec.structs.replace(footer[0], source=state, read_ns=2**62)
    records = created.read_bytes()[: len(candles) * RECORD_BYTES]
    file.write_bytes(records + candle_cache._encode_footer(forged, footer[1]))
    created.unlink()
    other.unlink()
    assert path.read_text() == content
    assert [*load_candles(path)] == candles  # such a file is believed, if nothing else is wrong with it


def test_small_files_and_pipes_are_not_cached(tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path / "candles.csv", 5)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=[path.read_bytes()])
    writer.start()
    assert len(load_candles(pipe)) == 5
    writer.join()
    monkeypatch.setattr(candle_cache, "LEAST_SOURCE_BYTES", 1 << 20)
    assert len(load_candles(path)) == 5
    assert not directory.exists()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({CACHE_VARIABLE: "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({CACHE_VARIABLE: "", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/signalmesh"),
        ({CACHE_VARIABLE: "", "XDG_CACHE_HOME": "b", "HOME": "/c"}, "/c/.cache/signalmesh"),
        ({CACHE_VARIABLE: "", "XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/signalmesh"),
    ],
)
def test_where_it_is(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert candle_cache.cache_directory() == Path(expected)


def test_a_mistake_leaves_no_file(tmp_path: Path, directory: Path):
    path = write(tmp_path / "candles.csv")
    path.write_text(path.read_text() + "yesterday,1,1,1,1,1\n")
    with pytest.raises(DataError) as caught:
        load_candles(path)
    assert (caught.value.file, caught.value.line, caught.value.column) == (str(path), COUNT + 2, "timestamp")
    assert [*directory.iterdir()] == []


def test_a_source_that_is_changed_while_it_is_read_is_not_cached(tmp_path: Path, directory: Path):
    path = write(tmp_path / "candles.csv")

    def parse(add: Callable[[bytes], None]) -> int:
        add(bytes(RECORD_BYTES))
        write(path, volume=2.5)
        return 1

    assert load_blocks(path, parse).read(0) == bytes(RECORD_BYTES)
    assert [*directory.iterdir()] == []
    assert load_candles(path)[0].volume == 2.5


def test_another_start_while_it_is_written(tmp_path: Path, directory: Path):
    path = write(tmp_path / "candles.csv")
    during: list[Candle] = []

    def parse(add: Callable[[bytes], None]) -> int:
        add(bytes(BLOCK_BYTES))
        during.extend(load_candles(path))
        assert len([*directory.iterdir()]) == 2  # the other one has not removed the file of this one
        add(bytes(RECORD_BYTES))
        return BLOCK_RECORDS + 1

    assert load_blocks(path, parse).read(1) == bytes(RECORD_BYTES)
    assert during == [*without_cache(path)]
    only(directory)


def run(code: str, path: Path, **options: Any) -> subprocess.Popen[str]:
    """A process with this code, and the cache's module set up as here."""
    prefix = "import os, sys\nfrom pathlib import Path\nfrom agents.feeds import candle_cache, candles\n"
    prefix += "candle_cache.LEAST_SOURCE_BYTES = 0\n"
    return subprocess.Popen([sys.executable, "-c", prefix + code, path], stdout=subprocess.PIPE, text=True, **options)


def test_several_processes_start_at_once(tmp_path: Path, directory: Path):
    path = write(tmp_path / "candles.csv")
    code = """
print("imported", flush=True)
sys.stdin.readline()
found = candles.load_candles(sys.argv[1])
print(len(found), candles.PrefixDigest(found).of(len(found)), sum(candle.close for candle in found))
"""
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(run(code, path, stdin=subprocess.PIPE)) for _ in range(3)]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "imported\n"
        found = without_cache(path)
        expected = f"{COUNT} {PrefixDigest(found).of(COUNT)} {sum(candle.close for candle in found)}\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        assert [process.communicate()[0] for process in processes] == [expected] * 3
    only(directory)


def test_a_killed_writer_leaves_nothing_that_is_read_or_stays(tmp_path: Path, directory: Path):
    path = write(tmp_path / "candles.csv")
    code = """
def parse(add):
    for _ in range(100):
        add(bytes(candle_cache.BLOCK_BYTES))
    os.kill(os.getpid(), 9)
candle_cache.load_blocks(Path(sys.argv[1]), parse)
"""
    with run(code, path) as process:
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    left = only(directory)
    assert left.suffix != ".candles"
    assert [*load_candles(path)] == [*without_cache(path)]
    assert only(directory) != left


def test_a_full_disk_only_costs_the_cache(tmp_path: Path, directory: Path):
    path = write(tmp_path / "candles.csv")
    code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
print(sum(candle.close for candle in candles.load_candles(sys.argv[1])))
"""
    with run(code, path, stderr=subprocess.DEVNULL) as process:
        out, _ = process.communicate()
    assert out.splitlines()[-1] == str(sum(candle.close for candle in without_cache(path)))
    assert [*directory.iterdir()] == []


def test_memory_does_not_grow_with_the_file(tmp_path: Path):
    """150,000 rows of text would take some 140 MB."""
    path = write(tmp_path / "candles.csv", 150_000)
    code = """
def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
before = peak()
found = candles.load_candles(sys.argv[1])
assert found[149_999].open == 150_001.0 and candles.PrefixDigest(found).of(149_000)
print(peak() - before)
"""
    with run(code, path) as process:
        out, _ = process.communicate()
    assert int(out) < 10_000, "kB"


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=IN_PLACE)
@given(counts=st.lists(st.integers(0, COUNT) | st.sampled_from([BLOCK_RECORDS, 2 * BLOCK_RECORDS]), max_size=6))
def test_a_digest_depends_on_the_candles_before_alone(tmp_path: Path, counts: list[int]):
    path = tmp_path / "candles.csv"
    if not path.exists():
        write(path)
        write(path.with_name("longer.csv"), COUNT + 1500)
    digest = PrefixDigest(load_candles(path))
    for count in counts:
        found = digest.of(count)
        assert found == PrefixDigest(without_cache(path.with_name("longer.csv"))).of(count)
        assert (found == digest.of(count + 1 if count < COUNT else 0)) is False


@pytest.mark.parametrize("line", [1, BLOCK_RECORDS, BLOCK_RECORDS + 1, COUNT - 1])
def test_a_digest_shows_a_revised_candle(tmp_path: Path, line: int):
    before = PrefixDigest(load_candles(write(tmp_path / "candles.csv")))
    lines = (tmp_path / "candles.csv").read_text().splitlines()
    lines[line] = lines[line].replace(",1.5", ",1.25")
    (tmp_path / "other.csv").write_text("\n".join(lines))
    after = PrefixDigest(load_candles(tmp_path / "other.csv"))
    assert before.of(line - 1) == after.of(line - 1)
    assert before.of(line) != after.of(line)
    assert before.of(COUNT) != after.of(COUNT)
