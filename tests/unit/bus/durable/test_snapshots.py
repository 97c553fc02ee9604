"""Snapshots: one chain of compare-and-set, taken over by the successor and lost by the zombie."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from bus.durable.snapshots import Snapshot, SnapshotStore, first_snapshot
from bus.errors import BusTimeout, Disconnected, Fenced, MeshError
from bus.testing.memory_bus import MemoryBus, MemoryServer

AGENT = "voter"


class UnsureBus(MemoryBus):
    """Loses the answers of the writes named in `lost` ("landed") or the writes themselves ("gone")."""

    def __init__(self, server: MemoryServer, *lost: str) -> None:
        super().__init__(server)
        self.lost = list(lost)

    async def kv_put(self, bucket: str, key: str, value: bytes, expect: int) -> int:
        fate = self.lost.pop(0) if self.lost else "answered"
        if fate != "gone":
            revision = await super().kv_put(bucket, key, value, expect)
            if fate == "answered":
                return revision
        raise BusTimeout("no answer")


@pytest.fixture
def bus() -> MemoryBus:
    return MemoryBus(MemoryServer())


def snapshot(epoch: int, cursor: int, **fields: Any) -> Snapshot:
    return Snapshot(epoch=epoch, cursor=cursor, outputs=cursor * 2, **fields)


async def retained(bus: MemoryBus) -> Snapshot:
    found = await bus.kv_get(bus.subjects.state_bucket, AGENT)
    assert found is not None
    return SnapshotStore(bus, AGENT, 0).read(found.value)


async def put(bus: MemoryBus, data: bytes) -> None:
    found = await bus.kv_get(bus.subjects.state_bucket, AGENT)
    await bus.kv_put(bus.subjects.state_bucket, AGENT, data, found.revision if found else 0)


async def test_the_first_incarnation_takes_over_nothing(bus):
    store = SnapshotStore(bus, AGENT, 5)
    assert await store.take_over() == Snapshot(epoch=5)
    assert await retained(bus) == Snapshot(epoch=5)
    assert store.saved == Snapshot(epoch=5).encode()


async def test_everything_survives_the_way_through_the_bus(bus):
    store = SnapshotStore(bus, AGENT, 5)
    await store.take_over()
    full = Snapshot(
        epoch=5, cursor=9, outputs=4, output_sequence=8, inputs=7, poison=1, timers_set=2, skipped=[11, 12],
        timers={"round": {"number": 2, "topic": "A", "after_ms": 1500}},
        last_produced={"subject": "s", "payload": {"n": 1}},
        state={"highs": [1.0, 2.5], "name": "\u00e9"},
    )  # fmt: skip
    await store.save(full)
    successor = SnapshotStore(bus, AGENT, 8)
    full.epoch = 8
    assert await successor.take_over() == full


async def test_state_may_be_json_already(bus):
    store = SnapshotStore(bus, AGENT, 5)
    await store.take_over()
    await store.save(snapshot(5, 3, state=orjson.Fragment(b'{"seen":[1,2]}')))
    assert (await retained(bus)).state == {"seen": [1, 2]}


async def test_the_successor_fences_the_older_incarnation(bus):
    old, new = SnapshotStore(bus, AGENT, 5), SnapshotStore(bus, AGENT, 8)
    await old.take_over()
    await old.save(snapshot(5, 3))
    assert (await new.take_over()).cursor == 3
    with pytest.raises(Fenced):
        await old.save(snapshot(5, 4))
    assert (await retained(bus)).cursor == 3
    await new.save(snapshot(8, 6))
    with pytest.raises(Fenced):
        await old.save(snapshot(5, 4))
    with pytest.raises(Fenced):
        await old.take_over()
    assert ((await retained(bus)).epoch, (await retained(bus)).cursor) == (8, 6)


async def test_a_key_that_has_gone_fences(bus):
    store = SnapshotStore(bus, AGENT, 5)
    await store.take_over()
    bus.server.buckets.clear()
    with pytest.raises(Fenced):
        await store.save(snapshot(5, 3))


async def test_an_unreadable_snapshot_of_another_writer_has_taken_over(bus):
    store = SnapshotStore(bus, AGENT, 5)
    await store.take_over()
    await put(bus, b'{"version": 2, "epoch": 8}')
    with pytest.raises(Fenced):
        await store.save(snapshot(5, 3))


@pytest.mark.parametrize("fate", ["landed", "gone"])
async def test_a_save_whose_answer_was_lost_is_made_up_for(fate):
    bus = UnsureBus(MemoryServer(), "answered", fate)
    store = SnapshotStore(bus, AGENT, 5)
    await store.take_over()
    before = store.saved
    with pytest.raises(BusTimeout):
        await store.save(snapshot(5, 3))
    assert (await retained(bus)).cursor == (3 if fate == "landed" else 0)
    assert store.saved == before
    await store.save(snapshot(5, 4))
    assert (await retained(bus)).cursor == 4
    await store.save(snapshot(5, 5))
    assert (await retained(bus)).cursor == 5


@pytest.mark.parametrize("fates", [["landed"], ["gone"], ["gone", "landed", "landed"]])
async def test_a_take_over_whose_answer_was_lost_is_made_up_for(fates):
    server = MemoryServer()
    before = SnapshotStore(MemoryBus(server), AGENT, 5)
    await before.take_over()
    await before.save(snapshot(5, 3))
    bus = UnsureBus(server, *fates)
    store = SnapshotStore(bus, AGENT, 8)
    assert (await store.take_over()).cursor == 3
    await store.save(snapshot(8, 4))
    assert ((await retained(bus)).epoch, (await retained(bus)).cursor) == (8, 4)


async def test_a_write_of_the_older_incarnation_in_between_is_taken_over_as_well(bus):
    old, new = SnapshotStore(bus, AGENT, 5), SnapshotStore(bus, AGENT, 8)
    await old.take_over()
    get = bus.kv_get
    raced = False

    async def racing(bucket: str, key: str) -> Any:
        nonlocal raced
        found = await get(bucket, key)
        if not raced:
            raced = True
            await old.save(snapshot(5, 7))
        return found

    bus.kv_get = racing
    assert (await new.take_over()).cursor == 7


async def test_a_broken_connection_is_reported(bus):
    store = SnapshotStore(bus, AGENT, 5)
    await store.take_over()
    bus.disconnect()
    with pytest.raises(Disconnected):
        await store.save(snapshot(5, 3))
    with pytest.raises(Disconnected):
        await store.take_over()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b'{"cursor": "three"}', b'{"cursor": null}'])
async def test_what_is_no_snapshot_is_reported_and_replaced(bus, data):
    await put(bus, data)
    store = SnapshotStore(bus, AGENT, 5)
    assert await store.take_over() == Snapshot(epoch=5)
    assert "snapshot of voter: cannot be read" in store.unreadable
    await store.save(snapshot(5, 3))
    again = SnapshotStore(bus, AGENT, 6)
    assert (await again.take_over()).cursor == snapshot(5, 3).cursor
    assert not again.unreadable


@pytest.mark.parametrize("data", [b'{"version": 2}', b'{"version": 0}'])
async def test_what_another_program_has_written_is_left_alone(bus, data):
    await put(bus, data)
    with pytest.raises(MeshError, match="snapshot of voter") as unreadable:
        await SnapshotStore(bus, AGENT, 5).take_over()
    assert not isinstance(unreadable.value, Fenced)
    found = await bus.kv_get(bus.subjects.state_bucket, AGENT)
    assert found is not None
    assert found.value == data


async def test_another_version_is_named(bus):
    await put(bus, b'{"version": 7}')
    with pytest.raises(MeshError, match="version 7, this program supports 1"):
        await SnapshotStore(bus, AGENT, 5).take_over()


async def test_an_agent_that_comes_later_begins_where_it_is_told_unless_it_has_a_state(bus):
    first = first_snapshot(40, 7)
    taken = await SnapshotStore(bus, AGENT, 5, first).take_over()
    assert (taken.epoch, taken.cursor, taken.output_sequence, taken.outputs, taken.timers_set) == (5, 40, 40, 7, 40)
    assert first.epoch == 0
    assert (await SnapshotStore(bus, AGENT, 6, first_snapshot(90, 9)).take_over()).cursor == 40
