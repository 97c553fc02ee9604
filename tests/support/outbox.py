"""Numbered entries of one writer for an outbox."""

from __future__ import annotations

import asyncio

from bus.durable.outbox import Entry, Outbox
from bus.errors import MeshError
from bus.interface import Headers, ReceivedMessage, StoredMessage
from bus.messages import headers as h
from tests.support.collecting import GUARD_S

WRITER = "feed"
MARKET = f"swarm.market.A.{WRITER}"
WRITTEN_BY = (f"swarm.*.*.{WRITER}",)


def entry(number: int, headers: Headers | None = None) -> Entry:
    data = str(number).encode()
    return Entry(MARKET, data, {h.MSG_ID: f"{WRITER}:{number}", h.OUTPUT: data.decode(), **(headers or {})}, number)


def fail(error: MeshError) -> None:
    raise AssertionError(error)


def numbers(messages: list[StoredMessage] | list[ReceivedMessage]) -> list[int]:
    return [int(message.data) for message in messages]


async def publish(outbox: Outbox, first: int, last: int) -> None:
    for number in range(first, last + 1):
        outbox.put(entry(number))
        if (room := outbox.send()) is not None:
            await room


async def flushed(outbox: Outbox) -> None:
    async with asyncio.timeout(GUARD_S):
        await outbox.flush()
