"""Live events to the viewers: encoded once, numbered, kept in a ring for reconnects, in bounded queues.

A viewer that stops reading is dropped: it costs at most its queue, and takes nothing from the others.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import structlog

RING = 4096
"""Newest events that a reconnecting browser can ask for."""
RING_BYTES = 8 << 20
"""The most memory of them."""
QUEUE = 256
"""Chunks that may wait for a viewer; one has the events of FLUSH_S."""
QUEUE_BYTES = 16 << 20
"""The most bytes of them: one that reconnects may have the whole ring to read first."""
WRITE_BYTES = 256 << 10
"""The most that is handed to a connection at a time. It holds that much in addition to its own buffer."""
FLUSH_S = 0.04
"""Shortest time between two chunks. A write to a viewer costs the same for one event and for ten."""
LONGEST_NUMBER = 18
"""Digits of the number of an event; Python refuses to read thousands of them."""
RETRY_MS = 1000
"""How long a browser waits before it reconnects."""

log = structlog.get_logger("signalmesh.dashboard")


class Viewer:
    """One open event stream. `drop` ends its connection at once, whatever still waits in its socket."""

    def __init__(self, drop: Callable[[], None]) -> None:
        self._queue: deque[bytes | memoryview] = deque()
        self._bytes = 0
        self._ready = asyncio.Event()
        self._drop = drop
        self.ended = False

    def put(self, chunk: bytes) -> bool:
        """Queue a chunk; False if there is no room: the viewer has stopped reading."""
        if len(self._queue) >= QUEUE or self._bytes > QUEUE_BYTES:
            return False
        self._queue.append(chunk)
        self._bytes += len(chunk)
        self._ready.set()
        return True

    def end(self) -> None:
        """Close the stream after what it has taken."""
        self.ended = True
        self._queue.clear()
        self._ready.set()

    def drop(self) -> None:
        self.end()
        self._drop()

    async def chunks(self) -> AsyncIterator[bytes]:
        """What is queued, at most WRITE_BYTES at a time, until `end`. What was not asked for yet stays in the queue."""
        while not self.ended:
            await self._ready.wait()
            self._ready.clear()
            while self._queue:
                yield self._next()

    def _next(self) -> bytes:
        """Several chunks joined, or a part of a large one."""
        pieces, size = [], 0
        while self._queue and size < WRITE_BYTES:
            piece, rest = self._queue.popleft(), WRITE_BYTES - size
            if len(piece) > rest:
                view = memoryview(piece)
                self._queue.appendleft(view[rest:])
                piece = view[:rest]
            pieces.append(piece)
            size += len(piece)
        self._bytes -= size
        return b"".join(pieces)


class Hub:
    """Publishes events to all viewers. Call it from the event loop's thread."""

    def __init__(self) -> None:
        self._run = secrets.token_hex(4)
        self._number = 0
        self._ring: deque[bytes] = deque()
        self._ring_bytes = 0
        self._pending: list[bytes] = []
        self._flushed_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._viewers: set[Viewer] = set()
        self.dropped = 0
        """Viewers that had stopped reading."""

    @property
    def viewers(self) -> int:
        return len(self._viewers)

    @property
    def newest_id(self) -> str:
        """The id of the newest event; those after it follow a state that was read now."""
        return f"{self._run}-{self._number}"

    def publish(self, event: str, data: Any) -> None:
        """Send an event to every viewer within FLUSH_S."""
        self._number += 1
        frame = _frame(event, data, self.newest_id)
        self._remember(frame)
        if not self._viewers:
            return
        self._pending.append(frame)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(loop.time(), self._flushed_at + FLUSH_S), self._flush)

    def _remember(self, frame: bytes) -> None:
        self._ring.append(frame)
        self._ring_bytes += len(frame)
        while len(self._ring) > RING or self._ring_bytes > RING_BYTES:
            self._ring_bytes -= len(self._ring.popleft())

    def forget(self) -> None:
        """Let every browser read the state anew: what was sent is no longer true."""
        self._run = secrets.token_hex(4)
        self._ring.clear()
        self._ring_bytes = 0
        self.publish("resync", {"reason": "the dashboard reads another stream now"})

    def _flush(self) -> None:
        self._timer = None
        self._flushed_at = asyncio.get_running_loop().time()
        chunk, self._pending = b"".join(self._pending), []
        for viewer in [one for one in self._viewers if not one.put(chunk)]:
            self.drop(viewer)

    def drop(self, viewer: Viewer) -> None:
        """End a viewer that has stopped reading."""
        if not viewer.ended:
            self.dropped += 1
            self._viewers.discard(viewer)
            log.warning("viewer_dropped", dropped=self.dropped, viewers=len(self._viewers))
            viewer.drop()

    def join(self, viewer: Viewer, last_id: str | None, first: dict[str, Any]) -> None:
        """Add a viewer. It gets the event `connection` with `first`, then what it has missed since `last_id`, or the
        event `resync` if that is no longer known.
        """
        missed = self._missed(last_id)
        hello = b"retry: %d\n\n" % RETRY_MS + _frame("connection", first)
        if missed is None:
            missed = _frame("resync", {"reason": f"the event {str(last_id)[:40]} is no longer kept"}, self.newest_id)
        viewer.put(hello + missed)
        self._pending_first()
        self._viewers.add(viewer)

    def _pending_first(self) -> None:
        """Send what waits to the present viewers: a new one has it from the ring already."""
        if self._timer is not None:
            self._timer.cancel()
            self._flush()

    def leave(self, viewer: Viewer) -> None:
        self._viewers.discard(viewer)

    def _missed(self, last_id: str | None) -> bytes | None:
        if last_id is None:
            return b""
        run, _, number = last_id.rpartition("-")
        if run != self._run or not (number.isascii() and number.isdigit()) or len(number) > LONGEST_NUMBER:
            return None
        missing = self._number - int(number)
        if not 0 <= missing <= len(self._ring):
            return None
        return b"".join(list(self._ring)[len(self._ring) - missing :])

    def close(self) -> None:
        """End all streams."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for viewer in self._viewers:
            viewer.end()
        self._viewers.clear()


def _frame(event: str, data: Any, event_id: str | None = None) -> bytes:
    # JSON has no line breaks, so one data line is enough.
    number = b"" if event_id is None else b"id: %s\n" % event_id.encode()
    return b"%sevent: %s\ndata: %s\n\n" % (number, event.encode(), dump(data))


def dump(data: Any) -> bytes:
    """JSON with times as UTC and milliseconds at the least."""
    return orjson.dumps(data, option=orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS)
