"""When a runtime's state is snapshotted: taken between inputs, written only when every output up to it is stored.

An older cursor beside a newer state would double effects, a newer cursor beside unstored outputs would lose them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import orjson
import structlog

from bus.errors import BusError, Fenced, MeshError, UsageError
from bus.snapshots import MAX_SNAPSHOT_BYTES, Snapshot, SnapshotStore

if TYPE_CHECKING:
    from agents.runtime import Runtime

SNAPSHOT_INPUTS = 64
"""A snapshot is taken after this many inputs, or SNAPSHOT_S, whichever comes first."""
SNAPSHOT_S = 1.0

log = structlog.get_logger("signalmesh.agent")


class Checkpoints:
    """Takes and writes the snapshots of one incarnation."""

    def __init__(
        self, runtime: Runtime, store: SnapshotStore, every_inputs: int, on_fenced: Callable[[MeshError], None]
    ) -> None:
        self._runtime, self._store, self._every_inputs, self._on_fenced = runtime, store, every_inputs, on_fenced
        self._wanted = asyncio.Event()
        self._taken_at = (-1, -1, -1, -1, False)

    def want(self) -> None:
        """Have a snapshot taken at the next opportunity."""
        self._wanted.set()

    def input_handled(self) -> None:
        """To be called after every input."""
        if self._runtime.intake.inputs - self._taken_at[1] >= self._every_inputs:
            self._wanted.set()

    async def run(self) -> None:
        """Take snapshots whenever something has changed, for ever."""
        runtime = self._runtime
        while True:
            self._wanted.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SNAPSHOT_S):
                    await self._wanted.wait()
            if self._mark() == self._taken_at or not runtime.between_inputs:
                continue
            began = time.monotonic()
            snapshot = self.take()
            try:
                await runtime.journal.stored_up_to(snapshot.outputs)
                await self.save(snapshot)
                runtime.snapshot_ms = round((time.monotonic() - began) * 1000, 2)
            except Fenced as error:
                self._on_fenced(error)
                return
            except BusError as error:
                log.debug("snapshot_retried", error=str(error))

    async def save(self, snapshot: Snapshot) -> None:
        """Write a snapshot whose outputs are stored; one that is too large is reported and left out.

        Raises:
            Fenced: a successor has taken over; BusError: the bus does not answer.
        """
        size = len(snapshot.encode())
        if size <= MAX_SNAPSHOT_BYTES:
            await self._store.save(snapshot)
            return
        runtime = self._runtime
        runtime.journal.reports.alert(
            "critical",
            "state_too_large",
            f"agent {runtime.name}: its snapshot has {size} bytes, expected at most {MAX_SNAPSHOT_BYTES}: keep a "
            "bounded window; until then a restart replays from the last snapshot that fitted",
            agent=runtime.name,
            once=f"{runtime.name}:{runtime.epoch}:state-too-large",
        )

    def take(self) -> Snapshot:
        """The state as it is now; to be called between inputs only."""
        runtime = self._runtime
        agent, journal, intake = runtime.agent, runtime.journal, runtime.intake
        self._taken_at = self._mark()
        # Whatever a handler publishes later answers an input beyond the cursor, so it is stored beyond it as well;
        # what a source publishes has no such bound but its last acknowledgement.
        stored = journal.stored_sequence
        return Snapshot(
            epoch=runtime.epoch,
            cursor=intake.cursor,
            outputs=journal.outputs,
            output_sequence=stored if agent.produce is not None else max(stored, intake.cursor),
            inputs=intake.inputs,
            poison=intake.poison,
            skips=intake.skips,
            skips_in_a_row=intake.skips_in_a_row,
            timers_set=agent.timers_set,
            timers={
                name: {"number": timer.number, "topic": timer.topic, "after_ms": timer.after_ms}
                for name, timer in agent.timers.items()
            },
            skipped=sorted(sequence for sequence in intake.skipped if sequence > intake.cursor),
            last_produced=runtime.last_produced,
            tracing={} if runtime.tracing is None else runtime.tracing.save(),
            state=orjson.Fragment(self._encode_state()),
        )

    def _mark(self) -> tuple[int, int, int, int, bool]:
        intake, tracing = self._runtime.intake, self._runtime.tracing
        owes = tracing is not None and tracing.owes
        return intake.cursor, intake.inputs, self._runtime.journal.outputs, intake.skips, owes

    def _encode_state(self) -> bytes:
        """The state's JSON.

        Raises:
            UsageError: there is none, or it could not be read again.
        """
        agent = self._runtime.agent
        try:
            data = orjson.dumps(agent.state)
            if b"null" in data:  # what a number that is not finite becomes
                msgspec.convert(orjson.loads(data), type(agent).State)
        except (orjson.JSONEncodeError, msgspec.ValidationError) as error:
            raise UsageError(
                f"agent {agent.name}: its state cannot be saved: {_unsaved(agent.state)}{error}; State may hold "
                "JSON-like values only: finite numbers, strings, lists, dicts with string keys, dataclasses of these"
            ) from None
        return data


def _unsaved(state: Any) -> str:
    """The field of `state` that JSON has no form for, with a colon."""
    for field in getattr(state, "__dataclass_fields__", ()):
        try:
            orjson.dumps(getattr(state, field))
        except orjson.JSONEncodeError:
            return f"{field}: "
    return ""
