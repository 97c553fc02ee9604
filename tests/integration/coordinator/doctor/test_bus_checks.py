"""What `doctor` finds over the bus, where a real server is really so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bus.durable.events import EventPublisher
from bus.durable.registry import Record, write_record
from bus.durable.snapshots import Snapshot
from bus.messages import now
from bus.nats.bus import NatsBus
from bus.nats.streams import DiskRoom, ensure_streams
from bus.server.supervisor import NatsServer
from coordinator.config.loader import parse_swarm
from coordinator.doctor.bus_checks import check_bus
from coordinator.doctor.runner import diagnose
from coordinator.reporting.findings import Finding
from coordinator.runner.run_record import Recorded
from tests.support.nats import Connections, plain_server
from tests.support.run_records import living_run

CONFIG = parse_swarm({}, "swarm.toml", "")
SMALL = replace(CONFIG, stream=replace(CONFIG.stream, max_bytes=2 << 20))


async def checked(bus: NatsBus, directory: Path, config=CONFIG, run=None) -> dict[str, Finding]:
    return {finding.check: finding for finding in await check_bus(bus, config, run, directory)}


@pytest.mark.slow
async def test_a_bus_in_order_with_the_durability_that_is_active(tmp_path):
    async with NatsServer(tmp_path, port=0, durability="power") as server, Connections() as connections:
        bus = await connections.bus(server.url, streams=True)
        assert server.pid is not None
        recorded = Recorded.of("nats-server", "nats-server", server.pid)
        assert recorded is not None
        power = replace(CONFIG, stream=replace(CONFIG.stream, durability="power"))
        found = await checked(bus, tmp_path, power, living_run(recorded))
        assert {name: finding.level for name, finding in found.items() if finding.level != "ok"} == {}
        assert "active: power" in found["durability"].text
        assert not found["durability"].skipped
        assert found["hosts' clocks"].skipped
        other = await checked(bus, tmp_path, CONFIG, living_run(recorded))
        assert other["durability"].level == "warning"


@pytest.mark.slow
async def test_streams_that_are_missing_or_other_than_this_version_makes_them(tmp_path):
    async with NatsServer(tmp_path, port=0) as server, Connections() as connections:
        bus = await connections.bus(server.url)
        missing = await checked(bus, tmp_path)
        assert missing["stream swarm_events"].level == "error"
        assert missing["store"].skipped
        await ensure_streams(bus)
        limits = await checked(bus, tmp_path, SMALL)
        assert limits["stream swarm_events"].level == "warning"
        assert "max_bytes is 1,024.0 MiB, expected 2.0 MiB" in limits["stream swarm_events"].text
        config = (await bus.api("STREAM.INFO.KV_swarm_state"))["config"]
        await bus.api("STREAM.UPDATE.KV_swarm_state", {**config, "allow_rollup_hdrs": True})
        changed = await checked(bus, tmp_path)
        assert changed["stream KV_swarm_state"].level == "error"
        assert "allow_rollup_hdrs" in changed["stream KV_swarm_state"].text
        assert changed["stream swarm_events"].level == "ok"


async def test_a_stream_that_keeps_less_as_its_disk_is_small(tmp_path):
    async with NatsServer(tmp_path, port=0) as server, Connections() as connections:
        bus = await connections.bus(server.url)
        room = DiskRoom(free_bytes=100 << 20, used_bytes=0, place="/somewhere")
        await ensure_streams(bus, replace(CONFIG.stream.limits(), disk=room))
        found = (await checked(bus, tmp_path))["stream swarm_events"]
        assert found.level == "ok"
        assert "keeps 40.0 MiB: its disk has no room for [stream] max_bytes" in found.text


async def test_cursors_that_the_stream_has_left_behind(tmp_path):
    async with NatsServer(tmp_path, port=0) as server, Connections() as connections:
        bus = await connections.bus(server.url)
        await ensure_streams(bus, SMALL.stream.limits())
        for _ in range(20):
            await bus.publish("in.swarm.headline.X.stranger", b'"' + b"x" * 200_000 + b'"')
        bounds = await bus.bounds()
        assert bounds.first > 5
        bucket = bus.subjects.state_bucket
        for name, cursor in (("gone", 3), ("soon", bounds.first), ("new", bounds.last), ("fresh", 0)):
            await bus.kv_put(bucket, name, Snapshot(cursor=cursor).encode(), 0)
        await bus.kv_put(bucket, "damaged", b'{"cursor": "far"}', 0)
        found = await checked(bus, tmp_path, SMALL)
        printed = {name: found[f"cursor of {name}"].level for name in ("gone", "soon", "new", "fresh", "damaged")}
        assert printed == {"gone": "error", "soon": "warning", "new": "ok", "fresh": "warning", "damaged": "error"}
        assert f"{bounds.first - 4} messages after its cursor are gone" in found["cursor of gone"].text


@pytest.mark.slow
async def test_an_account_that_is_nearly_full(tmp_path):
    store, conf = tmp_path / "store", tmp_path / "nats.conf"
    conf.write_text(
        f'jetstream {{ store_dir: "{store}" }}\n'
        "accounts { A { jetstream { max_file: 2200000 }, users: [ { user: a, password: a } ] } }\n"
        "no_auth_user: a\n"
    )
    async with plain_server(tmp_path, "-c", str(conf)) as url, Connections() as connections:
        bus = await connections.bus(url)
        await ensure_streams(bus, SMALL.stream.limits())
        assert (await checked(bus, tmp_path, SMALL))["store"].level == "ok"
        for _ in range(10):
            await bus.publish("in.swarm.headline.X.stranger", b'"' + b"x" * 204_000 + b'"')
        found = await checked(bus, tmp_path, SMALL)
        assert found["store"].level == "error"
        assert "2.1 MiB" in found["store"].text


async def test_a_server_without_jetstream_and_one_that_is_not_there(tmp_path):
    async with plain_server(tmp_path) as url:
        found = await diagnose(url, tmp_path / "state", None, tmp_path)
        errors = {finding.check for finding in found.findings if finding.level == "error"}
        assert errors == {"nats-server"}
        assert not found.running
    found = await diagnose(url, tmp_path / "state", None, tmp_path)
    assert {finding.check for finding in found.findings if finding.level == "error"} == {"bus"}


@pytest.mark.slow
async def test_a_quarantined_agent_is_a_warning_with_the_reason(tmp_path):
    async with NatsServer(tmp_path, port=0) as server, Connections() as connections:
        bus = await connections.bus(server.url)
        await ensure_streams(bus)
        assert (await checked(bus, tmp_path))["agents"].level == "ok"
        record = Record(
            agent_id="i", name="one", kind="k", capabilities=(), status="quarantined", epoch=5, sandbox="base", pid=1,
            spawned_at=now(),
        )  # fmt: skip
        await write_record(bus, record)
        async with await EventPublisher.open(bus, "watchdog") as reports:
            reports.lifecycle("quarantined", "one", epoch=5, sandbox="base", reason="10 deaths, the last one: boom")
        found = (await checked(bus, tmp_path))["agents"]
        assert (found.level, found.text) == ("warning", "one is quarantined: 10 deaths, the last one: boom")
        assert found.remedy == "fix the cause, then signalmesh revive one"
