"""A real mirror process on a real server: killed, doubled, damaged, in want of room; and histories not mixed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sqlite3
from contextlib import AsyncExitStack

import pytest

from bus.interface import ReceivedMessage
from bus.messages import MAX_PAYLOAD_BYTES
from bus.mirror.reader import MirrorFile
from bus.mirror.writer import WAL_KEPT_BYTES
from bus.nats.bus import NatsBus
from bus.nats.streams import StreamLimits, ensure_streams
from tests.support.collecting import GUARD_S, Collector
from tests.support.mirroring import Heartbeats, MirrorProcess, assert_mirrored, mirror_process
from tests.support.nats import Connections, supervised_server


async def put(bus: NatsBus, first: int, count: int) -> int:
    """Messages of several kinds, one of them no JSON; the last sequence."""
    last = 0
    for number in range(first, first + count):
        kind = ("signal", "market", "decision")[number % 3]
        data = b"\x00\xff" if number % 50 == 0 else json.dumps({"round": number, "symbol": "BTC/USD"}).encode()
        subject = f"in.swarm.{kind}.BTC-USD.one"
        last = (await bus.publish(subject, data, {"Nats-Msg-Id": f"one:{number}", "Mesh-Output": str(number)})).sequence
    return last


async def snapshot(bus: NatsBus, key: str, cursor: int) -> int:
    found = await bus.kv_get(bus.subjects.state_bucket, key)
    data = json.dumps({"version": 1, "epoch": 1, "cursor": cursor, "outputs": cursor, "state": {}}).encode()
    return await bus.kv_put(bus.subjects.state_bucket, key, data, found.revision if found else 0)


@pytest.mark.slow
async def test_killed_at_any_moment_under_load_it_holds_every_message_once(tmp_path):
    chance = random.Random(int(os.environ.get("MIRROR_SEED") or 7))
    async with supervised_server(tmp_path / "server") as server, Connections() as connections:
        bus = await connections.bus(server.url, streams=True)
        heartbeats = await Heartbeats.of(bus)
        done = asyncio.Event()

        async def load() -> None:
            number = 1
            while not done.is_set():
                last = await put(bus, number, 20)
                await snapshot(bus, f"agent-{number % 3}", last)
                number += 20

        async with mirror_process(server.url, tmp_path / "m.sqlite") as mirror:
            loading = asyncio.create_task(load())
            for _ in range(6):
                await heartbeats.until(pid=mirror.process.pid)
                progress = int(str(heartbeats.last["cursor"])) + chance.randrange(1, 200)
                async with asyncio.timeout(GUARD_S):
                    while (
                        int(str(heartbeats.last["cursor"])) < progress and heartbeats.last["pid"] == mirror.process.pid
                    ):
                        await asyncio.sleep(0.005)
                await mirror.kill()
                with MirrorFile(
                    mirror.file
                ) as file:  # at rest: contiguous up to its cursor, and state never ahead of it
                    sequences = [found.row.sequence for found in file.messages()]
                    assert sequences == list(range(1, file.cursor() + 1))
                    for value in file.values("swarm_state").values():
                        assert json.loads(value.row.value)["cursor"] <= file.cursor()
                await mirror.start()
            done.set()
            await loading
            await heartbeats.until(pid=mirror.process.pid)
            await mirror.end()
            assert await assert_mirrored(bus, mirror.file) > 200
            with MirrorFile(mirror.file) as file:
                assert file.gaps() == []
                assert json.loads(file.meta("complete") or "")["swarm_events"] == file.cursor()
                assert [one.reason for one in file.incarnations()] == ["first"]


async def test_the_servers_death_loses_and_duplicates_nothing(tmp_path):
    async with supervised_server(tmp_path / "server") as server, Connections() as connections:
        bus = await connections.bus(server.url, streams=True)
        heartbeats = await Heartbeats.of(bus)
        async with mirror_process(server.url, tmp_path / "m.sqlite") as mirror:
            for round_number in range(3):
                last = await put(bus, 100 * round_number + 1, 100)
                await heartbeats.until(cursor=last, status="live")
                server.kill()
                await server.restarted.reach(round_number + 1)
                await bus.wait_connected()
            last = await put(bus, 301, 50)
            await heartbeats.until(cursor=last, lag=0, status="live")
            assert await assert_mirrored(bus, mirror.file) == 350


@pytest.mark.slow
async def test_a_second_mirror_on_the_file_is_refused(tmp_path):
    async with supervised_server(tmp_path / "server") as server, Connections() as connections:
        bus = await connections.bus(server.url, streams=True)
        heartbeats = await Heartbeats.of(bus)
        async with mirror_process(server.url, tmp_path / "m.sqlite") as mirror:
            await heartbeats.until(status="live")
            second = MirrorProcess(server.url, mirror.file)
            await second.start()
            assert "another mirror writes it" in await second.ended(2)
            last = await put(bus, 1, 10)
            await heartbeats.until(cursor=last)


async def alerts_of(bus: NatsBus) -> Collector[ReceivedMessage]:
    received: Collector[ReceivedMessage] = Collector()
    await bus.listen(bus.subjects.all_of("alert"), received)
    return received


async def test_a_damaged_file_is_set_aside_and_filled_again(tmp_path):
    async with supervised_server(tmp_path / "server") as server, Connections() as connections:
        bus = await connections.bus(server.url, streams=True)
        heartbeats, alerts = await Heartbeats.of(bus), await alerts_of(bus)
        last = await put(bus, 1, 400)
        async with mirror_process(server.url, tmp_path / "m.sqlite") as mirror:
            await heartbeats.until(cursor=last)
            await mirror.end()
            broken = bytearray(mirror.file.read_bytes())
            broken[0:4096] = b"x" * 4096
            mirror.file.write_bytes(broken)
            await mirror.start()
            [alert] = await alerts.reach(1)
            assert json.loads(alert.data)["code"] == "mirror_file_replaced"
            await heartbeats.until(cursor=last + 1)  # the alert is a message too
            assert await assert_mirrored(bus, mirror.file) == last + 1
            [aside] = tmp_path.glob("m.sqlite.damaged-*")
            assert aside.read_bytes() == bytes(broken)
            assert str(aside) in json.loads(alert.data)["message"]


@pytest.mark.slow
async def test_a_file_that_cannot_be_written_is_waited_for(tmp_path):
    async with supervised_server(tmp_path / "server") as server, Connections() as connections:
        bus = await connections.bus(server.url, streams=True)
        heartbeats, alerts = await Heartbeats.of(bus), await alerts_of(bus)
        async with mirror_process(server.url, tmp_path / "m.sqlite") as mirror:
            await heartbeats.until(status="live")
            blocker = sqlite3.connect(mirror.file, isolation_level=None)
            blocker.execute("BEGIN IMMEDIATE")  # longer than the mirror's patience with a busy file
            await put(bus, 1, 30)
            [alert] = await alerts.reach(1)
            assert json.loads(alert.data)["code"] == "mirror_failing"
            await heartbeats.until(status="failing")
            blocker.execute("ROLLBACK")
            blocker.close()
            await alerts.reach(2)
            assert json.loads(alerts.items[1].data)["code"] == "mirror_recovered"
            await heartbeats.until(cursor=32, status="live")
            assert await assert_mirrored(bus, mirror.file) == 32


async def test_the_log_shrinks_again_after_a_reader_without_another_message(tmp_path):
    async with supervised_server(tmp_path / "server") as server, Connections() as connections:
        bus = await connections.bus(server.url, streams=True)
        heartbeats = await Heartbeats.of(bus)
        async with mirror_process(server.url, tmp_path / "m.sqlite") as mirror:
            await heartbeats.until(status="live")
            log = mirror.file.with_name("m.sqlite-wal")
            reader = sqlite3.connect(mirror.file, isolation_level=None)
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM messages").fetchall()
            last, big = 0, bytes(MAX_PAYLOAD_BYTES)
            for _ in range(WAL_KEPT_BYTES // MAX_PAYLOAD_BYTES + 1):
                last = (await bus.publish("in.swarm.signal.BTC-USD.one", big)).sequence
            await heartbeats.until(cursor=last, status="live")
            assert log.stat().st_size > WAL_KEPT_BYTES
            reader.close()
            async with asyncio.timeout(GUARD_S):
                while log.stat().st_size:
                    await asyncio.sleep(0.02)


@pytest.mark.slow
async def test_streams_that_are_not_made_yet_are_waited_for_and_not_called_lost(tmp_path):
    async with supervised_server(tmp_path / "server") as server, Connections() as connections:
        bus = await connections.bus(server.url)
        heartbeats, alerts = await Heartbeats.of(bus), await alerts_of(bus)
        async with mirror_process(server.url, tmp_path / "m.sqlite") as mirror:
            await heartbeats.until(status="waiting", sequence=10)  # it has looked for them meanwhile
            await ensure_streams(bus)
            last = await put(bus, 1, 5)
            await heartbeats.until(cursor=last, lag=0, status="live")
            await mirror.end()
            assert await assert_mirrored(bus, mirror.file) == last, "no alert was stored either"
            assert alerts.items == []


@pytest.mark.slow
@pytest.mark.parametrize("how", ["emptied", "remade with more in it"])
async def test_two_histories_are_never_mixed(tmp_path, how):
    async with supervised_server(tmp_path / "server") as server, Connections() as connections:
        bus = await connections.bus(server.url, streams=True)
        heartbeats, alerts = await Heartbeats.of(bus), await alerts_of(bus)
        async with mirror_process(server.url, tmp_path / "m.sqlite") as mirror:
            last = await put(bus, 1, 40)
            await heartbeats.until(cursor=last, lag=0)
            await bus.api("STREAM.DELETE.swarm_events")
            await ensure_streams(bus)
            if how != "emptied":
                await put(bus, 1000, 90)
            [alert, *_] = await alerts.reach(1)
            assert json.loads(alert.data)["code"] == "mirror_other_history"
            await heartbeats.until(status="diverged", cursor=last)
            await mirror.end()
            with MirrorFile(mirror.file) as file:
                assert file.bounds() == (1, last)
                assert json.loads(file.messages().__next__().row.payload)["round"] == 1


async def test_what_was_gone_before_it_was_mirrored_is_reported_and_recorded(tmp_path):
    async with supervised_server(tmp_path / "server") as server, AsyncExitStack() as stack:
        connections = await stack.enter_async_context(Connections())
        bus = await connections.bus(server.url)
        await ensure_streams(bus, StreamLimits(max_bytes=1 << 20))
        heartbeats, alerts = await Heartbeats.of(bus), await alerts_of(bus)
        async with mirror_process(server.url, tmp_path / "m.sqlite") as mirror:
            last = await put(bus, 1, 10)
            await heartbeats.until(cursor=last, lag=0)
            await mirror.end()
            for _ in range(80):  # more than the stream keeps
                await bus.publish("in.swarm.headline.BTC-USD.one", b'"' + b"x" * 32_000 + b'"')
            first = (await bus.bounds()).first
            assert first > last + 1
            await mirror.start()
            [alert] = await alerts.reach(1)
            reported = json.loads(alert.data)
            assert reported["code"] == "mirror_gap"
            assert reported["detail"] == {"first_missing": last + 1, "last_missing": first - 1}
            await heartbeats.until(lag=0, status="live")
            await mirror.end()
            with MirrorFile(mirror.file) as file:
                assert [(gap.first, gap.last, gap.reason) for gap in file.gaps()] == [
                    (last + 1, first - 1, "retention")
                ]
                sequences = [found.row.sequence for found in file.messages()]
                assert sequences == [*range(1, last + 1), *range(first, file.cursor() + 1)]


async def test_history_is_read_with_everything_stopped(tmp_path):
    from typer.testing import CliRunner

    from coordinator.cli.app import app

    async with supervised_server(tmp_path / "server") as server, Connections() as connections:
        bus = await connections.bus(server.url, streams=True)
        heartbeats = await Heartbeats.of(bus)
        async with mirror_process(server.url, tmp_path / "mirror.sqlite") as mirror:
            last = await put(bus, 1, 60)
            await bus.publish(
                "in.swarm.alert.warning.one",
                b'{"severity":"warning","code":"x","message":"\\u001b[31mred","source":"one"}',
            )
            await snapshot(bus, "one", last)
            await heartbeats.until(cursor=last + 1, lag=0)
            await mirror.end()

    def history(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["history", *arguments, "--file", str(mirror.file)])
        assert result.exit_code == 0, result.output
        return result.output

    found = json.loads(history("decisions", "--limit", "3", "--json"))
    assert [entry["payload"]["round"] for entry in found["entries"]] == [53, 56, 59]
    assert [entry["sequence"] for entry in found["entries"]] == [53, 56, 59]
    assert len(json.loads(history("signal", "--since", "1h", "--limit", "100", "--json"))["entries"]) == 20
    assert json.loads(history("signal", "--since", "2099-01-01", "--json"))["entries"] == []
    plain = history("alerts")
    assert "red" in plain
    assert "\x1b" not in plain
    assert json.loads(history("snapshots", "--json"))["entries"][0]["payload"]["cursor"] == last
    assert "one" in history("snapshot")
