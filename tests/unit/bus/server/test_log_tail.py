"""What a nats-server appends to its log is read once, in whole lines, also after it has begun another file."""

from __future__ import annotations

from pathlib import Path

from bus.server import log_tail as module
from bus.server.log_tail import LogTail


def append(file: Path, text: str) -> None:
    with file.open("a") as log:
        log.write(text)


def test_it_begins_at_the_end_and_follows_another_file(tmp_path: Path):
    file = tmp_path / "nats.log"
    append(file, "before\n")
    tail = LogTail(file)
    assert tail.lines() == []
    append(file, "one\ntwo\n")
    assert tail.lines() == [b"one", b"two"]
    assert tail.lines() == []
    append(file, "last\n")
    file.rename(tmp_path / "nats.log.1")
    assert (tail.lines(), tail.skipped) == ([b"last"], True)
    append(file, "three\n")
    assert tail.lines() == [b"three"]
    file.write_text("")
    append(file, "4\n")
    assert tail.lines() == [b"4"]


def test_another_reader_goes_on_at_the_place_that_was_reached_also_in_a_renamed_file(tmp_path: Path):
    file = tmp_path / "nats.log"
    append(file, "one\n")
    tail = LogTail(file, (0, 0))
    assert tail.lines() == [b"one"]
    append(file, "two\nhalf")
    assert tail.lines() == [b"two"]
    place = tail.place
    append(file, " a line\n")
    file.rename(tmp_path / "nats.log.2026.12.01")
    append(file, "new\n")
    again = LogTail(file, place)
    assert again.lines() == [b"half a line", b"new"]
    assert LogTail(file, again.place).lines() == []
    (tmp_path / "nats.log.2026.12.01").unlink()
    assert LogTail(file, place).lines() == [b"new"]


def test_a_log_that_is_begun_later_is_read_from_its_begin(tmp_path: Path):
    tail = LogTail(tmp_path / "nats.log")
    assert tail.lines() == []
    append(tmp_path / "nats.log", "first\n")
    assert (tail.lines(), tail.skipped) == ([b"first"], False)


def test_a_line_in_two_pieces_is_one_and_a_log_that_grows_without_end_is_bounded(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "MAX_READ_BYTES", 4096)
    file = tmp_path / "nats.log"
    tail = LogTail(file)
    append(file, "half")
    assert tail.lines() == []
    append(file, " a line\n")
    assert tail.lines() == [b"half a line"]
    for number in range(1000):
        append(file, f"line {number}\n")
    lines = tail.lines()
    assert lines[-1] == b"line 999"
    assert tail.skipped
    append(file, "a last line\n")
    assert (tail.lines(), tail.skipped) == ([b"a last line"], False)
    assert len(b"".join(lines)) <= 4096
