"""The same pages over a mirror's file at rest, without a bus."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import httpx
import pytest

from bus.durable.registry import Record, write_record
from bus.durable.snapshots import Snapshot
from bus.messages import now
from bus.nats.bus import NatsBus
from coordinator.dashboard.mirror_source import MirrorSource
from coordinator.dashboard.read_back import decisions_before
from signalmesh import python_command
from tests.support.collecting import GUARD_S
from tests.support.dashboard import dashboard_process, put_alert, put_death, put_lifecycle, put_round
from tests.support.mirroring import Heartbeats, mirror_process
from tests.support.nats import Connections, supervised_server

NOBODY = ("--nats", "nats://127.0.0.1:1")


async def mirrored(tmp_path: Path) -> Path:
    """The file of a mirror of a small stream; the server and the mirror have ended."""
    file = tmp_path / "mirror.sqlite"
    async with supervised_server(tmp_path) as server, Connections() as connections:
        bus = await connections.bus(server.url, streams=True)
        heartbeats = await Heartbeats.of(bus)
        await fill(bus)
        async with mirror_process(server.url, file) as mirror:
            await heartbeats.reached(mirror.process.pid, (await bus.bounds()).last)
            await mirror.end()
    return file


async def fill(bus: NatsBus) -> None:
    for number in range(1, 6):
        await put_round(bus, number)
    await put_lifecycle(bus, "ready", "momentum", epoch=3, sandbox="base")
    await put_alert(bus, "disk is full")
    await put_death(bus, "reversion")
    record = Record(
        agent_id="a", name="momentum", kind="momentum", capabilities=("x",), status="active", epoch=3, sandbox="base",
        pid=1, spawned_at=now(),
    )  # fmt: skip
    await write_record(bus, record)
    await bus.kv_put(bus.subjects.state_bucket, "momentum", Snapshot(epoch=3, cursor=9, state={"n": 1}).encode(), 0)


@pytest.mark.slow
async def test_the_pages_show_the_file_and_nothing_can_be_acted_on(tmp_path):
    file = await mirrored(tmp_path)
    async with (
        dashboard_process(tmp_path, None, "--file", str(file)) as dashboard,
        httpx.AsyncClient(base_url=dashboard.url, timeout=GUARD_S) as http,
    ):
        found = (await http.get("/api/overview")).json()
        assert (found["source"]["kind"], found["source"]["name"]) == ("file", str(file))
        assert not found["actions"]
        assert [row["round"] for row in found["decisions"]] == [1, 2, 3, 4, 5]
        assert found["rates"]["n"] == 5
        assert found["totals"]["decisions"] == 5
        assert found["alerts"][0]["message"] == "disk is full"
        [agent] = found["agents"]
        assert (agent["name"], agent["status"], agent["heartbeat"]) == ("momentum", "silent", None)
        about = (await http.get("/api/agents/momentum")).json()
        assert about["snapshot"]["state"] == {"n": 1}
        assert about["log"] is None
        assert about["log_reason"]
        assert about["life"][0]["event"] == "ready"
        message = (await http.get("/api/messages/2")).json()
        assert message["payload"]["decision_id"] == "BTC/USD:research-1:1"
        assert (await http.get("/api/messages/99")).status_code == 404
        lanes = (await http.get("/api/timeline")).json()["lanes"]
        assert "momentum" in [lane["name"] for lane in lanes]
        [death] = next(lane["deaths"] for lane in lanes if lane["name"] == "reversion")
        counted = (await http.get(f"/api/deaths/{death['id']}")).json()["account"]
        assert (counted["outputs_lost"], counted["outputs_duplicated"], counted["outputs_checked"]) == (1, 1, 6)
        assert counted["first_output_ms"] is not None
        page = (await http.get("/api/decisions", params={"limit": 3})).json()
        assert ([row["round"] for row in page["decisions"]], page["before"]) == ([5, 4, 3], 6)
        chart = (await http.get("/api/candles", params={"symbol": "BTC/USD", "before": 7})).json()
        assert ([row["sequence"] for row in chart["candles"]], chart["before"]) == ([1, 3, 5], None)
        assert [row["id"] for row in chart["decisions"]] == [f"BTC/USD:research-1:{n}" for n in (1, 2, 3)]
        edges = (await http.get("/api/mesh")).json()["edges"]
        assert [(edge["from"], edge["to"], edge["count"]) for edge in edges] == [("research-1", "coordinator", 5)]
        for page in ("/", "/timeline", "/mesh", "/agents/momentum", "/messages/2"):
            assert (await http.get(page)).status_code == 200, page
        for wanted, status in (("nothing", 404), ("BTC/USD:research-1:99", 404), ("BTC/USD:research-1:6", 404)):
            answer = await http.get(f"/api/decisions/{wanted}")
            assert answer.status_code == status, answer.text
            assert (await http.get(f"/decisions/{wanted}")).status_code == status
        assert (await http.post("/api/agents/momentum/kill", headers={"Origin": dashboard.url})).status_code == 401
        assert not (dashboard.state_dir / "dashboard.token").exists()  # nothing needs one
        await dashboard.end()


@pytest.mark.slow
async def test_a_damaged_row_is_left_out_and_named(tmp_path):
    file = await mirrored(tmp_path)
    with sqlite3.connect(file) as db:
        db.execute("UPDATE messages SET payload = replace(payload, '104', '999') WHERE sequence = 7")
    async with (
        dashboard_process(tmp_path, None, "--file", str(file)) as dashboard,
        httpx.AsyncClient(base_url=dashboard.url, timeout=GUARD_S) as http,
    ):
        found = (await http.get("/api/overview")).json()
        assert [candle["c"] for candle in found["candles"]] == [101.0, 102.0, 103.0, 105.0]
        assert "1 rows of the file are damaged" in found["source"]["problem"]
        for path in ("/api/messages/7", "/api/decisions/8", "/messages/7"):
            answer = await http.get(path)
            assert answer.status_code == 503, path
            if path.startswith("/api/"):
                assert "message 7 does not match its checksum" in answer.json()["error"]


@pytest.mark.slow
async def test_decisions_are_paged_through_around_damaged_rows(tmp_path):
    file = await mirrored(tmp_path)
    with sqlite3.connect(file) as db:
        db.execute("UPDATE messages SET payload = replace(payload, 'buy', 'sell') WHERE sequence IN (4, 6)")
    source = MirrorSource(file)
    rows = await decisions_before(source.stored, (), 10, 2)
    assert [row["sequence"] for row in rows] == [8, 2]
    assert [row["latency_ms"] is not None for row in rows] == [True, True]
    for _ in range(2):
        await source.refresh()
        assert source.describe()["problem"] == "2 rows of the file are damaged and left out"
    source.close()


async def run(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *python_command("dashboard", *arguments), cwd=tmp_path, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with asyncio.timeout(GUARD_S):
        out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


@pytest.mark.slow
async def test_a_mirror_of_another_version_is_named(tmp_path):
    file = await mirrored(tmp_path)
    with sqlite3.connect(file) as db:
        db.execute("PRAGMA user_version = 99")
    code, text = await run(tmp_path, "--file", str(file), "--listen", "127.0.0.1:0")
    assert code == 2
    assert "its version is 99" in text
    assert "Traceback" not in text


@pytest.mark.slow
async def test_mistakes_are_one_line_with_what_was_expected(tmp_path):
    (tmp_path / "text").write_text("no mirror")
    for arguments, words in (
        (["--file", "nowhere.sqlite", "--listen", "127.0.0.1:0"], "no such file"),
        (["--file", "text", "--listen", "127.0.0.1:0"], "text"),
        ([*NOBODY, "--listen", "8080"], "HOST:PORT"),
        ([*NOBODY, "--listen", "192.0.2.1:80"], "cannot listen there"),
        ([*NOBODY, "--jaeger", "javascript:alert(1)", "--listen", "127.0.0.1:0"], "--jaeger"),
        (["--link"], "no dashboard of it runs"),
        (["--state-dir", "text", *NOBODY, "--listen", "127.0.0.1:0"], "--state-dir"),
    ):
        code, text = await run(tmp_path, *arguments)
        assert code == (1 if "damaged" in text else 2), text
        assert words in text
        assert len(text.splitlines()) == 1, text
