"""What a server has lost is restored from the mirror: at its sequences, unheard, fenced, above the old revisions."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bus.durable.fencing import claim, fence
from bus.errors import BusError, OtherHistory, WrongSequence
from bus.interface import ReceivedMessage, StoredMessage
from bus.mirror import restore as restore_module
from bus.mirror.reader import MirrorFile
from bus.mirror.restore import MARGIN, RestoreResult, restore_lost
from bus.mirror.schema import KvRow, MessageRow, StreamIncarnation
from bus.mirror.writer import MirrorStore
from bus.nats.bus import NatsBus
from bus.nats.streams import StreamLimits, ensure_streams, expected_streams
from coordinator.audit.runner import audit_bus, audit_file
from coordinator.runner.mirror_role import restore
from tests.support.collecting import Collector
from tests.support.mirroring import Heartbeats, MirrorProcess, assert_mirrored, mirror_process
from tests.support.nats import Connections, supervised_server

STREAMS = ("swarm_events", "KV_swarm_state", "KV_swarm_agents", "KV_swarm_memory")


class Scene:
    """A server, a mirror of it, and messages as agents leave them."""

    def __init__(self, bus: NatsBus, mirror: MirrorProcess, heartbeats: Heartbeats) -> None:
        self.bus, self.mirror, self.heartbeats = bus, mirror, heartbeats
        self.epochs: dict[str, int] = {}
        self.outputs = 0

    async def live(self, agent: str, outputs: int) -> None:
        """An incarnation that publishes and snapshots."""
        bus = self.bus
        self.epochs[agent] = await claim(bus, agent, agent_id=f"{agent}-{self.outputs}", claimed_by="t", sandbox="")
        for _ in range(outputs):
            self.outputs += 1
            headers = {
                "Nats-Msg-Id": f"{agent}:{self.outputs}", "Mesh-Output": str(self.outputs),
                **fence(bus, agent, self.epochs[agent]),
            }  # fmt: skip
            await bus.publish(f"in.swarm.signal.BTC-USD.{agent}", b'{"n":%d}' % self.outputs, headers)
        last = (await bus.bounds()).last
        found = await bus.kv_get("swarm_state", agent)
        value = {"version": 1, "epoch": self.epochs[agent], "cursor": last, "outputs": self.outputs, "state": {}}
        await bus.kv_put("swarm_state", agent, json.dumps(value).encode(), found.revision if found else 0)
        found = await bus.kv_get("swarm_agents", agent)
        await bus.kv_put("swarm_agents", agent, b'{"epoch":%d}' % self.epochs[agent], found.revision if found else 0)

    async def stored(self) -> list[StoredMessage]:
        return await self.bus.read_back(("swarm.>",), 1)

    async def mirrored(self) -> None:
        """Let the mirror read everything, and end."""
        await self.heartbeats.reached(self.mirror.process.pid, 0)  # from here on it ends as asked
        await self.mirror.end()

    async def lose(self, *streams: str) -> None:
        for stream in streams or STREAMS:
            await self.bus.api(f"STREAM.DELETE.{stream}")

    async def restore(self, limits: StreamLimits | None = None) -> RestoreResult | None:
        store = await MirrorStore.open(self.mirror.file, "swarm")
        try:
            return await restore_lost(self.bus, store, limits or StreamLimits(), "up")
        finally:
            await store.close()

    async def assert_goes_on(self) -> None:
        """The streams are what `up` would make, and the mirror follows them without complaint."""
        for wanted in expected_streams(self.bus, StreamLimits(), is_guarded=False):
            config = (await self.bus.api(f"STREAM.INFO.{wanted['name']}"))["config"]
            assert {key: config.get(key) or False for key in wanted if key != "allow_rollup_hdrs"} == {
                key: wanted[key] or config.get(key) or False for key in wanted if key != "allow_rollup_hdrs"
            }
        await ensure_streams(self.bus)
        await self.mirror.start()
        await self.live("a", 3)
        await self.mirrored()
        await assert_mirrored(self.bus, self.mirror.file, rebuilt=True)


@asynccontextmanager
async def scene(directory: Path) -> AsyncIterator[Scene]:
    async with supervised_server(directory / "server") as server, Connections() as connections:
        bus = await connections.bus(server.url, streams=True)
        async with mirror_process(server.url, directory / "m.sqlite") as mirror:
            yield Scene(bus, mirror, await Heartbeats.of(bus))


def contents(messages: list[StoredMessage]) -> list[tuple[Any, ...]]:
    return [(m.sequence, m.subject, m.data, dict(m.headers)) for m in messages]


async def test_after_an_orderly_end_everything_is_as_it_was(tmp_path):
    async with scene(tmp_path) as it:
        bus = it.bus
        await it.live("a", 30)
        await it.live("b", 30)
        await it.live("a", 30)  # a second claim: the fences of the first hold up to here only
        await bus.publish("in.swarm.headline.X.ext", b"\xff\x00", {"Nats-Expected-Last-Sequence": str(await last(bus))})
        before = await it.stored()
        state = {bucket: await bus.kv_all(bucket) for bucket in ("swarm_state", "swarm_agents")}
        old = dict(it.epochs)
        await it.mirrored()
        received: Collector[ReceivedMessage] = Collector()
        await bus.listen("swarm.*.>", received)
        await it.lose()
        result = await it.restore()
        assert result is not None
        assert (result.clean, result.missing_from, result.messages) == (True, None, len(before))
        assert (result.first, result.last, result.unfenced, result.damaged) == (1, before[-1].sequence, 0, [])
        after = await it.stored()
        assert contents(after[: len(before)]) == contents(before)
        assert [m.subject for m in after[len(before) :]] == [
            "swarm.epoch.a", "swarm.epoch.b", "swarm.lifecycle.swarm.up",
        ]  # fmt: skip
        reported = json.loads(after[-1].data)
        assert (reported["event"], reported["detail"]["missing_from"]) == ("rebuilt", None)
        for bucket, values in state.items():
            now = await bus.kv_all(bucket)
            assert {key: retained.value for key, retained in now.items()} == {
                key: retained.value for key, retained in values.items()
            }
            assert min(retained.revision for retained in now.values()) > max(
                retained.revision for retained in values.values()
            )
            for key, retained in values.items():
                with pytest.raises(WrongSequence):  # somebody who survived
                    await bus.kv_put(bucket, key, b"stale", retained.revision)
        for agent, epoch in old.items():
            with pytest.raises(WrongSequence):
                await bus.publish(f"in.swarm.signal.X.{agent}", b"{}", fence(bus, agent, epoch))
        await bus.publish("in.swarm.signal.X.ext", b"{}")
        assert [item.subject for item in await received.reach(1)] == ["swarm.signal.X.ext"]  # and nothing put back
        assert await it.restore() is None
        await it.assert_goes_on()


async def last(bus: NatsBus) -> int:
    return (await bus.bounds()).last


async def test_what_the_mirror_did_not_have_is_named_and_its_numbers_are_not_used_again(tmp_path):
    async with scene(tmp_path) as it:
        bus = it.bus
        await it.live("a", 20)
        known = await last(bus)
        await it.heartbeats.reached(it.mirror.process.pid, known)
        await it.mirror.kill()
        await it.live("a", 10)  # these, and this claim, the mirror never hears of
        lost_epoch, lost_end = it.epochs["a"], await last(bus)
        assert lost_end > known
        await it.lose()
        result = await it.restore()
        assert result is not None
        assert (result.clean, result.last, result.missing_from) == (False, known, known + 1)
        after = await it.stored()
        assert [m.sequence for m in after[:known]] == list(range(1, known + 1))
        assert after[known].sequence == known + MARGIN + 1 > lost_end
        assert f"messages from {known + 1} on" in json.loads(after[-1].data)["reason"]
        with pytest.raises(WrongSequence):
            await bus.publish("in.swarm.signal.X.a", b"{}", fence(bus, "a", lost_epoch))
        snapshot = await bus.kv_get("swarm_state", "a")
        assert snapshot is not None
        assert json.loads(snapshot.value)["cursor"] <= known
        with MirrorFile(it.mirror.file) as file:
            assert [(g.first, g.last, g.reason) for g in file.gaps()] == [(known + 1, known + MARGIN, "lost")]
        await it.assert_goes_on()
        of_stream, of_file = (await audit_bus(bus)).notes, audit_file(it.mirror.file).notes
        free = f"messages {known + 1} to {known + MARGIN} were left unused: messages from {known + 1} on"
        assert [note for note in of_stream if "message" in note] == [
            f"the stream was restored from the mirror: {free} may be lost"
        ]
        gone = f"{MARGIN} messages are missing (left unused after the bus was lost), the last of them {known + MARGIN}"
        assert [note for note in of_file if f"{known + MARGIN}:" in note] == [f"{gone}: they are unchecked"]


@pytest.mark.slow
async def test_an_interrupted_restore_starts_again(tmp_path, monkeypatch):
    async with scene(tmp_path) as it:
        await it.live("a", 40)
        before = await it.stored()
        await it.mirrored()
        await it.lose()

        async def dies(self: object, *_: object) -> None:
            raise BusError("the process dies here")

        for step in ("_raise_epochs", "_report"):
            with monkeypatch.context() as patch:
                patch.setattr(restore_module._Restore, step, dies)
                with pytest.raises(BusError, match="dies here"):
                    await it.restore()
            config = (await it.bus.api("STREAM.INFO.swarm_events"))["config"]
            assert config["subjects"] == ["restore.swarm.>"]  # nobody can publish into half a stream
        result = await it.restore()
        assert result is not None
        assert result.clean
        after = await it.stored()
        assert contents(after[: len(before)]) == contents(before)
        assert len(after) == len(before) + 2
        await it.assert_goes_on()


async def test_holes_repeated_ids_expired_claims_and_damage(tmp_path):
    """A file as years may leave it, made by hand."""
    async with scene(tmp_path) as it:
        bus = it.bus
        await it.mirrored()
        await it.lose()
        now, old = time.time_ns(), time.time_ns() - 30 * 24 * 3600 * 10**9
        never = {"Nats-TTL": "never", "Nats-Expected-Last-Subject-Sequence": "1"}
        about = {"Nats-Expected-Last-Subject-Sequence-Subject": "swarm.epoch.a"}
        rows = [
            MessageRow(5, old, "swarm.epoch.a", {**never, **about}, b"claim"),  # the one before it has gone
            MessageRow(90, old, "swarm.signal.X.a", {"Nats-Msg-Id": "a:1"}, b"too old"),
            MessageRow(100, now, "swarm.signal.X.a", {"Nats-Msg-Id": "poison:1"}, b"1"),
            MessageRow(101, now, "swarm.signal.X.a", {"Nats-Msg-Id": "poison:1"}, b"2"),
            MessageRow(120, now, "_R_.in.swarm.signal.*.x", {}, b"stored where clients publish"),
            MessageRow(121, now, "swarm.signal.a\u00a0b.x", {}, b"a blank"),
            MessageRow(122, now, "swarm.signal.\x7f1.x", {}, b"a byte of the index"),
            MessageRow(140, now, "swarm.signal.X.a", {"Nats-Expected-Last-Subject-Sequence": "5", **about}, b"3"),
            MessageRow(141, now, "swarm.signal.X.a", {}, b"damaged"),
            MessageRow(142, now, "swarm.signal.X.b", {"Nats-Expected-Last-Subject-Sequence": "7", **about}, b"4"),
        ]
        value = b'{"epoch":5,"cursor":%d}'
        retained = [
            KvRow("swarm_state", "a", 70, "PUT", value % 140, now), KvRow("swarm_state", "a", 71, "PUT", b"x", now),
            KvRow("swarm_state", "b", 72, "PUT", value % 100, now), KvRow("swarm_state", "b", 73, "DEL", b"", now),
            KvRow("swarm_state", "c", 74, "PUT", value % 9999, now),
        ]  # fmt: skip
        store = await MirrorStore.open(it.mirror.file, "swarm")
        await store.write(rows, retained, {"swarm_events": 142, "KV_swarm_state": 74})
        await store.close()
        with sqlite3.connect(it.mirror.file) as db:
            db.execute("UPDATE messages SET payload = ? WHERE sequence = 141", (b"DAMAGED",))
            db.execute("UPDATE kept SET value = ? WHERE revision = 71", (b"y",))
        db.close()
        result = await it.restore()
        assert result is not None
        assert (result.first, result.last, result.messages, result.damaged) == (5, 142, 6, [141])
        assert result.foreign == [120, 121]
        assert result.holes == (142 - 5 + 1) - 6 + MARGIN  # between the first and the last, and after the last
        assert result.unfenced == 2  # the first claim's condition, and a fence that never held
        assert result.values_left_out == ["swarm_state c"]
        after = await it.stored()
        assert [(m.sequence, m.data) for m in after[:6]] == [
            (5, b"claim"),
            (100, b"1"),
            (101, b"2"),
            (122, b"a byte of the index"),
            (140, b"3"),
            (142, b"4"),
        ]
        assert after[4].headers["Nats-Expected-Last-Subject-Sequence"] == "5"
        assert after[0].headers["Nats-TTL"] == "never"
        assert after[6].sequence == 142 + MARGIN + 1
        state = await bus.kv_all("swarm_state")
        assert {key: retained.value for key, retained in state.items()} == {"a": value % 140}
        assert state["a"].revision > 74


async def test_too_many_holes_leave_the_older_messages_in_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(restore_module, "MAX_PLACEHOLDERS", 50)
    async with scene(tmp_path) as it:
        await it.mirrored()
        await it.lose()
        store = await MirrorStore.open(it.mirror.file, "swarm")
        at = time.time_ns()
        await store.write(
            [MessageRow(n, at, "swarm.signal.X.a", {}, b"%d" % n) for n in (10, 90, 100, 120)],
            [],
            {"swarm_events": 120},
        )
        await store.close()
        result = await it.restore()
        assert result is not None
        assert (result.first, result.messages, result.left_out) == (90, 3, 1)
        assert "1 older messages are in the mirror's file only" in str(result)
        assert [m.sequence for m in (await it.stored())[:3]] == [90, 100, 120]


async def test_the_sequences_that_are_left_free_are_a_gap_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(restore_module, "MARGIN", 20)
    async with supervised_server(tmp_path / "server") as server, Connections() as connections:
        bus = await connections.bus(server.url)
        store = await MirrorStore.open(tmp_path / "m.sqlite", "swarm")
        connections.push_async_callback(store.close)
        await store.begin([StreamIncarnation("swarm_events", "2026-01-01T00:00:00Z", b"{}", 0, "first")])
        rows = [MessageRow(n, time.time_ns(), "swarm.signal.X.a", {}, b"%d" % n) for n in (1, 2, 3)]
        await store.write(rows, [], {"swarm_events": 3})
        result = await restore_lost(bus, store, StreamLimits(), "up")
        assert result is not None
        assert (result.clean, result.last, store.cursors["swarm_events"]) == (False, 3, 23)
        with MirrorFile(store.path) as file:
            assert [(gap.first, gap.last, gap.reason) for gap in file.gaps()] == [(4, 23, "lost")]
        assert [m.sequence for m in await bus.read_back(("swarm.>",), 1)] == [1, 2, 3, 24]


async def test_a_lost_bucket_is_restored_alone(tmp_path):
    async with scene(tmp_path) as it:
        await it.live("a", 5)
        state = await it.bus.kv_all("swarm_state")
        before = await it.stored()
        await it.mirrored()
        await it.lose("KV_swarm_state")
        result = await it.restore()
        assert result is not None
        assert (result.messages, result.buckets) == (0, {"swarm_state": 1})
        now = await it.bus.kv_all("swarm_state")
        assert now["a"].value == state["a"].value
        assert now["a"].revision > state["a"].revision
        assert contents((await it.stored())[: len(before)]) == contents(before)
        await it.assert_goes_on()


@pytest.mark.slow
async def test_a_stream_that_ends_before_the_mirror_does_gets_the_rest_back(tmp_path):
    async with scene(tmp_path) as it:
        bus = it.bus
        await it.live("a", 20)
        before = await it.stored()
        await it.mirrored()
        await it.lose("swarm_events")
        await ensure_streams(bus)
        for message in before[:8]:  # as after a loss of power: the beginning is there
            await bus.publish("in." + message.subject, message.data, message.headers)
        result = await it.restore()
        assert result is not None
        assert contents((await it.stored())[: len(before)]) == contents(before)
        await it.assert_goes_on()


@pytest.mark.slow
async def test_another_history_is_not_touched(tmp_path):
    async with scene(tmp_path) as it:
        await it.live("a", 5)
        await it.mirrored()
        await it.lose("swarm_events")
        await ensure_streams(it.bus)
        await it.bus.publish("in.swarm.signal.X.other", b"{}")
        there = await it.stored()
        with pytest.raises(OtherHistory, match="differs from the mirror's"):
            await it.restore()
        reported, usable = await restore(it.bus, it.mirror.file, StreamLimits(), "up")
        assert usable
        assert "does not continue the mirror" in reported
        assert contents(await it.stored()) == contents(there)


@pytest.mark.slow
async def test_the_role_restores_when_requested(tmp_path):
    async with scene(tmp_path) as it:
        await it.live("a", 12)
        before = await it.stored()
        await it.mirrored()
        await it.lose()
        await it.mirror.start("--rebuild")
        await it.heartbeats.reached(it.mirror.process.pid, len(before) + 1)
        assert contents((await it.stored())[: len(before)]) == contents(before)
        assert "restored from the mirror" in await it.mirror.end()
