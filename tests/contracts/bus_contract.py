"""What every bus does alike: one suite, inherited once per bus.

A subclass provides the fixture `mesh`: a fresh swarm and a way to connect to it. Nothing here knows which bus it is.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import pytest

from bus.durable.fencing import claim, fence, last_claim, new_agent_id
from bus.durable.registry import Record, read_records, write_record
from bus.errors import BusError, BusTimeout, Disconnected, Refused, WrongSequence
from bus.interface import Ack, Bounds, Bus, ReceivedMessage, StoredMessage
from bus.messages import MAX_PAYLOAD_BYTES, Epoch
from bus.messages import headers as h
from tests.support.collecting import GUARD_S, Collector

MARKET = "swarm.market.A.feed"
SIGNAL = "swarm.signal.A.voter"


class Mesh(Protocol):
    """A swarm named `swarm`, empty, with its stream and buckets."""

    async def connect(self) -> Bus:
        """One more connection to it; closed by the fixture."""


async def received_by(bus: Bus, pattern: str) -> Collector[ReceivedMessage]:
    """A core subscription that is in effect when this returns."""
    found: Collector[ReceivedMessage] = Collector()
    await bus.listen(pattern, found)
    await bus.flush()
    return found


class LosingBus:
    """A bus whose next publish times out, after it has landed or without."""

    def __init__(self, bus: Bus, *, lands: bool) -> None:
        self._bus, self._lands, self.lost = bus, lands, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def publish(self, *args: Any, **kwargs: Any) -> Ack:
        if self.lost:
            return await self._bus.publish(*args, **kwargs)
        self.lost += 1
        if self._lands:
            await self._bus.publish(*args, **kwargs)
        raise BusTimeout("the answer was lost")


class BusContract:
    @pytest.fixture
    async def mesh(self) -> Mesh:
        raise NotImplementedError

    @pytest.fixture
    async def bus(self, mesh: Mesh) -> Bus:
        return await mesh.connect()

    # -- publishing

    async def test_acks_count_the_stream(self, bus):
        assert await bus.bounds() == Bounds(first=1, last=0)
        acks = [await bus.publish("in." + subject, b"{}") for subject in (MARKET, SIGNAL, MARKET)]
        assert acks == [Ack(1), Ack(2), Ack(3)]
        assert await bus.bounds() == Bounds(first=1, last=3)

    async def test_what_is_stored_is_what_was_published(self, bus):
        data = bytes(range(256))
        await bus.publish("in." + MARKET, data, {h.MSG_ID: "feed:1", h.OUTPUT: "1", "traceparent": "00-ab-cd-01"})
        [stored] = await bus.read_back(("swarm.>",), 1)
        assert (stored.subject, stored.sequence, stored.data, stored.pending) == (MARKET, 1, data, 0)
        assert {h.MSG_ID: "feed:1", h.OUTPUT: "1", "traceparent": "00-ab-cd-01"}.items() <= stored.headers.items()

    async def test_a_repetition_is_acknowledged_and_not_delivered(self, bus, mesh):
        found = await received_by(await mesh.connect(), "swarm.>")
        first = await bus.publish("in." + MARKET, b"1", {h.MSG_ID: "feed:1"})
        again = await bus.publish("in." + MARKET, b"1", {h.MSG_ID: "feed:1"})
        await bus.publish("in." + MARKET, b"2", {h.MSG_ID: "feed:2"})
        assert (first, again) == (Ack(1), Ack(1, duplicate=True))
        assert [received.data for received in await found.reach(2)] == [b"1", b"2"]
        assert [stored.data for stored in await bus.read_back(("swarm.>",), 1)] == [b"1", b"2"]

    async def test_subscribers_receive_what_is_stored_in_order_and_once(self, bus, mesh):
        found = await received_by(await mesh.connect(), "swarm.>")
        published = [(MARKET, b"1"), (SIGNAL, b"2"), (MARKET, b"3"), (MARKET, b"4"), (SIGNAL, b"5")]
        for subject, data in published:
            await bus.publish("in." + subject, data, {h.MSG_ID: data.decode()})
            await bus.publish("in." + subject, data, {h.MSG_ID: data.decode()})
        received = await found.reach(5)
        assert [(each.subject, each.data) for each in received] == published
        assert [each.headers[h.SEQUENCE] for each in received] == ["1", "2", "3", "4", "5"]
        assert [each.headers[h.LAST_SEQUENCE] for each in received] == ["0", "0", "1", "3", "2"]
        assert [each.headers[h.MSG_ID] for each in received] == ["1", "2", "3", "4", "5"]

    async def test_send_answers_in_order_without_waiting(self, bus):
        done: Collector[Ack | BusError] = Collector()
        for number in range(200):
            bus.send("in." + MARKET, str(number).encode(), {h.MSG_ID: f"feed:{number}"}, done.put)
        assert await done.reach(200) == [Ack(number) for number in range(1, 201)]
        assert [int(stored.data) for stored in await bus.read_back((MARKET,), 1)] == list(range(200))

    @pytest.mark.parametrize("subject", [MARKET, "nowhere", "in.other.market.A.feed", "swarm.heartbeat.feed"])
    async def test_nothing_is_stored_outside_of_the_write_side(self, bus, subject):
        with pytest.raises(Refused) as refused:
            await bus.publish(subject, b"{}")
        assert refused.value.subject == subject
        assert refused.value.code == 503
        done: Collector[Ack | BusError] = Collector()
        bus.send(subject, b"{}", {}, done.put)
        assert isinstance((await done.reach(1))[0], Refused)
        assert await bus.bounds() == Bounds(first=1, last=0)

    async def test_the_largest_payload_passes_and_a_larger_one_is_refused(self, bus):
        largest = b"x" * MAX_PAYLOAD_BYTES
        await bus.publish("in." + MARKET, largest)
        with pytest.raises(Refused) as refused:
            await bus.publish("in." + MARKET, largest + b"x")
        assert refused.value.code == 10054
        done: Collector[Ack | BusError] = Collector()
        bus.send("in." + MARKET, b"x" * 2 * MAX_PAYLOAD_BYTES, {}, done.put)
        assert isinstance((await done.reach(1))[0], Refused)
        with pytest.raises(Refused):
            await bus.kv_put(bus.subjects.state_bucket, "feed", largest + b"x", 0)
        assert bus.is_ready
        assert [stored.data for stored in await bus.read_back((MARKET,), 1)] == [largest]

    @pytest.mark.parametrize("scope", ["all", "sub"])
    async def test_rollup_headers_are_refused_everywhere(self, bus, scope):
        subjects = bus.subjects
        await bus.publish("in." + MARKET, b"1")
        buckets = (subjects.state_bucket, subjects.memory_bucket, subjects.registry_bucket)
        for bucket in buckets:
            await bus.kv_put(bucket, "other", b"theirs", 0)
        for target in ("in." + MARKET, *(f"$KV.{bucket}.mine" for bucket in buckets)):
            with pytest.raises(Refused, match="rollup not permitted"):
                await bus.publish(target, b"", {"Nats-Rollup": scope})
        assert await bus.bounds() == Bounds(first=1, last=1)
        assert [(await bus.kv_get(bucket, "other")).value for bucket in buckets] == [b"theirs"] * 3

    # -- claims and the fence

    async def test_the_fence_refuses_a_stale_epoch(self, bus, mesh):
        old = await claim(bus, "voter", agent_id=new_agent_id(), claimed_by="test", sandbox="")
        await bus.publish("in." + SIGNAL, b"1", {h.MSG_ID: "voter:1", **fence(bus, "voter", old)})
        new = await claim(bus, "voter", agent_id=new_agent_id(), claimed_by="test", sandbox="")
        found = await received_by(await mesh.connect(), "swarm.>")
        with pytest.raises(WrongSequence):
            await bus.publish("in." + SIGNAL, b"zombie", {h.MSG_ID: "voter:2", **fence(bus, "voter", old)})
        with pytest.raises(WrongSequence):  # though it is a repetition: a zombie must learn what it is
            await bus.publish("in." + SIGNAL, b"1", {h.MSG_ID: "voter:1", **fence(bus, "voter", old)})
        done: Collector[Ack | BusError] = Collector()
        bus.send("in." + SIGNAL, b"zombie", {h.MSG_ID: "voter:2", **fence(bus, "voter", old)}, done.put)
        assert isinstance((await done.reach(1))[0], WrongSequence)
        ack = await bus.publish("in." + SIGNAL, b"2", {h.MSG_ID: "voter:2", **fence(bus, "voter", new)})
        assert ack == Ack(new + 1)
        again = await bus.publish("in." + SIGNAL, b"2", {h.MSG_ID: "voter:2", **fence(bus, "voter", new)})
        assert again == Ack(new + 1, duplicate=True)
        assert [received.data for received in await found.reach(1)] == [b"2"]
        assert [stored.data for stored in await bus.read_back((SIGNAL,), 1)] == [b"1", b"2"]

    async def test_a_fence_concerns_its_own_agent_only(self, bus):
        mine = await claim(bus, "voter", agent_id="a", claimed_by="test", sandbox="")
        await claim(bus, "feed", agent_id="b", claimed_by="test", sandbox="")
        assert (await bus.publish("in." + SIGNAL, b"1", fence(bus, "voter", mine))).sequence == 3
        with pytest.raises(WrongSequence):
            await bus.publish("in." + SIGNAL, b"1", fence(bus, "nobody", mine))

    async def test_claims_raise_the_epoch(self, bus):
        assert await last_claim(bus, "voter") is None
        epochs = []
        for number in range(3):
            await bus.publish("in." + MARKET, b"{}")
            epochs.append(await claim(bus, "voter", agent_id=f"id-{number}", claimed_by="host", sandbox="base"))
        assert epochs == [2, 4, 6]
        last = await last_claim(bus, "voter")
        assert last is not None
        assert last.sequence == 6
        assert last.headers[h.TTL] == "never"
        message = last.decode(bus.subjects)
        assert isinstance(message, Epoch)
        assert (message.agent, message.claim, message.claimed_by, message.sandbox) == ("voter", "id-2", "host", "base")

    async def test_of_concurrent_claims_one_wins(self, bus, mesh):
        rivals = [await mesh.connect() for _ in range(4)]
        expect = 0
        for turn in range(5):
            results = await asyncio.gather(
                *(
                    claim(rival, "voter", agent_id=f"{turn}-{n}", claimed_by="test", sandbox="", expect=expect)
                    for n, rival in enumerate(rivals)
                ),
                return_exceptions=True,
            )
            won = [result for result in results if isinstance(result, int)]
            lost = [result for result in results if isinstance(result, WrongSequence)]
            assert (len(won), len(lost)) == (1, 3)
            expect = won[0]
        assert len(await bus.read_back(("swarm.epoch.voter",), 1)) == 5

    async def test_a_claim_whose_answer_was_lost_is_found_again(self, bus):
        losing = LosingBus(bus, lands=True)
        epoch = await claim(losing, "voter", agent_id="mine", claimed_by="test", sandbox="")
        assert losing.lost == 1
        assert [claimed.sequence for claimed in await bus.read_back(("swarm.epoch.voter",), 1)] == [epoch]

    async def test_a_claim_that_landed_is_found_again_when_it_is_repeated(self, bus):
        epoch = await claim(bus, "voter", agent_id="mine", claimed_by="test", sandbox="", expect=0)
        assert await claim(bus, "voter", agent_id="mine", claimed_by="test", sandbox="", expect=0) == epoch
        with pytest.raises(WrongSequence):
            await claim(bus, "voter", agent_id="other", claimed_by="test", sandbox="", expect=0)

    async def test_a_claim_that_was_lost_altogether_is_not_taken_for_one(self, bus):
        await claim(bus, "voter", agent_id="theirs", claimed_by="test", sandbox="")
        with pytest.raises(BusTimeout):
            await claim(LosingBus(bus, lands=False), "voter", agent_id="mine", claimed_by="test", sandbox="")
        assert len(await bus.read_back(("swarm.epoch.voter",), 1)) == 1

    # -- reading

    async def test_read_back_filters_and_begins(self, bus):
        for subject in (MARKET, SIGNAL, "swarm.market.B.feed", MARKET):
            await bus.publish("in." + subject, b"{}")

        async def read(first: int, *filters: str) -> list[int]:
            return [stored.sequence for stored in await bus.read_back(filters, first)]

        assert await read(1, "swarm.>") == [1, 2, 3, 4]
        assert await read(0, "swarm.>") == [1, 2, 3, 4]
        assert await read(3, "swarm.>") == [3, 4]
        assert await read(1, "swarm.market.>") == [1, 3, 4]
        assert await read(1, "swarm.*.*.feed") == [1, 3, 4]
        assert await read(2, MARKET, SIGNAL) == [2, 4]
        assert await read(1, "swarm.*.A.*") == [1, 2, 4]
        assert await read(5, "swarm.>") == []
        assert await read(1, "swarm.decision.>") == []

    async def test_read_back_reads_much(self, bus):
        done: Collector[Ack | BusError] = Collector()
        for number in range(3000):
            bus.send("in." + (MARKET if number % 3 else SIGNAL), str(number).encode(), {}, done.put)
        await done.reach(3000)
        found = await bus.read_back((MARKET,), 1)
        assert [int(stored.data) for stored in found] == [number for number in range(3000) if number % 3]
        assert [stored.pending for stored in found] == list(range(len(found) - 1, -1, -1))

    async def test_last_is_the_newest_of_a_subject(self, bus):
        assert await bus.last(MARKET) is None
        for data in (b"1", b"2"):
            await bus.publish("in." + MARKET, data, {h.MSG_ID: data.decode()})
        await bus.publish("in." + SIGNAL, b"3")
        last = await bus.last(MARKET)
        assert (last.subject, last.sequence, last.data, last.headers[h.MSG_ID]) == (MARKET, 2, b"2", "2")

    async def test_follow_goes_on_from_the_past_into_the_present(self, bus, mesh):
        for number in range(1, 6):
            await bus.publish("in." + (SIGNAL if number == 4 else MARKET), str(number).encode())
        found: Collector[StoredMessage] = Collector()
        await bus.follow(("swarm.market.>",), 2, found)
        earlier = list(await found.reach(3))
        assert [(stored.sequence, stored.data, stored.pending) for stored in earlier] == [
            (2, b"2", 2),
            (3, b"3", 1),
            (5, b"5", 0),
        ]
        writer = await mesh.connect()
        for number in range(6, 30):
            await writer.publish("in." + (SIGNAL if number % 2 else MARKET), str(number).encode())
        assert [stored.sequence for stored in await found.reach(15)] == [2, 3, 5, *range(6, 30, 2)]

    async def test_follow_of_several_filters_keeps_the_order_of_the_stream(self, bus):
        found: Collector[StoredMessage] = Collector()
        await bus.follow(("swarm.market.>", "swarm.*.*.voter"), 1, found)
        done: Collector[Ack | BusError] = Collector()
        subjects = [MARKET, SIGNAL, "swarm.headline.A.feed", "swarm.market.B.feed", "swarm.decision.A.voter"]
        for number in range(500):
            bus.send("in." + subjects[number % 5], b"", {}, done.put)
        expected = [number + 1 for number in range(500) if number % 5 != 2]
        assert [stored.sequence for stored in await found.reach(len(expected))] == expected

    async def test_follow_may_begin_beyond_the_end(self, bus):
        found: Collector[StoredMessage] = Collector()
        await bus.follow(("swarm.>",), 3, found)
        for number in range(1, 5):
            await bus.publish("in." + MARKET, str(number).encode())
        assert [stored.sequence for stored in await found.reach(2)] == [3, 4]

    async def test_a_follower_is_called_serially(self, bus):
        under_way, most = 0, 0
        found: Collector[StoredMessage] = Collector()

        async def on_stored(stored: StoredMessage) -> None:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0)
            under_way -= 1
            found.put(stored)

        await bus.follow(("swarm.>",), 1, on_stored)
        for _ in range(20):
            await bus.publish("in." + MARKET, b"")
        await found.reach(20)
        assert most == 1

    async def test_a_follower_that_raises_gets_the_next_message(self, bus):
        found: Collector[StoredMessage] = Collector()

        async def on_stored(stored: StoredMessage) -> None:
            found.put(stored)
            raise ValueError(stored.sequence)

        await bus.follow(("swarm.>",), 1, on_stored)
        for _ in range(3):
            await bus.publish("in." + MARKET, b"")
        assert [stored.sequence for stored in await found.reach(3)] == [1, 2, 3]

    async def test_a_closed_follower_receives_nothing_more(self, bus):
        closed: Collector[StoredMessage] = Collector()
        other: Collector[StoredMessage] = Collector()
        follower = await bus.follow(("swarm.>",), 1, closed)
        await bus.follow(("swarm.>",), 1, other)
        await bus.publish("in." + MARKET, b"")
        await closed.reach(1)
        await follower.close()
        await follower.close()
        await bus.publish("in." + MARKET, b"")
        await other.reach(2)
        await bus.bounds()
        assert len(closed.items) == 1

    # -- key-value

    async def test_keys_are_written_by_compare_and_set(self, bus):
        bucket = bus.subjects.state_bucket
        assert await bus.kv_get(bucket, "feed") is None
        first = await bus.kv_put(bucket, "feed", b"1", 0)
        with pytest.raises(WrongSequence):
            await bus.kv_put(bucket, "feed", b"lost", 0)
        other = await bus.kv_put(bucket, "voter", b"v", 0)
        second = await bus.kv_put(bucket, "feed", b"2", first)
        assert first < other < second
        for stale in (0, first, other, second + 1):
            with pytest.raises(WrongSequence):
                await bus.kv_put(bucket, "feed", b"lost", stale)
        retained = await bus.kv_get(bucket, "feed")
        assert (retained.value, retained.revision) == (b"2", second)

    async def test_a_deleted_key_is_written_as_a_new_one(self, bus):
        bucket = bus.subjects.registry_bucket
        await bus.kv_delete(bucket, "feed")
        first = await bus.kv_put(bucket, "feed", b"1", 0)
        await bus.kv_put(bucket, "voter", b"v", 0)
        await bus.kv_delete(bucket, "feed")
        assert await bus.kv_get(bucket, "feed") is None
        assert [*await bus.kv_all(bucket)] == ["voter"]
        with pytest.raises(WrongSequence):
            await bus.kv_put(bucket, "feed", b"lost", first)
        second = await bus.kv_put(bucket, "feed", b"2", 0)
        with pytest.raises(WrongSequence):
            await bus.kv_put(bucket, "feed", b"lost", 0)
        assert (await bus.kv_get(bucket, "feed")).revision == second

    async def test_of_concurrent_writes_one_wins(self, bus, mesh):
        rivals = [await mesh.connect() for _ in range(4)]
        bucket = bus.subjects.memory_bucket
        results = await asyncio.gather(
            *(rival.kv_put(bucket, "feed", str(n).encode(), 0) for n, rival in enumerate(rivals)),
            return_exceptions=True,
        )
        [winner] = [n for n, result in enumerate(results) if isinstance(result, int)]
        assert sum(isinstance(result, WrongSequence) for result in results) == 3
        assert (await bus.kv_get(bucket, "feed")).value == str(winner).encode()

    async def test_all_keys_of_a_bucket(self, bus):
        subjects = bus.subjects
        assert await bus.kv_all(subjects.memory_bucket) == {}
        revisions = {}
        for key in ("swarm/feed/market_data", "swarm/voter/signal"):
            revisions[key] = await bus.kv_put(subjects.memory_bucket, key, b"old", 0)
            revisions[key] = await bus.kv_put(subjects.memory_bucket, key, key.encode(), revisions[key])
        await bus.kv_put(subjects.state_bucket, "feed", b"elsewhere", 0)
        found = await bus.kv_all(subjects.memory_bucket)
        assert {key: retained.value for key, retained in found.items()} == {key: key.encode() for key in revisions}
        assert {key: retained.revision for key, retained in found.items()} == revisions

    async def test_the_registry_keeps_the_newest_incarnation(self, bus):
        def record(epoch: int, pid: int) -> Record:
            return Record(
                agent_id=f"agent_{epoch}_abcdef",
                name="voter",
                kind="momentum",
                capabilities=("trend_detection",),
                status="active",
                epoch=epoch,
                sandbox="base",
                pid=pid,
                spawned_at="2020-01-01T00:00:00Z",  # type: ignore[arg-type]
            )

        assert await write_record(bus, record(5, 1))
        assert await write_record(bus, record(7, 2))
        assert not await write_record(bus, record(5, 3))
        assert await write_record(bus, record(7, 4))
        found = await read_records(bus)
        assert (list(found), found["voter"].epoch, found["voter"].pid) == (["voter"], 7, 4)

    # -- core messages

    async def test_tell_is_delivered_and_not_stored(self, bus, mesh):
        found = await received_by(await mesh.connect(), "swarm.heartbeat.*")
        await bus.notify("swarm.heartbeat.feed", b"beat")
        await bus.notify("swarm.control.feed.probe", b"not for them")
        await bus.notify("swarm.heartbeat.voter", b"beat too")
        assert [(received.subject, received.data) for received in await found.reach(2)] == [
            ("swarm.heartbeat.feed", b"beat"),
            ("swarm.heartbeat.voter", b"beat too"),
        ]
        assert await bus.bounds() == Bounds(first=1, last=0)

    @pytest.mark.parametrize("directly", [False, True])
    async def test_a_closed_listener_receives_nothing_more(self, bus, directly):
        closed: Collector[ReceivedMessage] = Collector()
        if directly:
            listener = await bus.listen_directly("swarm.heartbeat.>", closed.put)
        else:
            listener = await bus.listen("swarm.heartbeat.>", closed)
        other = await received_by(bus, "swarm.heartbeat.>")
        await bus.notify("swarm.heartbeat.feed", b"1")
        await closed.reach(1)
        await listener.close()
        await bus.bounds()
        await bus.notify("swarm.heartbeat.feed", b"2")
        await other.reach(2)
        assert len(closed.items) == 1

    async def test_a_listener_that_raises_receives_the_next(self, bus):
        found: Collector[ReceivedMessage] = Collector()

        async def on_message(received: ReceivedMessage) -> None:
            found.put(received)
            raise ValueError(received.subject)

        await bus.listen("swarm.heartbeat.>", on_message)
        await bus.bounds()
        for _ in range(3):
            await bus.notify("swarm.heartbeat.feed", b"")
        assert len(await found.reach(3)) == 3

    async def test_a_direct_listener_receives_all_in_order_and_the_next_after_it_raises(self, bus, mesh):
        found: Collector[ReceivedMessage] = Collector()

        def on_received(received: ReceivedMessage) -> None:
            found.put(received)
            if received.data == b"2":
                raise ValueError(received.subject)

        sender = await mesh.connect()
        await bus.listen_directly("swarm.heartbeat.*", on_received)
        await bus.flush()
        for number in range(1, 5):
            await sender.notify("swarm.heartbeat.feed", b"%d" % number)
        received = await found.reach(4)
        assert [(each.subject, each.data) for each in received] == [
            ("swarm.heartbeat.feed", b"%d" % number) for number in range(1, 5)
        ]
        assert await bus.bounds() == Bounds(first=1, last=0), "the connection is still there"

    async def test_a_request_is_answered(self, bus, mesh):
        server = await mesh.connect()

        async def on_request(received: ReceivedMessage) -> bytes:
            return received.subject.encode() + b" " + received.data[::-1]

        await server.answer("swarm.control.feed.*", on_request)
        await server.bounds()
        async with asyncio.timeout(GUARD_S):
            answers = await asyncio.gather(
                *(bus.request("swarm.control.feed.probe", str(number).encode()) for number in range(10, 20))
            )
        assert answers == [f"swarm.control.feed.probe {str(n)[::-1]}".encode() for n in range(10, 20)]

    async def test_a_request_without_a_responder_fails_at_once(self, bus):
        async with asyncio.timeout(5):
            with pytest.raises(BusTimeout, match=r"swarm\.control\.nobody\.probe: no process serves it"):
                await bus.request("swarm.control.nobody.probe", b"", timeout_s=60)

    async def test_a_request_that_is_not_answered_times_out(self, bus):
        requested: Collector[ReceivedMessage] = Collector()

        async def on_request(received: ReceivedMessage) -> bytes:
            requested.put(received)
            if received.data == b"hang":
                raise ValueError("cannot")
            return b"done"

        await bus.answer("swarm.control.feed.probe", on_request)
        await bus.bounds()
        with pytest.raises(BusTimeout, match="no answer within"):
            await bus.request("swarm.control.feed.probe", b"hang", timeout_s=0.05)
        assert await bus.request("swarm.control.feed.probe", b"") == b"done"
        assert len(requested.items) == 2

    # -- the connection

    async def test_an_open_bus_is_ready(self, bus):
        assert bus.is_ready
        async with asyncio.timeout(GUARD_S):
            await bus.wait_connected()

    async def test_a_closed_bus_is_down_for_everything(self, bus):
        await bus.close()
        await bus.close()
        assert not bus.is_ready
        bucket = bus.subjects.state_bucket

        async def never(_: Any) -> bytes:
            raise AssertionError

        for call in (
            lambda: bus.publish("in." + MARKET, b""),
            lambda: bus.send("in." + MARKET, b"", {}, lambda _: None),
            lambda: bus.notify("swarm.heartbeat.feed", b""),
            lambda: bus.last(MARKET),
            lambda: bus.read_back(("swarm.>",), 1),
            lambda: bus.follow(("swarm.>",), 1, never),
            bus.bounds,
            lambda: bus.kv_get(bucket, "feed"),
            lambda: bus.kv_put(bucket, "feed", b"", 0),
            lambda: bus.kv_all(bucket),
            lambda: bus.listen("swarm.>", never),
            lambda: bus.listen_directly("swarm.>", lambda _: None),
            lambda: bus.answer("swarm.control.feed.probe", never),
            lambda: bus.request("swarm.control.feed.probe", b""),
        ):
            with pytest.raises(Disconnected):
                await call()
