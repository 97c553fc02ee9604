"""The mirror's file where it cannot be written: on a read-only place, and for another user."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.mirror.reader import MirrorFile
from tests.unit.bus.mirror.test_writer import filled

NOBODY = 65534


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        yield directory
        directory.chmod(0o755)


def read_by_another(path: Path) -> str:
    """What a process gets that may read the directory and not write it: a fork, as that user may not start Python."""
    path.parent.chmod(0o555)
    ours, theirs = os.pipe()
    if (pid := os.fork()) == 0:
        if os.geteuid() == 0:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        try:
            with MirrorFile(path) as file:
                text = str(len(list(file.messages())))
        except BaseException as error:  # noqa: BLE001 - the parent reads it
            text = str(error)
        os.write(theirs, text.encode())
        os._exit(0)
    os.close(theirs)
    os.waitpid(pid, 0)
    with os.fdopen(ours) as reading:
        return reading.read()


async def test_a_file_that_nobody_writes_is_read_by_another_user(place):
    await filled(place / "mirror.sqlite")
    (place / "mirror.sqlite").chmod(0o644)
    assert read_by_another(place / "mirror.sqlite") == "3"


async def test_a_log_that_cannot_be_read_there_is_named(place):
    await filled(place / "mirror.sqlite")
    (place / "mirror.sqlite").chmod(0o644)
    (place / "mirror.sqlite-wal").write_bytes(b"x")
    assert "mirror.sqlite-wal, which can be read only where" in read_by_another(place / "mirror.sqlite")


async def test_the_bounds_of_a_file_are_its_first_and_last_message_or_zeros(tmp_path):
    for count, bounds in ((0, (0, 0)), (3, (1, 3))):
        path = tmp_path / f"{count}.sqlite"
        await filled(path, count)
        with MirrorFile(path) as file:
            assert file.bounds() == bounds


@pytest.mark.skipif(os.geteuid() != 0, reason="the owner of a file may always read it")
async def test_a_file_that_may_not_be_read_is_named(place):
    await filled(place / "mirror.sqlite")
    (place / "mirror.sqlite").chmod(0o600)
    assert "this user may not read it" in read_by_another(place / "mirror.sqlite")
