"""Snapshots: an agent's state, with its position in the stream and its published outputs.

Each agent has one key, written by compare-and-set only: a write that timed out can still land later, so a blind write
could undo a newer one. A successor takes over the key by writing it with its own epoch; the next write of the older
incarnation then fails.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

import msgspec
import orjson

from bus.errors import BusTimeout, Fenced, MeshError, WrongSequence
from bus.interface import Bus
from bus.utils.json_text import MAX_STATE_DEPTH, parse_json

VERSION = 1
"""Version of the snapshot's format."""
MAX_SNAPSHOT_BYTES = 256 * 1024
"""A snapshot is one message, and must fit into the server's largest payload."""


class SavedTimer(TypedDict):
    """A pending timer of an agent."""

    number: int
    topic: str
    after_ms: int


class Produced(TypedDict):
    """The newest output of a source; `payload` may be an orjson.Fragment of its JSON."""

    subject: str
    payload: Any


@dataclass(slots=True, kw_only=True)
class Snapshot:
    """State after the input `cursor` (a stream sequence).

    `outputs` were published by then, the last one stored at `output_sequence`; `inputs` were handled, `skips`
    skipped, the last `skips_in_a_row` of them consecutively. `timers` are pending;
    `skipped` are inputs beyond the cursor whose handler raised; `last_produced` is a source's position. `tracing` is
    for spans only (agents/runtime/tracing.py).
    """

    version: int = VERSION
    epoch: int = 0
    cursor: int = 0
    outputs: int = 0
    output_sequence: int = 0
    inputs: int = 0
    poison: int = 0
    skips: int = 0
    skips_in_a_row: int = 0
    timers_set: int = 0
    timers: dict[str, SavedTimer] = field(default_factory=dict)
    skipped: list[int] = field(default_factory=list)
    last_produced: Produced | None = None
    tracing: dict[str, Any] = field(default_factory=dict)
    state: Any = None

    def encode(self) -> bytes:
        """The stored bytes; `state` may be a value, or an orjson.Fragment of its JSON."""
        return orjson.dumps({name: getattr(self, name) for name in self.__slots__})


def first_snapshot(start_after: int, outputs: int) -> Snapshot:
    """That of an agent without state which reads the stream from after message `start_after`, where it had published
    `outputs` outputs in an earlier life. The numbers of its timers go on beyond those of that life.
    """
    return Snapshot(cursor=start_after, outputs=outputs, output_sequence=start_after, timers_set=start_after)


def read_snapshot(agent: str, data: bytes) -> Snapshot:
    """Decode a stored snapshot of `agent`.

    Raises:
        MeshError: it is damaged, or of another version.
    """
    try:
        snapshot = msgspec.convert(parse_json(data, MAX_STATE_DEPTH), Snapshot)
    except (ValueError, msgspec.ValidationError) as error:
        raise SnapshotUnreadable(f"snapshot of {agent}: cannot be read ({error})") from None
    if snapshot.version != VERSION:
        raise MeshError(
            f"snapshot of {agent} has version {snapshot.version}, this program supports {VERSION}: "
            "run the version that wrote it, or start the swarm with an empty --state-dir"
        )
    return snapshot


class SnapshotUnreadable(MeshError):
    """A stored value that is not a valid snapshot."""


class SnapshotStore:
    """The snapshot key of one agent, as one incarnation uses it."""

    def __init__(self, bus: Bus, agent: str, epoch: int, first: Snapshot | None = None) -> None:
        """`first` is the snapshot of an agent that has none yet; None: an empty one."""
        self._bus, self._agent, self._epoch = bus, agent, epoch
        self._first = first or Snapshot()
        self._bucket = bus.subjects.state_bucket
        self.revision = 0
        self.unreadable = ""
        """Why the snapshot that `take_over` found is unreadable: the agent then starts without state. Else empty."""
        self.saved: bytes = b""
        """The snapshot as last written or taken over by this incarnation."""

    async def take_over(self) -> Snapshot:
        """Load the snapshot and write it back under this incarnation's epoch; the first one if there was none.

        Raises:
            Fenced: a newer incarnation has taken it.
            MeshError: it has an unknown version.
        """
        while True:
            found = await self._bus.kv_get(self._bucket, self._agent)
            try:
                snapshot = self.read(found.value) if found else replace(self._first)
            except SnapshotUnreadable as error:
                self.unreadable, snapshot = str(error), replace(self._first)
            if snapshot.epoch > self._epoch:
                raise Fenced(
                    self._agent, f"its snapshot belongs to epoch {snapshot.epoch}, this process has {self._epoch}"
                )
            self.revision = found.revision if found else 0
            snapshot.epoch = self._epoch
            data = snapshot.encode()
            try:
                self.revision = await self._bus.kv_put(self._bucket, self._agent, data, self.revision)
            except (WrongSequence, BusTimeout):
                continue  # the predecessor wrote in between, or the answer to this write was lost: read again
            self.saved = data
            return snapshot

    def read(self, data: bytes) -> Snapshot:
        """Decode a stored snapshot; raises as `read_snapshot` does."""
        return read_snapshot(self._agent, data)

    def _is_ours(self, data: bytes) -> bool:
        try:
            return self.read(data).epoch == self._epoch
        except MeshError:
            return False  # unreadable, so not written by this incarnation

    async def save(self, snapshot: Snapshot) -> None:
        """Write a newer snapshot of this incarnation.

        Raises:
            Fenced: a successor has taken over.
            BusError: the bus does not answer; the write may have landed, and the next `save` finds out.
        """
        data = snapshot.encode()
        while True:
            try:
                self.revision = await self._bus.kv_put(self._bucket, self._agent, data, self.revision)
            except WrongSequence:
                found = await self._bus.kv_get(self._bucket, self._agent)
                if found is None or not self._is_ours(found.value):
                    raise Fenced(self._agent, "its snapshot has been taken over") from None
                self.revision = found.revision  # an earlier write whose answer was lost
                continue
            self.saved = data
            return
