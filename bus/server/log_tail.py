"""Reads what a nats-server has logged since the last look."""

from __future__ import annotations

import contextlib
from pathlib import Path

__all__ = ["LogTail"]

MAX_READ_BYTES = 1 << 20
"""Of the log at a time; a client that is refused without end writes more. Its lines are then left out."""
MAX_LINE_BYTES = 8 << 10


class LogTail:
    """The lines that are appended to `file` from now on, also after the server has begun another file."""

    def __init__(self, file: Path, since: tuple[int, int] | None = None) -> None:
        """Begin at the present end of the log, or at the `place` that an earlier reader had reached."""
        self._file = file
        self._position, self._inode = self._end()
        if since is not None:
            self._inode, self._position = since
        self._rest = b""
        self.skipped = False
        """Whether the last call may have left lines out: there were too many, or their file is renamed now."""

    @property
    def place(self) -> tuple[int, int]:
        """The file, and the position in it, from which on no whole line was read."""
        return self._inode, self._position - len(self._rest)

    def _end(self) -> tuple[int, int]:
        try:
            found = self._file.stat()
        except OSError:
            return 0, 0
        return found.st_size, found.st_ino

    def lines(self) -> list[bytes]:
        """The whole lines since the last call, without their ends. Blocks for a read of the file."""
        size, inode = self._end()
        self.skipped = self._inode not in (0, inode) or size - self._position > MAX_READ_BYTES
        before = self._last_of_renamed() if self._inode not in (0, inode) else []
        if inode != self._inode or size < self._position:  # the server has renamed its full log, and begun another one
            self._position, self._inode, self._rest = 0, inode, b""
        return before + self._read(self._file, size)

    def _last_of_renamed(self) -> list[bytes]:
        """What the file that was read has, under its new name, after what was read."""
        for file in self._file.parent.glob(f"{self._file.name}.*"):
            with contextlib.suppress(OSError):
                if (found := file.stat()).st_ino == self._inode:
                    return self._read(file, found.st_size)
        return []

    def _read(self, file: Path, size: int) -> list[bytes]:
        """The whole lines from the position on."""
        if size <= self._position:
            return []
        try:
            with file.open("rb") as log:
                if size - self._position > MAX_READ_BYTES:
                    log.seek(size - MAX_READ_BYTES)
                    self._rest = b""
                else:
                    log.seek(self._position)
                data = self._rest + log.read(MAX_READ_BYTES)
                self._position = log.tell()
        except OSError:
            return []
        *lines, self._rest = data.split(b"\n")
        self._rest = self._rest[-MAX_LINE_BYTES:]
        return lines
