"""What has become of a mirrored stream, from what the server says of it."""

from __future__ import annotations

import base64
from types import SimpleNamespace
from typing import Any

import pytest

from bus.errors import Refused
from bus.messages.subjects import Subjects
from bus.mirror.loss_check import Adoptable, Diverged, Intact, LossCheck, Lost, events_lost
from bus.nats.jetstream import STREAM_NOT_FOUND

EVENTS, STATE, MEMORY = "swarm_events", "KV_swarm_state", "KV_swarm_memory"
CURSOR, CREATED = 9, "2026-01-01T00:00:00Z"


def info(last: int, *, created: str = CREATED, first: int = 1, messages: int = 5, half: bool = False) -> dict[str, Any]:
    subjects = ["restore.swarm.>"] if half else ["in.swarm.>"]
    state = {"first_seq": first, "last_seq": last, "messages": messages}
    return {"created": created, "config": {"subjects": subjects}, "state": state}


class Server:
    """A server whose messages hold `data`; None: it has none."""

    url = "nats://server"
    subjects = Subjects("swarm")

    def __init__(self, data: bytes | None = b"same", stream: dict[str, Any] | Exception | None = None) -> None:
        self.data, self.stream = data, stream
        self.asked: list[int] = []

    async def api(self, command: str, body: Any = None) -> dict[str, Any]:
        if command.startswith("STREAM.INFO"):
            if isinstance(self.stream, Exception):
                raise self.stream
            assert self.stream is not None
            return self.stream
        self.asked.append(body["seq"])
        if self.data is None:
            raise Refused("swarm_events", 10037, "no message found")
        return {"message": {"subject": "swarm.a.b.c", "data": base64.b64encode(self.data).decode()}}


def check(server: Server, *, first: int = 1, mirrored: bool = True, cursor: int = CURSOR) -> LossCheck:
    known = {name: SimpleNamespace(created=CREATED) for name in (EVENTS, STATE, MEMORY)}
    row = SimpleNamespace(row=SimpleNamespace(subject="swarm.a.b.c", payload=b"same"))
    store: Any = SimpleNamespace(incarnations=known, cursors=dict.fromkeys(known, cursor), path="m.sqlite")
    file: Any = SimpleNamespace(bounds=lambda: (first, CURSOR), message=lambda _: row if mirrored else None)
    bus: Any = server
    return LossCheck(bus, store, file)


NEW: dict[str, Any] = {"created": "2026-02-02T00:00:00Z"}


@pytest.mark.parametrize(
    ("stream", "found", "expected"),
    [
        pytest.param(EVENTS, info(9), Intact, id="as it was"),
        pytest.param(EVENTS, info(12), Intact, id="it went on"),
        pytest.param(EVENTS, None, Lost, id="gone"),
        pytest.param(EVENTS, info(12, half=True), Lost, id="partly restored"),
        pytest.param(EVENTS, info(8), Lost, id="shorter"),
        pytest.param(EVENTS, info(0, messages=0), Lost, id="the same, emptied"),
        pytest.param(EVENTS, info(0, messages=0, **NEW), Lost, id="new and empty"),
        pytest.param(EVENTS, info(9, **NEW), Adoptable, id="new, with all of it"),
        pytest.param(STATE, info(9, **NEW), Adoptable, id="a new bucket with all of it"),
        pytest.param(STATE, info(8, **NEW), Diverged, id="a new bucket behind the mirror"),
        pytest.param(STATE, info(9), Intact, id="a bucket as it was"),
        pytest.param(MEMORY, info(8, **NEW), Lost, id="the memory, behind the mirror"),
    ],
)
async def test_a_stream_is_compared_with_the_mirror(stream, found, expected):
    assert type(await check(Server()).classify(stream, found)) is expected


async def test_what_continues_the_mirror_is_adopted_as_it_is():
    found = info(12, **NEW)
    assert await check(Server()).classify(EVENTS, found) == Adoptable(NEW["created"], found["config"], CURSOR)


async def test_what_was_never_mirrored_is_not_compared():
    assert type(await check(Server(), cursor=0).classify(EVENTS, None)) is Intact
    assert type(await check(Server()).classify("KV_other", None)) is Intact


@pytest.mark.parametrize(("last", "at"), [(12, CURSOR), (5, 5)])
@pytest.mark.parametrize("data", [b"other", None])
async def test_another_history_is_named_with_the_first_message_that_was_compared(last, at, data):
    server = Server(data)
    found = await check(server).classify(EVENTS, info(last, **NEW))
    assert server.asked == [at]
    assert isinstance(found, Diverged)
    assert f"its message {at} differs from the mirror's" in found.problem


async def test_a_message_that_the_mirror_does_not_have_is_not_the_same():
    assert type(await check(Server(), mirrored=False).classify(EVENTS, info(5, **NEW))) is Diverged


async def test_a_shorter_stream_with_more_at_its_beginning_is_not_replaced():
    found = await check(Server(), first=4).classify(EVENTS, info(8, first=3))
    assert isinstance(found, Diverged)
    assert "it ends at 8, the mirror at 9, but has nothing before 4" in found.problem
    assert type(await check(Server(), first=4).classify(EVENTS, info(8, first=4))) is Lost


@pytest.mark.parametrize(
    ("stream", "lost"),
    [
        (info(9), False),
        (info(9, messages=0), True),
        (info(9, half=True), True),
        (Refused(EVENTS, STREAM_NOT_FOUND, "stream not found"), True),
    ],
)
async def test_a_server_without_messages_has_lost_them(stream, lost):
    server: Any = Server(stream=stream)
    assert await events_lost(server) == lost


async def test_a_server_that_refuses_to_answer_has_lost_nothing():
    server: Any = Server(stream=Refused(EVENTS, 503, "no"))
    with pytest.raises(Refused):
        await events_lost(server)
