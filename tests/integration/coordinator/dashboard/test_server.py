"""The dashboard process over a real nats-server and real HTTP."""

from __future__ import annotations

import asyncio
import html
import re
import socket
import stat
import urllib.parse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from bus.messages import Heartbeat, MarketData, encode
from bus.messages.headers import CAUSE
from bus.nats.bus import NatsBus
from bus.nats.streams import ensure_streams
from coordinator.dashboard.source import HISTORY
from tests.support import counted
from tests.support.collecting import GUARD_S
from tests.support.dashboard import (
    DashboardProcess,
    dashboard_process,
    event_stream,
    put,
    put_alert,
    put_death,
    put_round,
    stalled_client,
)
from tests.support.nats import Connections, Supervised, supervised_server
from tests.support.ports import free_port

ODD = "a/b \r\n?#%2F%\x00é\u2028\\"
ODD_SYMBOLS = ("a\nb", "\n", "latest", "..", "../x", "/", "a:b=c", "'\";$(x)", ODD)
MARKUP = '<script>alert("1")</script>'


class World:
    def __init__(self, server: Supervised, bus: NatsBus, dashboard: DashboardProcess, http: httpx.AsyncClient) -> None:
        self.server, self.bus, self.dashboard, self.http = server, bus, dashboard, http

    async def overview(self, **wanted: Any) -> dict[str, Any]:
        """The overview, once its source has these fields."""
        async with asyncio.timeout(GUARD_S):
            while True:
                found: dict[str, Any] = (await self.http.get("/api/overview")).json()
                if all(found["source"][name] == value for name, value in wanted.items()):
                    return found
                await asyncio.sleep(0.02)


@asynccontextmanager
async def world(tmp_path: Path, *options: str, listen: str = "127.0.0.1:0") -> AsyncIterator[World]:
    async with supervised_server(tmp_path) as server, Connections() as connections:
        bus = await connections.bus(server.url, streams=True)
        for number in range(1, 4):
            await put_round(bus, number)
        async with (
            dashboard_process(tmp_path, server.url, *options, listen=listen) as dashboard,
            httpx.AsyncClient(base_url=dashboard.url, timeout=GUARD_S) as http,
        ):
            yield World(server, bus, dashboard, http)


async def test_history_and_live_messages_are_shown_with_their_sources(tmp_path):
    async with world(tmp_path) as it:
        found = await it.overview(connected=True, read_through=6)
        assert [candle["c"] for candle in found["candles"]] == [101.0, 102.0, 103.0]
        assert [(row["sequence"], row["id"]) for row in found["decisions"]] == [
            (2 * n, f"BTC/USD:research-1:{n}") for n in (1, 2, 3)
        ]
        assert all(row["latency_ms"] >= 0 and row["stored_at"].endswith("Z") for row in found["decisions"])
        assert found["rates"]["n"] == 3
        assert "3 decisions stored" in found["rates"]["from"]
        async with event_stream(it.dashboard.address, f"?after={found['event_id']}") as events:
            cause, sequence = await put_round(it.bus, 4)
            tick = await events.until("market")
            assert (tick.data["symbol"], tick.data["sequence"]) == ("BTC/USD", cause)
            decision = await events.until("decision")
            assert decision.data["sequence"] == sequence
            rates = await events.until("rates")
            assert rates.data["n"] == 4
        mesh = (await it.http.get("/api/mesh")).json()
        assert [(edge["from"], edge["to"], edge["count"]) for edge in mesh["edges"]] == [
            ("research-1", "coordinator", 4)
        ]
        page = (await it.http.get("/api/decisions", params={"limit": 2, "before": 8})).json()
        assert [row["sequence"] for row in page["decisions"]] == [6, 4]
        assert page["before"] == 4
        log = await it.dashboard.end()
        assert it.dashboard.token not in log
        command = f"`signalmesh dashboard --link --state-dir {it.dashboard.state_dir}` prints it with the token"
        assert f"dashboard: {it.dashboard.url}/ ({command})" in log.splitlines()[0]


async def all_decisions(http: httpx.AsyncClient, limit: int) -> list[dict[str, Any]]:
    """Every decision, page by page, from the newest on."""
    rows: list[dict[str, Any]] = []
    before: int | None = None
    while True:
        answer = await http.get("/api/decisions", params={"limit": limit, **({"before": before} if before else {})})
        assert answer.status_code == 200, answer.text
        page = answer.json()
        rows += page["decisions"]
        assert len(page["decisions"]) <= limit
        before = page["before"]
        if before is None:
            return rows


@pytest.mark.slow
async def test_all_stored_decisions_are_paged_through_and_have_pages(tmp_path):
    rounds = HISTORY // 2 + 300  # more than is read at the start, and more than is kept
    async with supervised_server(tmp_path) as server, Connections() as connections:
        bus = await connections.bus(server.url, streams=True)
        for first in range(1, rounds + 1, 100):  # in order, as each connection's messages are
            await asyncio.gather(*(put_round(bus, number) for number in range(first, min(first + 100, rounds + 1))))
        async with (
            dashboard_process(tmp_path, server.url) as dashboard,
            httpx.AsyncClient(base_url=dashboard.url, timeout=GUARD_S) as http,
        ):
            it = World(server, bus, dashboard, http)
            await it.overview(connected=True, read_through=2 * rounds)
            rows = await all_decisions(http, 1000)
            sequences = [row["sequence"] for row in rows]
            assert sequences == sorted(set(sequences), reverse=True)
            assert sorted(row["round"] for row in rows) == [*range(1, rounds + 1)]
            assert all(row["latency_ms"] is not None for row in rows)
            oldest = rows[-1]
            for wanted in (oldest["sequence"], oldest["id"], rows[rounds // 2]["id"]):
                # Nothing has voted, so that it differs: it is found and computed.
                assert (await http.get(f"/api/decisions/{wanted}")).json()["same"] is False
                assert (await http.get(f"/decisions/{wanted}")).status_code == 200
            server.kill()
            await it.overview(connected=False)
            page = (await http.get("/api/decisions", params={"limit": 10})).json()
            assert [row["sequence"] for row in page["decisions"]] == sequences[:10]


@pytest.mark.slow
async def test_a_death_is_shown_from_its_first_sign_to_the_return(tmp_path):
    async with world(tmp_path) as it:
        dead = await put_death(it.bus, "momentum")
        last = (await it.bus.bounds()).last
        await it.overview(connected=True, read_through=last)
        [lane] = [lane for lane in (await it.http.get("/api/timeline")).json()["lanes"] if lane["name"] == "momentum"]
        [death] = lane["deaths"]
        assert death["id"] == dead
        assert death["declared"] - death["from"] >= 400
        assert death["from_source"].startswith("the last heartbeat")
        assert death["ready"] >= death["declared"]
        account = death["account"]
        assert (account["epoch_before"], account["epoch_after"], account["events_replayed"]) == (3, 9, 2)
        assert account["outputs_lost"] is None  # they are counted for the death that is opened
        opened = (await it.http.get(f"/api/deaths/{dead}")).json()
        assert (opened["id"], opened["agent"], opened["ready"]) == (dead, "momentum", death["ready"])
        counted = opened["account"]
        assert (counted["outputs_lost"], counted["outputs_duplicated"], counted["outputs_checked"]) == (1, 1, 6)
        assert counted["outputs_from"].endswith(f"messages 7 to {last}")
        assert counted["first_output_ms"] >= counted["ready_ms"]
        assert {name: counted[name] for name in account if name in ("pid", "ready_ms", "epoch_after")} == {
            "pid": 7, "ready_ms": account["ready_ms"], "epoch_after": 9,
        }  # fmt: skip
        for number, status in ((dead + 1, 404), ("x", 400), (0, 400)):
            assert (await it.http.get(f"/api/deaths/{number}")).status_code == status
        assert [span["state"] for span in lane["spans"]] == ["dead", "starting", "live"]


@pytest.mark.slow
async def test_the_bus_is_killed_and_the_page_says_so_and_comes_back(tmp_path):
    async with world(tmp_path) as it:
        await it.overview(connected=True)
        async with event_stream(it.dashboard.address) as events:
            await events.until("connection", connected=True)
            it.server.kill()
            lost = await events.until("connection", connected=False)
            assert lost.data["since"]
            assert "bus" in lost.data["error"]
            back = await events.until("connection", connected=True)
            assert back.data["since"] > lost.data["since"]
            await it.bus.wait_connected()
            _, sequence = await put_round(it.bus, 4)
            assert (await events.until("decision")).data["sequence"] == sequence


@pytest.mark.slow
async def test_a_bus_that_comes_later_is_waited_for(tmp_path):
    port = free_port()
    async with (
        dashboard_process(tmp_path, f"nats://127.0.0.1:{port}") as dashboard,
        httpx.AsyncClient(base_url=dashboard.url, timeout=GUARD_S) as http,
    ):
        found = (await http.get("/api/overview")).json()
        assert not found["source"]["connected"]
        assert found["source"]["problem"]
        assert (await http.get("/")).status_code == 200
        answer = await http.get("/api/messages/1")
        assert answer.status_code == 503
        async with event_stream(dashboard.address) as events:
            await events.until("connection", connected=False)
            from bus.server.supervisor import NatsServer

            async with NatsServer(tmp_path / "server", port=port) as server, Connections() as connections:
                bus = await connections.bus(server.url)
                await ensure_streams(bus)
                await events.until("connection", connected=True)


@pytest.mark.slow
async def test_an_old_event_id_gets_what_was_missed_or_a_resync(tmp_path):
    async with world(tmp_path) as it:
        await it.overview(connected=True, read_through=6)
        async with event_stream(it.dashboard.address) as events:
            await put_round(it.bus, 4)
            last = await events.until("decision")
        _, sequence = await put_round(it.bus, 5)
        await it.overview(read_through=sequence)
        async with event_stream(it.dashboard.address, **{"Last-Event-ID": last.id or ""}) as events:
            missed = await events.until("market")
            assert missed.data["sequence"] == sequence - 1
            await events.until("decision", sequence=sequence)
            assert all(event.name != "resync" for event in events.events)
        run = (last.id or "").rpartition("-")[0]
        for old in ("deadbeef-1", "nonsense", f"{run}-999999", f"{run}-{'9' * 5000}", "x" * 10_000):
            async with event_stream(it.dashboard.address, **{"Last-Event-ID": old}) as events:
                await events.until("resync")


@pytest.mark.slow
async def test_another_stream_under_the_same_name_is_read_anew(tmp_path):
    async with world(tmp_path) as it:
        await it.overview(connected=True, read_through=6)
        async with event_stream(it.dashboard.address) as events:
            await events.until("connection", connected=True)
            await it.bus.api(f"STREAM.DELETE.{it.bus.subjects.stream}")
            await events.until("connection", connected=False)
            await ensure_streams(it.bus)
            await events.until("resync")
            _, sequence = await put_round(it.bus, 9)
            await events.until("decision", sequence=sequence)
        found = await it.overview(read_through=sequence)
        assert [row["round"] for row in found["decisions"]] == [9]


@pytest.mark.slow
async def test_a_viewer_that_reads_nothing_is_dropped_and_the_others_are_not(tmp_path):
    async with world(tmp_path) as it:
        await it.overview(connected=True, read_through=6)
        with stalled_client(it.dashboard.address, "/events") as stalled:
            async with event_stream(it.dashboard.address) as events:
                await events.until("connection", connected=True)
                flooding = asyncio.create_task(flood(it.bus))
                reading = asyncio.create_task(events.until("never"))
                await it.dashboard.logged("viewer_dropped")
                for task in (flooding, reading):
                    task.cancel()
                await asyncio.wait([flooding, reading])
                assert (await it.overview())["viewers"] == {"now": 1, "dropped": 1}
                last = await put_alert(it.bus, "the other one goes on")
                await events.until("alert", sequence=last)
            stalled.settimeout(GUARD_S)
            assert read_to_the_end(stalled) < 4 << 20  # what the kernel had; nothing waits for this peer any more


async def flood(bus: NatsBus) -> None:
    """Store alerts with long texts, as fast as the server takes them."""
    while True:
        await asyncio.gather(*(put_alert(bus, "x" * 4000) for _ in range(50)))


def read_to_the_end(one: socket.socket) -> int:
    size = 0
    while data := one.recv(1 << 20):
        size += len(data)
    return size


# -- who may do what


async def test_reading_needs_no_token_on_loopback_and_acting_does(tmp_path):
    async with world(tmp_path) as it:
        assert (await it.http.get("/api/overview")).status_code == 200
        for headers in (
            {},
            {"Origin": it.dashboard.url},
            {"Authorization": "Bearer wrong", "Origin": it.dashboard.url},
        ):
            answer = await it.http.post("/api/agents/momentum/restart", headers=headers)
            assert answer.status_code in (401, 403), headers
            assert "token" in answer.json()["error"]
        answer = await it.http.post("/api/agents/momentum/restart", headers=it.dashboard.bearer)
        assert answer.status_code == 503  # it was asked for: no watchdog runs here
        assert "watchdog" in answer.json()["error"]
        answer = await it.http.post("/api/agents/momentum/paint", headers=it.dashboard.bearer)
        assert answer.status_code == 404
        assert it.dashboard.token not in await it.dashboard.end()


async def test_the_link_sets_a_cookie_that_is_not_the_token(tmp_path):
    async with world(tmp_path) as it:
        answer = await it.http.get("/", params={"token": it.dashboard.token, "symbol": "BTC/USD"})
        assert answer.status_code == 303
        assert answer.headers["location"] == "/?symbol=BTC%2FUSD"
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert it.dashboard.token not in cookie
        same_origin = {"Origin": it.dashboard.url}
        acted = await it.http.post("/api/agents/momentum/revive", headers=same_origin)
        assert acted.status_code == 503  # no watchdog runs here
        for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
            refused = await it.http.post("/api/agents/momentum/revive", headers={"Origin": origin})
            assert refused.status_code == 403, origin
        assert (await it.http.post("/api/agents/momentum/revive")).status_code == 403  # a cookie alone is not enough
        it.http.cookies.clear()
        assert (await it.http.get("/", params={"token": "wrong"})).status_code == 401


async def test_the_login_page_takes_the_token_and_leads_to_own_pages_only(tmp_path):
    async with world(tmp_path) as it:
        origin = {"Origin": it.dashboard.url}
        wrong = await it.http.post("/login", data={"token": "wrong"}, headers=origin)
        assert wrong.status_code == 401
        assert "set-cookie" not in wrong.headers
        right = {"token": it.dashboard.token}
        for target, location in (
            ("/mesh", "/mesh"),
            ("//evil.example", "/"),
            ("http://evil.example", "/"),
            ("/\\e", "/"),
        ):
            done = await it.http.post("/login", data={**right, "next": target}, headers=origin)
            assert (done.status_code, done.headers["location"]) == (303, location)
        elsewhere = await it.http.post("/login", data=right, headers={"Origin": "http://evil.example"})
        assert elsewhere.status_code == 403
        large = await it.http.post("/login", data={"token": "x" * 100_000}, headers=origin)
        assert large.status_code == 413


async def test_requests_for_other_hosts_and_from_other_sites_are_refused(tmp_path):
    async with world(tmp_path) as it:
        for host in ("evil.example", "evil.example:8080", "127.0.0.1.evil.example", "10.0.0.1", ""):
            answer = await it.http.get("/api/overview", headers={"Host": host})
            assert answer.status_code == 400, host
            assert answer.json()["error"].startswith("Host: expected ")
        for host in ("localhost", "127.0.0.1:9999", "[::1]:80", "LOCALHOST:1"):
            assert (await it.http.get("/api/overview", headers={"Host": host})).status_code == 200, host
        for origin in ("http://evil.example", "http://[", "null", "http://127.0.0.1.evil.example"):
            assert (await it.http.get("/api/overview", headers={"Origin": origin})).status_code == 403, origin
        assert (await it.http.get("/events", headers={"Sec-Fetch-Site": "cross-site"})).status_code == 403
        link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}  # a link in another page may be followed
        assert (await it.http.get("/", headers=link)).status_code == 200


@pytest.mark.slow
async def test_the_host_that_was_configured_is_a_name_of_the_server(tmp_path):
    async with world(tmp_path, listen="localhost:0") as it:
        assert (await it.http.get("/api/overview", headers={"Host": "localhost:1"})).status_code == 200
    name = socket.gethostname()
    async with world(tmp_path, listen=f"{name}:0") as it:  # whatever address that is
        assert (await it.http.get("/login", headers={"Host": f"{name}:1"})).status_code == 200


async def test_every_answer_has_the_security_headers(tmp_path):
    async with world(tmp_path) as it:
        for path in ("/", "/api/overview", "/api/messages/0", "/nowhere", "/static/icon.svg", "/login"):
            for headers in ({}, {"Host": "evil.example"}):
                found = (await it.http.get(path, headers=headers)).headers
                assert "default-src 'none'" in found["content-security-policy"], path
                assert "unsafe" not in found["content-security-policy"]
                assert found["x-content-type-options"] == "nosniff"
                assert found["x-frame-options"] == "DENY"
                assert found["referrer-policy"] == "same-origin"
                assert "server" not in found
        assert (await it.http.get("/")).headers["cache-control"] == "no-store"


async def test_the_login_leads_to_the_very_address_that_was_asked_for(tmp_path):
    asked = f"/decisions/{urllib.parse.quote(f'{ODD}:research-1:4', safe='')}?a=%26&b=1"
    async with world(tmp_path, listen="0.0.0.0:0") as it:
        page = await it.http.get(asked)
        assert page.status_code == 303
        field = re.search('name="next" value="([^"]*)"', (await it.http.get(page.headers["location"])).text)
        assert field is not None
        form = {"token": it.dashboard.token, "next": html.unescape(field[1])}
        done = await it.http.post("/login", data=form, headers={"Origin": it.dashboard.url})
        assert (done.status_code, done.headers["location"]) == (303, asked)


async def test_another_address_than_loopback_needs_the_token_for_reading_too(tmp_path):
    async with world(tmp_path, listen="0.0.0.0:0") as it:
        for path in ("/api/overview", "/events", "/api/messages/1"):
            assert (await it.http.get(path)).status_code == 401, path
        page = await it.http.get("/timeline")
        assert (page.status_code, page.headers["location"]) == (303, "/login?next=%2Ftimeline")
        assert (await it.http.get("/login")).status_code == 200
        assert (await it.http.get("/static/icon.svg")).status_code == 200
        assert (await it.http.get("/api/overview", headers=it.dashboard.bearer)).status_code == 200
        async with event_stream(it.dashboard.address) as events:
            assert events.status == 401
        assert (await it.http.get("/", params={"token": it.dashboard.token})).status_code == 303
        assert (await it.http.get("/api/overview")).status_code == 200
        assert (await it.http.get("/api/overview", headers={"Host": "evil.example"})).status_code == 400


@pytest.mark.slow
async def test_the_token_is_private_and_one_that_was_not_is_replaced(tmp_path):
    state = tmp_path / "state"
    state.mkdir()
    leaked = state / "dashboard.token"
    leaked.write_text("a" * 43)
    leaked.chmod(0o644)
    async with world(tmp_path) as it:
        assert it.dashboard.token != "a" * 43
        assert stat.S_IMODE(leaked.stat().st_mode) == 0o600
        first = it.dashboard.token
        await it.dashboard.end()
        async with dashboard_process(tmp_path, it.server.url) as again:
            assert again.token == first  # links and cookies outlive a restart


# -- bad input


@pytest.mark.slow
async def test_names_with_markup_are_data_everywhere(tmp_path):
    async with world(tmp_path) as it:
        await it.overview(connected=True)
        names = [f"{MARKUP}{number}" for number in range(10_000)]
        for number, name in enumerate(names):
            heartbeat = Heartbeat(
                agent=name, agent_id=name, epoch=1, sequence=1, progress=1, status="live", interval_ms=100,
                sandbox=MARKUP, pid=number,
            )  # fmt: skip
            await it.bus.notify(f"swarm.heartbeat.{name}", encode(heartbeat))
        await put_alert(it.bus, MARKUP)
        async with asyncio.timeout(GUARD_S):
            while True:
                answer = await it.http.get("/api/overview")
                if len(answer.json()["agents"]) == len(names):
                    break
        assert answer.headers["content-type"] == "application/json"
        assert {row["name"] for row in answer.json()["agents"]} == set(names)
        quoted = "%3Cscript%3Ealert(%221%22)%3C%2Fscript%3E"
        for path in (
            f"/agents/{quoted}",
            f"/decisions/{quoted}",
            f"/messages/{quoted}",
            f"/{quoted}",
            f"/login?next=/{quoted}",
        ):
            page = await it.http.get(path, headers={"Accept": "text/html"})
            assert "<script>alert" not in page.text, path
            assert page.status_code < 500
        async with event_stream(it.dashboard.address) as events:
            first = await events.until("agents")
            assert len(first.data["agents"]) >= 100  # the rest follows in turn, or when its state changes


async def test_a_heartbeat_of_an_impossible_name_opens_no_page_and_reaches_no_subject(tmp_path):
    async with world(tmp_path) as it:
        await it.overview(connected=True, read_through=6)
        names = ("*", ">", "a b", "a\nb", "x" * 5000)  # patterns, no subjects, and one that the server cuts off
        for number, name in enumerate(names):
            heartbeat = Heartbeat(
                agent=name, agent_id=name, epoch=1, sequence=1, progress=1, status="live", interval_ms=100, pid=number,
                sandbox="base",
            )  # fmt: skip
            await it.bus.notify(f"swarm.heartbeat.n{number}", encode(heartbeat))
        await it.bus.notify("swarm.heartbeat.n", encode(counted.heartbeat("n")))
        async with asyncio.timeout(GUARD_S):
            while not (agents := (await it.overview())["agents"]):
                await asyncio.sleep(0.02)
        assert [agent["name"] for agent in agents] == [
            "n"
        ]  # what names another process than its subject is no heartbeat
        for name in names:
            address = f"/api/agents/{urllib.parse.quote(name, safe='')}"
            for method, path, status in (("GET", address, 404), ("POST", f"{address}/kill", 400)):
                answer = await it.http.request(method, path, headers=it.dashboard.bearer)
                assert answer.status_code == status, (name[:10], answer.text[:100])
                assert "expected 1 to 64 letters" in answer.json()["error"]
        assert (await it.overview())["source"]["connected"]
        assert "request_failed" not in await it.dashboard.end()


async def test_a_decision_with_any_characters_in_its_id_is_opened_by_it(tmp_path):
    async with world(tmp_path) as it:
        for symbol in ODD_SYMBOLS:
            _, sequence = await put_round(it.bus, 4, symbol)
            address = urllib.parse.quote(f"{symbol}:research-1:4", safe="")
            answer = await it.http.get(f"/api/decisions/{address}")
            assert answer.status_code == 200, answer.text
            found = answer.json()
            assert (found["decision_id"], found["sequence"]) == (f"{symbol}:research-1:4", sequence)
            assert (await it.http.get(f"/decisions/{address}")).status_code == 200
        for path in ("/api/decisions/a%0Ab%3Aresearch-1%3A5", "/api/no%0Asuch%0Apage"):
            unknown = await it.http.get(path)
            assert unknown.status_code == 404
            assert "\n" not in unknown.json()["error"]


async def test_a_decision_that_is_ambiguous_open_or_removed_is_answered_with_the_reason(tmp_path):
    async with world(tmp_path) as it:
        stored = await it.bus.first_from("swarm.decision.>", 1)
        assert stored is not None
        repeated = await put(it.bus, "decision", "BTC/USD", "second", stored.data, {CAUSE: "1"})
        tick = MarketData(
            symbol="BTC/USD", price=1.0, volume=1.0, timestamp=datetime.now(UTC), source="research-1", sequence=9
        )
        opened = await put(it.bus, "market", "BTC/USD", "research-1", tick)
        asked = {
            1: (409, f"2 decisions match, expected one; name it: {stored.sequence}, {repeated}"),
            9: (409, f"still open: its tick is message {opened}"),
            8: (404, "there is no such round; those of BTC/USD by research-1 are 1 to 9"),
        }
        for number, (status, words) in asked.items():
            answer = await it.http.get(f"/api/decisions/BTC%2FUSD:research-1:{number}")
            assert (answer.status_code, words in answer.json()["error"]) == (status, True), answer.text
            assert (await it.http.get(f"/decisions/BTC%2FUSD:research-1:{number}")).status_code == status
        await it.bus.api(f"STREAM.UPDATE.{it.bus.subjects.stream}", await shortened(it.bus))
        for wanted in ("BTC%2FUSD:research-1:2", "4"):
            answer = await it.http.get(f"/api/decisions/{wanted}")
            assert (answer.status_code, "removed by retention" in answer.json()["error"]) == (410, True), answer.text
            assert (await it.http.get(f"/decisions/{wanted}")).status_code == 410


@pytest.mark.slow
async def test_what_is_asked_for_and_not_there_is_said(tmp_path):
    async with world(tmp_path) as it:
        await it.overview(connected=True, read_through=6)
        await it.bus.api(f"STREAM.UPDATE.{it.bus.subjects.stream}", await shortened(it.bus))
        for path, status, words in (
            ("/api/messages/abc", 400, "whole number"),
            ("/api/messages/0", 400, "whole number"),
            ("/api/messages/-1", 400, "whole number"),
            ("/api/messages/1", 410, "retention"),
            ("/api/messages/99", 404, "not stored yet"),
            ("/api/agents/nobody", 404, "nobody"),
            ("/api/overview?symbol=DOGE", 404, "BTC/USD"),
            ("/api/candles", 400, "symbol"),
            ("/api/candles?symbol=DOGE", 404, "DOGE"),
            (f"/api/candles?symbol={'x' * 20_000}", 404, "no tick of it"),
            ("/api/candles?symbol=BTC/USD&before=x", 400, "before"),
            ("/api/decisions?limit=0", 400, "limit"),
            ("/api/decisions?limit=x", 400, "limit"),
            ("/api/decisions?limit=--5", 400, "limit"),
            ("/api/decisions?before=-1", 400, "before"),
            ("/api/timeline?since=x", 400, "since"),
            ("/api/timeline?since=5&until=1", 400, "until (1)"),
            ("/api/agents/momentum/kill", 405, "expected POST"),
            ("/api/nothing", 404, "no such page"),
        ):
            answer = await it.http.get(path)
            assert answer.status_code == status, path
            assert words in answer.json()["error"], path
            assert "\n" not in answer.json()["error"]
        long = (await it.http.get(f"/api/decisions/{'a' * 20_000}:x:1")).json()["error"]
        assert len(long) < 1000
        assert (await it.http.get("/messages/99", headers={"Accept": "text/html"})).status_code == 404
        assert (await it.http.delete("/api/overview", headers=it.dashboard.bearer)).status_code == 405


async def shortened(bus: NatsBus) -> dict[str, Any]:
    """The stream's configuration with room for its last two messages."""
    config: dict[str, Any] = (await bus.api(f"STREAM.INFO.{bus.subjects.stream}"))["config"]
    return {**config, "max_msgs": 2}


@pytest.mark.slow
async def test_a_port_in_use_is_passed_over_and_that_is_said(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with world(tmp_path, listen=f"127.0.0.1:{port}") as it:
            assert it.dashboard.address[1] != port
            assert f"port {port} is in use" in "".join(it.dashboard.said)
            assert (await it.http.get("/api/overview")).status_code == 200


@pytest.mark.slow
async def test_the_token_is_in_no_argument_and_no_environment(tmp_path):
    async with world(tmp_path) as it:
        about = Path(f"/proc/{it.dashboard.process.pid}")
        token = it.dashboard.token.encode()
        assert token not in (about / "cmdline").read_bytes() + (about / "environ").read_bytes()
        assert token not in (it.dashboard.state_dir / "dashboard.json").read_bytes()
