"""Publishes many messages in order, each at a given sequence; any other sequence is an error."""

from __future__ import annotations

import asyncio

from bus.errors import BusError, BusTimeout
from bus.interface import Ack, Headers
from bus.nats.bus import NatsBus

WINDOW = 2000
"""Most unacknowledged messages."""
ACK_TIMEOUT_S = 10.0
RETRY_S = 0.03


class SequencedPublisher:
    """Needs a stream without other writers: they would take the sequences."""

    def __init__(self, bus: NatsBus) -> None:
        self._bus = bus
        self._open = 0
        self._failed: BusError | None = None
        self._moved = asyncio.Event()

    async def send(self, subject: str, data: bytes, headers: Headers, sequence: int) -> None:
        """Send one message, waiting while too many are unacknowledged.

        Raises:
            BusError: this or an earlier one was refused, treated as a duplicate, or got another sequence.
        """
        while self._open >= WINDOW:
            await self._wait()
        self._check()

        def done(result: Ack | BusError) -> None:
            self._open -= 1
            if isinstance(result, BusError):
                self._failed = self._failed or result
            elif result.duplicate or result.sequence != sequence:
                outcome = "treated as a duplicate" if result.duplicate else f"stored as {result.sequence}"
                self._failed = self._failed or BusError(f"{subject}: message {sequence} was {outcome}")
            self._moved.set()

        self._open += 1
        try:
            self._bus.send(subject, data, headers, done)
        except BaseException:
            self._open -= 1
            raise

    async def until_new(self, subject: str, data: bytes, headers: Headers, sequence: int) -> None:
        """Send a message with a recently used id, again until the server accepts it."""
        while True:
            ack = await self._bus.publish(subject, data, headers)
            if not ack.duplicate:
                if ack.sequence != sequence:
                    raise BusError(f"{subject}: message {sequence} was stored as {ack.sequence}")
                return
            await asyncio.sleep(RETRY_S)

    async def flush(self) -> None:
        """Wait until all are acknowledged."""
        while self._open:
            await self._wait()
        self._check()

    async def _wait(self) -> None:
        self._check()
        self._moved.clear()
        try:
            async with asyncio.timeout(ACK_TIMEOUT_S):
                await self._moved.wait()
        except TimeoutError:
            raise BusTimeout(f"no acknowledgement within {ACK_TIMEOUT_S} s") from None

    def _check(self) -> None:
        if self._failed is not None:
            raise self._failed
