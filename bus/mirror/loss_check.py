"""What of the mirrored swarm a server has lost: found out before anything is put back, and without touching anything.

A stream is lost when it is missing, empty, half put back, or ends before the mirror does and is the same up to there.
One that goes on from what the mirror has, though it was made at another time (somebody's backup), is adopted.
"""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import orjson

from bus.errors import OtherHistory, Refused
from bus.mirror.reader import MirrorFile
from bus.mirror.schema import StreamIncarnation
from bus.mirror.writer import MirrorStore
from bus.nats.bus import NatsBus
from bus.nats.jetstream import STREAM_NOT_FOUND


def restore_prefix(bus: NatsBus) -> str:
    """In the place of `in.{ns}.` while the stream is being put back."""
    return f"restore.{bus.subjects.ns}."


async def stream_info(bus: NatsBus, stream: str) -> dict[str, Any] | None:
    """What the server says of a stream, None if there is none."""
    try:
        return await bus.api(f"STREAM.INFO.{stream}")
    except Refused as error:
        if error.code == STREAM_NOT_FOUND:
            return None
        raise


async def events_lost(bus: NatsBus) -> bool:
    """Whether the server has nothing of the swarm's messages: no stream, an empty one, or one half put back."""
    info = await stream_info(bus, bus.subjects.stream)
    return info is None or half_done(bus, info) or not info["state"]["messages"]


def half_done(bus: NatsBus, info: dict[str, Any]) -> bool:
    return bool(info["config"]["subjects"] == [restore_prefix(bus) + ">"])


class Losses:
    """Compares the streams of a server with a mirror's file."""

    def __init__(self, bus: NatsBus, store: MirrorStore, file: MirrorFile) -> None:
        self._bus, self._store, self._file = bus, store, file
        self._events = bus.subjects.stream

    async def is_lost(self, stream: str, info: dict[str, Any] | None) -> bool:
        known, cursor = self._store.incarnations.get(stream), self._store.cursors.get(stream, 0)
        if known is None or cursor == 0:
            return False
        if info is None or half_done(self._bus, info):
            return True
        state = info["state"]
        if known.created == info["created"] and state["last_seq"] >= cursor:
            return False
        if not state["messages"]:
            return True
        if stream != self._events:
            return await self._bucket_lost(stream, info)
        at = min(cursor, state["last_seq"])
        if not await self._same_message(at):
            raise OtherHistory(self._diverged(stream, info, f"its message {at} is another one than the mirror's"))
        if state["last_seq"] >= cursor:  # a backup of the same history was put back by somebody
            await self._adopt(stream, info, cursor)
            return False
        first, _ = self._file.bounds()
        if first > state["first_seq"]:
            text = f"it ends at {state['last_seq']}, the mirror at {cursor}, but has nothing before {first}"
            raise OtherHistory(self._diverged(stream, info, text))
        return True

    async def _bucket_lost(self, stream: str, info: dict[str, Any]) -> bool:
        """A bucket that is there, made anew or shortened: adopted if it goes on from what the mirror has."""
        bucket = stream.removeprefix("KV_")
        if info["state"]["last_seq"] < self._store.cursors[stream]:
            if bucket == self._bus.subjects.memory_bucket:
                return True  # of use to readers only, and written again within a moment
            raise OtherHistory(self._diverged(stream, info, "its revisions are lower than the mirror's"))
        await self._adopt(stream, info, self._store.cursors[stream])
        return False

    async def _adopt(self, stream: str, info: dict[str, Any], cursor: int) -> None:
        incarnation = StreamIncarnation(stream, info["created"], orjson.dumps(info["config"]), cursor, "restored")
        await self._store.begin([incarnation])

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

    def _diverged(self, stream: str, info: dict[str, Any], what: str) -> str:
        return (
            f"stream {stream} at {self._bus.url}, made {info['created']}, does not go on from the mirror "
            f"{self._store.path}: {what}. To go on with the server's, move the mirror's file away; to go on with the "
            f"mirror's, remove the streams ({self._events}, and KV_{self._bus.subjects.ns}_…); see "
            "docs/runbooks/restore-after-total-loss.md"
        )
