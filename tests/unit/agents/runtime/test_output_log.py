"""The outputs of one incarnation: numbered, found again after a restart, and never published twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from agents.runtime.output_log import OutputLog, output_headers
from agents.runtime.output_validation import Prepared
from bus.durable.fencing import claim
from bus.durable.message_ids import is_substitute, substitute
from bus.errors import MeshError
from bus.messages import Lifecycle, LifecycleEvent, MarketData, Signal, encode, now
from bus.messages import headers as h
from bus.testing.memory_bus import MemoryBus, MemoryServer

AT = datetime(2020, 1, 1, tzinfo=UTC)
LATE = MarketData(symbol="A", price=1.0, volume=1.0, timestamp=AT + timedelta(days=1), source="me", sequence=9)


def answer(strength: float) -> Prepared:
    message = Signal(signal="buy", strength=strength, indicators={}, timestamp=AT, source="me", symbol="A", round=1)
    return Prepared("swarm.signal.A.me", encode(message), "signal", message)


def tick(n: int) -> Prepared:
    message = MarketData(symbol="A", price=1.0, volume=1.0, timestamp=AT, source="me", sequence=n)
    return Prepared("swarm.market.A.me", encode(message), "market", message)


class World:
    def __init__(self, server: MemoryServer, bus: MemoryBus, epoch: int) -> None:
        self.server = server
        self.noted: list[str] = []
        self.log = OutputLog(bus, "me", epoch, self._end, lambda kind, _: self.noted.append(kind))

    @staticmethod
    def _end(error: MeshError) -> None:
        raise AssertionError(error)

    def store(self, output: Prepared, number: int, cause: int | None, **headers: str) -> int:
        """An output that an earlier incarnation has stored."""
        known = {**output_headers("me", number, cause), **headers}
        return self.server.store(f"in.{output.subject}", output.data, known).sequence

    def report(self, event: LifecycleEvent, agent: str = "me", **detail: Any) -> None:
        message = Lifecycle(event=event, agent=agent, timestamp=now(), source="me", detail=detail)
        self.server.store(f"in.swarm.lifecycle.{agent}.me", encode(message), {})

    async def published(self) -> list[tuple[str, str | None]]:
        """Number and cause of every stored output."""
        await self.log.flush()
        own = [message.headers for message in self.server.messages if h.OUTPUT in message.headers]
        return [(headers[h.OUTPUT], headers.get(h.CAUSE)) for headers in own]

    async def alerts(self, code: str) -> list[dict[str, Any]]:
        await self.log.flush()
        found = [orjson.loads(m.data) for m in self.server.messages if m.subject.startswith("swarm.alert.")]
        return [alert for alert in found if alert["code"] == code]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    server = MemoryServer()
    bus = MemoryBus(server)
    epoch = await claim(bus, "me", agent_id="id", claimed_by="me", sandbox="")
    world = World(server, bus, epoch)
    yield world
    world.log.close()
    await bus.close()


async def test_outputs_are_numbered_through_and_name_their_cause(world):
    world.log.publish([answer(0.1), answer(0.2)], 7)
    world.log.publish([], 8)
    world.log.publish([tick(1)], None)
    world.log.push()
    assert await world.published() == [("1", "7"), ("2", "7"), ("3", None)]
    assert world.log.outputs == 3
    assert world.noted == ["signal", "signal", "market"]
    assert world.log.stored_sequence == world.server.last_sequence


@pytest.mark.parametrize(("pipelines", "unacknowledged"), [(True, ["1", "2", "3"]), (False, ["1"])])
async def test_the_stream_says_whether_an_output_may_be_sent_before_the_one_before_it_is_stored(
    pipelines: bool, unacknowledged: list[str], monkeypatch: pytest.MonkeyPatch
):
    bus, sent = MemoryBus(MemoryServer()), list[str]()

    async def found() -> bool:
        return pipelines

    monkeypatch.setattr(bus, "pipelines", found)
    world = World(bus.server, bus, await claim(bus, "me", agent_id="id", claimed_by="me", sandbox=""))
    monkeypatch.setattr(bus, "send", lambda subject, data, headers, done: sent.append(headers[h.OUTPUT]))
    await world.log.read_back()
    world.log.publish([answer(0.1), answer(0.2), answer(0.3)], 7)
    world.log.push()
    assert sent == unacknowledged
    world.log.close()


async def test_what_is_stored_beyond_the_snapshot_is_not_published_again(world):
    for number, cause in ((1, 7), (2, 7), (3, 9)):
        world.store(answer(number / 10), number, cause)
    world.log.begin(1, 0)
    found = await world.log.read_back()
    assert (found.cited, found.last_produced, found.skipped) == (9, None, [])
    world.log.publish([answer(0.2)], 7)
    world.log.publish([answer(0.3), answer(0.4)], 9)
    world.log.caught_up()
    world.log.push()
    assert await world.published() == [("1", "7"), ("2", "7"), ("3", "9"), ("4", "9")]  # the last one was missing
    assert world.log.outputs == 4
    assert world.noted == ["signal"] * 3
    world.log.publish([answer(0.5)], 10)
    world.log.push()
    assert (await world.published())[-1] == ("5", "10")


async def test_what_a_source_produced_between_its_answers_is_passed(world):
    first = world.store(tick(1), 1, None)
    world.store(answer(0.2), 2, 7)
    world.store(tick(2), 3, None)
    world.store(tick(3), 4, None)
    world.log.begin(0, 0)
    found = await world.log.read_back()
    assert found.last_produced is not None
    assert orjson.loads(orjson.dumps(found.last_produced["payload"]))["sequence"] == 3
    world.log.publish([answer(0.2)], 7)
    assert world.log.outputs == 4
    world.log.caught_up()
    assert (world.log.outputs, await world.alerts("replay_diverged")) == (4, [])
    assert first < world.log.stored_sequence


async def test_produced_outputs_after_the_last_input_are_passed_at_the_end(world):
    for number in (1, 2):
        world.store(tick(number), number, None)
    world.log.begin(0, 0)
    await world.log.read_back()
    assert world.log.outputs == 0
    world.log.caught_up()
    assert (world.log.outputs, await world.alerts("replay_diverged")) == (2, [])


async def test_stored_answers_that_no_input_gives_any_more_stay_and_are_reported(world):
    sequences = [world.store(answer(number / 10), number, 7) for number in (1, 2)]
    world.log.begin(0, 0)
    await world.log.read_back()
    world.log.caught_up()
    assert world.log.outputs == 2
    [alert] = await world.alerts("replay_diverged")
    assert str(sequences[0]) in alert["message"]
    world.log.publish([answer(0.9)], 8)
    world.log.push()
    assert (await world.published())[-1] == ("3", "8")


async def test_an_answer_to_an_earlier_input_that_is_missing_now_is_reported_and_passed(world):
    world.store(answer(0.1), 1, 7)
    world.store(tick(1), 2, None)
    world.store(answer(0.3), 3, 8)
    world.log.begin(0, 0)
    await world.log.read_back()
    world.log.publish([answer(0.3)], 8)
    assert world.log.outputs == 3
    assert len(await world.alerts("replay_diverged")) == 1
    assert len(await world.published()) == 3


@pytest.mark.parametrize("other", [answer(0.9), tick(1)], ids=["other contents", "another subject"])
async def test_the_stored_answer_is_the_valid_one(world, other):
    world.store(answer(0.1), 1, 7)
    world.log.begin(0, 0)
    await world.log.read_back()
    world.log.publish([other], 7)
    assert len(await world.alerts("replay_diverged")) == 1
    assert await world.published() == [("1", "7")]


async def test_a_missing_number_is_reported_and_counted_on_from_there(world):
    world.store(answer(0.1), 1, 7)
    world.store(answer(0.4), 4, 8)
    world.store(answer(0.5), 5, 8)
    world.log.begin(0, 0)
    await world.log.read_back()
    world.log.caught_up()
    [alert] = await world.alerts("output_gap")
    assert "expected its output 2, the stream has 4" in alert["message"]


async def test_what_the_snapshot_counts_is_not_read_again(world):
    at = world.store(answer(0.1), 1, 7)
    world.store(answer(0.2), 2, 7)
    world.log.begin(2, at)
    assert (await world.log.read_back()).cited == 0
    world.log.caught_up()
    assert await world.alerts("output_gap") == []
    assert world.log.outputs == 2


@pytest.mark.parametrize(
    "headers", [{h.MSG_ID: "other:1"}, {h.OUTPUT: "one"}, {h.CAUSE: "x"}], ids=["id", "number", "cause"]
)
async def test_what_another_writer_stored_in_its_name_is_reported_once_and_ignored(world, headers):
    at = world.store(answer(0.1), 1, 7, **headers)
    for _ in range(2):
        world.log.begin(0, 0)
        assert (await world.log.read_back()).cited == 0
    [alert] = await world.alerts("output_from_unknown_writer")
    assert alert["detail"]["sequence"] == at


async def test_garbage_in_its_name_is_reported_and_ignored(world):
    world.server.store("in.swarm.signal.A.me", b"{", output_headers("me", 1, 7))
    world.log.begin(0, 0)
    await world.log.read_back()
    assert len(await world.alerts("output_from_unknown_writer")) == 1


async def test_only_its_own_reports_of_skips_are_skips(world):
    world.report("skipped", sequence=5)
    world.report("skipped", sequence="6")
    world.report("skipped", agent="other", sequence=7)
    world.report("ready", sequence=8)
    world.server.store("in.swarm.lifecycle.me.me", b"{", {})
    world.log.begin(0, 0)
    assert (await world.log.read_back()).skipped == [5]


async def test_an_output_whose_id_was_squatted_is_published_among_later_ones_after_a_kill(world):
    world.server.store("in.swarm.signal.A.thief", b"{}", {h.MSG_ID: "me:2"})
    world.store(answer(0.1), 1, 7)
    world.store(answer(0.3), 3, 8)
    world.store(answer(0.4), 4, 8)
    world.log.begin(0, 0)
    await world.log.read_back()
    world.log.publish([answer(0.1), answer(0.2)], 7)
    assert world.log.stored_sequence < 5, "the outputs that are not counted yet are to be read back again"
    world.log.publish([answer(0.3), answer(0.4)], 8)
    world.log.publish([answer(0.5)], 9)
    world.log.push()
    assert await world.published() == [("1", "7"), ("3", "8"), ("4", "8"), ("2", "7"), ("5", "9")]
    ids = [m.headers[h.MSG_ID] for m in world.server.messages if m.headers.get(h.OUTPUT) == "2"]
    assert [is_substitute(each, "me:2") for each in ids] == [True]
    assert await world.alerts("output_gap") == []
    assert await world.alerts("replay_diverged") == []


async def test_what_was_published_again_is_read_back_in_the_order_of_its_number(world):
    world.store(answer(0.1), 1, 7)
    world.store(answer(0.3), 3, 8)
    last = world.store(answer(0.2), 2, 7, **{h.MSG_ID: substitute("me:2")})
    world.log.begin(0, 0)
    await world.log.read_back()
    world.log.publish([answer(0.1), answer(0.2)], 7)
    world.log.publish([answer(0.3)], 8)
    assert (world.log.outputs, world.log.stored_sequence) == (3, last - 1)
    world.log.begin(3, last - 1)
    await world.log.read_back()
    world.log.publish([answer(0.4)], 9)
    world.log.push()
    assert await world.published() == [("1", "7"), ("3", "8"), ("2", "7"), ("4", "9")]
    assert await world.alerts("replay_diverged") == []


async def test_a_source_goes_on_before_the_event_whose_id_was_squatted(world):
    for number in (1, 3):
        world.store(tick(number), number, None)
    world.log.begin(0, 0)
    found = await world.log.read_back()
    assert found.last_produced is not None
    assert orjson.loads(orjson.dumps(found.last_produced["payload"]))["sequence"] == 1
    world.log.caught_up()
    for number in (2, 3, 4):
        world.log.publish([tick(number)], None)
    world.log.push()
    assert await world.published() == [("1", None), ("3", None), ("2", None), ("4", None)]
    assert await world.alerts("output_gap") == []


async def test_a_source_that_cannot_go_back_loses_nothing_more(world):
    for number in (1, 3):
        world.store(tick(number), number, None)
    world.log.begin(0, 0)
    await world.log.read_back()
    world.log.caught_up()
    late = Prepared(tick(9).subject, encode(LATE), "market", LATE)
    world.log.publish([late], None)
    world.log.push()
    assert await world.published() == [("1", None), ("3", None), ("4", None)]
    assert len(await world.alerts("output_gap")) == 1
