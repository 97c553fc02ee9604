"""The cache of parsed candle files: a later process reads the records from it instead of parsing the source again.

Owns the form of a cache file, when it is that of its source, and how it is written. What a record holds is the
business of agents/feeds/candles.py. A cache file is: blocks of records, the digest of each block, a Footer as JSON,
and a trailer with the digest of the digests and the Footer.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import struct
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

import msgspec
import structlog

from bus.errors import MeshError

CACHE_VARIABLE = "SIGNALMESH_CACHE_DIR"
RECORD_BYTES = 48
BLOCK_RECORDS = 1024
"""Records that are read and checked together. Digests in the State of sources depend on it."""
BLOCK_BYTES = BLOCK_RECORDS * RECORD_BYTES
DIGEST_BYTES = 16
LEAST_SOURCE_BYTES = 1 << 20
"""Parsing a smaller file takes less than half a second."""
MAGIC = b"SMcandl1"
"""Its last character is the version. Raise it with any change of the form, of the constants, or of what is accepted."""
SETTLED_NS = 2_000_000_000
"""A file may be changed again without a change of its times, for about as long as a tick of its file system's clock."""

_TRAILER = struct.Struct(f"<II{DIGEST_BYTES}s{len(MAGIC)}s")

Parse = Callable[[Callable[[bytes], None]], int]
"""Passes on each block, all but the last one of BLOCK_BYTES, and returns the number of records. May raise DataError."""

log = structlog.get_logger("signalmesh.feeds")


class SourceState(msgspec.Struct, frozen=True):
    """What changes whenever a file is changed."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, about: os.stat_result) -> SourceState:
        return cls(about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino)


class Footer(msgspec.Struct, frozen=True):
    """What a cache file holds."""

    source: SourceState
    read_ns: int
    """When reading the source began, in nanoseconds since 1970."""
    digest: str
    """Of the source's bytes."""
    count: int
    """Of records."""

    def is_of(self, state: SourceState) -> bool:
        """Whether the source with `state` is the one that was read. False where only its digest can tell."""
        return state == self.source and max(state.mtime_ns, state.ctime_ns) + SETTLED_NS < self.read_ns


class Blocks(Protocol):
    """The records of one file."""

    @property
    def count(self) -> int:
        """Of records."""

    @property
    def digests(self) -> list[bytes]:
        """Of each block."""

    def read(self, block: int) -> bytes:
        """The records of the block with this index.

        Raises:
            CacheDamaged: it can no longer be read.
        """


class MemoryBlocks:
    """Blocks in the memory of this process."""

    def __init__(self, parse: Parse) -> None:
        """Raises: DataError: as `parse`."""
        self._blocks: list[bytes] = []
        self.count = parse(self._blocks.append)
        self.digests = [block_digest(block) for block in self._blocks]

    def read(self, block: int) -> bytes:
        return self._blocks[block]


class CacheDamaged(MeshError):
    """A cache that does not hold any more what was written to it. It is removed, and the next process reads its source.

    This process ends: to read a large source again lasts longer than an agent that runs may be silent, while an agent
    that starts sends heartbeats meanwhile.
    """

    def __init__(self, source: str, cache: Path) -> None:
        try:
            cache.unlink(missing_ok=True)
            remedy = "it was removed, and this agent starts again and reads"
        except OSError as error:
            remedy = f"remove it ({error.strerror}); an agent that starts without it reads"
        super().__init__(f"{source}: its cache {cache} is damaged: {remedy} {source} instead")


class FileBlocks:
    """Blocks in a file, each compared with its digest whenever it is read."""

    def __init__(self, source: str, cache: Path, file: BinaryIO, count: int, digests: list[bytes]) -> None:
        """`file` is the open cache of `source`; it may be closed, and have another name by now."""
        self._fd = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._fd)
        self._source, self._cache = source, cache
        self.count, self.digests = count, digests

    def read(self, block: int) -> bytes:
        start = block * BLOCK_BYTES
        with contextlib.suppress(OSError):
            data = os.pread(self._fd, min(BLOCK_BYTES, self.count * RECORD_BYTES - start), start)
            if block_digest(data) == self.digests[block]:
                return data
        raise CacheDamaged(self._source, self._cache)


def block_digest(block: bytes) -> bytes:
    """The digest by which a block is recognised."""
    return hashlib.blake2b(block, digest_size=DIGEST_BYTES).digest()


def cache_directory() -> Path:
    """Where cache files are: as CACHE_VARIABLE says, or else in the user's directory for caches.

    Raises:
        OSError: the user has none.
    """
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen)
    if (cache := os.environ.get("XDG_CACHE_HOME", "")).startswith("/"):
        return Path(cache, "signalmesh")
    try:
        return Path.home() / ".cache" / "signalmesh"
    except RuntimeError as error:
        raise FileNotFoundError(str(error)) from None


def load_blocks(source: Path, parse: Parse) -> Blocks:
    """The records that `parse` makes of `source`: from the cache if they are there, else parsed and, if possible, kept.

    A regular file of LEAST_SOURCE_BYTES or more is cached. Without a directory to write to, the records are in memory.

    Raises:
        DataError: as `parse`.
    """
    try:
        about = source.stat()
    except (OSError, ValueError):  # parse() says what is wrong with it
        return MemoryBlocks(parse)
    if not stat.S_ISREG(about.st_mode) or about.st_size < LEAST_SOURCE_BYTES:
        return MemoryBlocks(parse)
    try:
        cache = _Cache(source.absolute(), cache_directory(), parse)
        return cache.open() or cache.fill()
    except OSError as error:
        log.info("candles_not_cached", file=str(source), problem=str(error))
        return MemoryBlocks(parse)


class _Cache:
    """The cache file of one source."""

    def __init__(self, source: Path, directory: Path, parse: Parse) -> None:
        self._source, self._directory, self._parse = source, directory, parse
        self._file = directory / f"{hashlib.blake2b(os.fsencode(source), digest_size=16).hexdigest()}.candles"

    def open(self) -> FileBlocks | None:
        """The blocks of the cache file; None if it is not there, not sound, not ours, or not of the source as it is.

        Raises:
            OSError: the source cannot be read.
        """
        try:
            file = os.fdopen(os.open(self._file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
        except OSError:
            return None
        with file:
            found = _read_footer(file)
            return None if found is None else self._matching(file, *found)

    def _matching(self, file: BinaryIO, footer: Footer, digests: list[bytes]) -> FileBlocks | None:
        state = SourceState.of(self._source.stat())
        if footer.source.size != state.size:
            return None
        if not footer.is_of(state):
            now_ns = time.time_ns()
            with self._source.open("rb") as source:
                state = SourceState.of(os.fstat(source.fileno()))
                if hashlib.file_digest(source, "blake2b").hexdigest() != footer.digest:
                    return None
            footer = msgspec.structs.replace(footer, source=state, read_ns=now_ns)
            if footer.is_of(state):
                with contextlib.suppress(OSError):  # else the next start computes the digest again
                    self._refresh(file, footer, digests)
        return FileBlocks(str(self._source), self._file, file, footer.count, digests)

    def fill(self) -> FileBlocks:
        """Parse the source into a new cache file.

        Raises:
            OSError: it cannot be written.
            DataError: as `parse`.
        """
        digests: list[bytes] = []
        with self._new_file() as (file, name):

            def write(block: bytes) -> None:
                digests.append(block_digest(block))
                file.write(block)

            now_ns = time.time_ns()
            with self._source.open("rb") as source:
                state = SourceState.of(os.fstat(source.fileno()))
                count = self._parse(write)
                digest = hashlib.file_digest(source, "blake2b").hexdigest()
            footer = Footer(state, now_ns, digest, count)
            file.write(_encode_footer(footer, digests))
            file.flush()
            if SourceState.of(self._source.stat()) == state:  # else nobody knows which of its bytes were parsed
                name.replace(self._file)
            return FileBlocks(str(self._source), self._file, file, footer.count, digests)

    def _refresh(self, old: BinaryIO, footer: Footer, digests: list[bytes]) -> None:
        """Replace the cache file by one with the same records and the new footer."""
        old.seek(0)
        with self._new_file() as (file, name):
            shutil.copyfileobj(old, file)
            file.truncate(footer.count * RECORD_BYTES)
            file.seek(0, os.SEEK_END)
            file.write(_encode_footer(footer, digests))
            file.flush()
            name.replace(self._file)

    @contextlib.contextmanager
    def _new_file(self) -> Iterator[tuple[BinaryIO, Path]]:
        """A temporary file beside the cache file, locked while its writer runs, and without a name afterwards."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in self._directory.glob(f"{self._file.name}.*"):
            _remove_unlocked(left)
        fd, path = tempfile.mkstemp(prefix=f"{self._file.name}.", dir=self._directory)
        try:
            with os.fdopen(fd, "w+b") as file:
                fcntl.flock(fd, fcntl.LOCK_EX)
                yield file, Path(path)
        finally:
            Path(path).unlink(missing_ok=True)


def _remove_unlocked(file: Path) -> None:
    """Remove the file of a writer that was killed."""
    with contextlib.suppress(OSError), file.open("rb") as left:
        fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.unlink()


def _encode_footer(footer: Footer, digests: list[bytes]) -> bytes:
    table, data = b"".join(digests), msgspec.json.encode(footer)
    return table + data + _TRAILER.pack(len(table), len(data), block_digest(table + data), MAGIC)


def _read_footer(file: BinaryIO) -> tuple[Footer, list[bytes]] | None:
    """The footer of a cache file with the digests of its blocks; None if it is not sound, or others may write it.

    Raises:
        OSError: it cannot be read.
    """
    about = os.fstat(file.fileno())
    end = about.st_size - _TRAILER.size
    if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o022 or end < 0:
        return None
    table_bytes, data_bytes, digest, magic = _TRAILER.unpack(os.pread(file.fileno(), _TRAILER.size, end))
    records_bytes = end - table_bytes - data_bytes
    if magic != MAGIC or records_bytes < 0:
        return None
    written = os.pread(file.fileno(), table_bytes + data_bytes, records_bytes)
    if block_digest(written) != digest:
        return None
    footer = msgspec.json.decode(written[table_bytes:], type=Footer)
    if footer.count * RECORD_BYTES != records_bytes:
        return None
    return footer, [written[at : at + DIGEST_BYTES] for at in range(0, table_bytes, DIGEST_BYTES)]
