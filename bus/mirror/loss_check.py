"""Finds the mirrored streams that a server has lost. Reads only: `bus/mirror/restore.py` acts on the result."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass
from typing import Any

from bus.errors import Refused
from bus.mirror.reader import MirrorFile
from bus.mirror.writer import MirrorStore
from bus.nats.bus import NatsBus
from bus.nats.jetstream import STREAM_NOT_FOUND


async def stream_info(bus: NatsBus, stream: str) -> dict[str, Any] | None:
    """The server's STREAM.INFO, None if there is no such stream."""
    try:
        return await bus.api(f"STREAM.INFO.{stream}")
    except Refused as error:
        if error.code == STREAM_NOT_FOUND:
            return None
        raise


async def events_lost(bus: NatsBus) -> bool:
    """Whether the server has none of the swarm's messages: no stream, an empty one, or a partly restored one."""
    info = await stream_info(bus, bus.subjects.stream)
    return info is None or half_done(bus, info) or not info["state"]["messages"]


def half_done(bus: NatsBus, info: dict[str, Any]) -> bool:
    """Whether a restore of this stream was interrupted."""
    return bool(info["config"]["subjects"] == [bus.subjects.restore_prefix + ">"])


@dataclass(frozen=True, slots=True)
class Intact:
    """The stream that the mirror follows, or one without data in the mirror."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Missing, empty, partly restored, or a shorter copy of the mirror's data."""


@dataclass(frozen=True, slots=True)
class Adoptable:
    """Created again, for example from a backup, but it continues the mirror's data up to `cursor`."""

    created: str
    config: dict[str, Any]
    cursor: int


@dataclass(frozen=True, slots=True)
class Diverged:
    """Neither a continuation nor a shorter copy of the mirror's data; `problem` contains the remedy."""

    problem: str


class LossCheck:
    """Compares the streams of a server with a mirror's file; changes neither."""

    def __init__(self, bus: NatsBus, store: MirrorStore, file: MirrorFile) -> None:
        self._bus, self._store, self._file = bus, store, file
        self._events = bus.subjects.stream

    async def classify(self, stream: str, info: dict[str, Any] | None) -> Intact | Lost | Adoptable | Diverged:
        """Compare a stream with the mirror; `info` is the server's STREAM.INFO, None if there is no such stream."""
        known, cursor = self._store.incarnations.get(stream), self._store.cursors.get(stream, 0)
        if known is None or cursor == 0:
            return Intact()
        if info is None or half_done(self._bus, info):
            return Lost()
        state = info["state"]
        if known.created == info["created"] and state["last_seq"] >= cursor:
            return Intact()
        if not state["messages"]:
            return Lost()
        if stream != self._events:
            return self._classify_bucket(stream, info, cursor)
        at = min(cursor, state["last_seq"])
        if not await self._same_message(at):
            return self._diverged(stream, info, f"its message {at} differs from the mirror's")
        if state["last_seq"] >= cursor:
            return Adoptable(info["created"], info["config"], cursor)
        first, _ = self._file.bounds()
        if first > state["first_seq"]:
            text = f"it ends at {state['last_seq']}, the mirror at {cursor}, but has nothing before {first}"
            return self._diverged(stream, info, text)
        return Lost()

    def _classify_bucket(self, stream: str, info: dict[str, Any], cursor: int) -> Lost | Adoptable | Diverged:
        """Compare a bucket that exists, and was created again or is shorter than the mirror."""
        if info["state"]["last_seq"] >= cursor:
            return Adoptable(info["created"], info["config"], cursor)
        if stream.removeprefix("KV_") == self._bus.subjects.memory_bucket:
            return Lost()  # only readers use it, and the agents soon write it again
        return self._diverged(stream, info, "its revisions are lower than the mirror's")

    async def _same_message(self, sequence: int) -> bool:
        try:
            found = (await self._bus.api(f"STREAM.MSG.GET.{self._events}", {"seq": sequence}))["message"]
        except Refused:
            return False
        mirrored = await asyncio.to_thread(self._file.message, sequence)
        if mirrored is None:
            return False
        data = base64.b64decode(found.get("data") or "")
        return bool((found["subject"], data) == (mirrored.row.subject, mirrored.row.payload))

    def _diverged(self, stream: str, info: dict[str, Any], what: str) -> Diverged:
        return Diverged(
            f"stream {stream} at {self._bus.url}, created {info['created']}, does not continue the mirror "
            f"{self._store.path}: {what}. To continue with the server's data, move the mirror's file away; to "
            f"continue with the mirror's, remove the streams ({self._events}, and KV_{self._bus.subjects.ns}_…); see "
            "docs/runbooks/restore-after-total-loss.md"
        )
