"""`up` runs a dashboard, keeps its port, and brings it back."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.swarm import AGENTS, Ends, Swarm, agents_toml
from tests.support.collecting import GUARD_S
from tests.support.dashboard import EventClient, event_stream


def dashboard_pid(swarm: Swarm) -> int | None:
    pids = [child["pid"] for child in swarm.record["children"] if child["kind"] == "dashboard"]
    return pids[0] if pids else None


SAME = ("agent", "pid", "epoch_before", "epoch_after", "events_replayed", "outputs_lost", "outputs_duplicated")
"""What the page shows of a death as `kill` has reported it; both measure the times themselves."""


async def account_of(http: httpx.AsyncClient, events: EventClient, agent: str, epoch_after: int) -> dict[str, Any]:
    """The account of the death that this epoch has followed, once `events` show its first output."""
    await events.until("lifecycle", event="ready", agent=agent, epoch=epoch_after)
    await events.until("decision")
    lanes = (await http.get("/api/timeline")).json()["lanes"]
    [deaths] = [lane["deaths"] for lane in lanes if lane["name"] == agent]
    [death] = [death for death in deaths if death["account"]["epoch_after"] == epoch_after]
    account: dict[str, Any] = (await http.get(f"/api/deaths/{death['id']}")).json()["account"]
    return account


@pytest.mark.slow
async def test_a_killed_dashboard_is_back_at_its_address_and_a_button_restarts_an_agent(tmp_path: Path):
    toml = agents_toml(speed=20) + '\n[dashboard]\nlisten = "127.0.0.1:0"\n'
    async with Swarm(tmp_path, toml) as swarm:
        subscriber = await swarm.up(dashboard=True)
        before = await subscriber.live(*AGENTS)
        place = json.loads((tmp_path / ".signalmesh" / "dashboard.json").read_text())
        link = await swarm.command("dashboard", "--link")
        assert link.code == 0, link
        assert link.out.startswith(f"{place['url']}?token=")
        token = link.out.strip().partition("?token=")[2]
        assert token not in swarm.errors  # that is a file, so it is a log
        assert f"dashboard: {place['url']} (`signalmesh dashboard --link` prints it with the token)" in swarm.errors
        assert (await swarm.command("health", "dashboard", "--timeout", "20")).code == 0
        status = json.loads((await swarm.command("status", "--json")).out)
        assert status["dashboard"]["pid"] == dashboard_pid(swarm)

        pid = dashboard_pid(swarm)
        assert pid is not None
        ends = await Ends.of(pid)
        os.kill(pid, signal.SIGKILL)
        await ends.all()
        [died] = await subscriber.alerted("dashboard_died")
        assert str(pid) in died["message"]
        async with httpx.AsyncClient(base_url=place["url"], timeout=GUARD_S) as http:
            async with event_stream((http.base_url.host, http.base_url.port or 0)) as events:
                await events.until("connection", connected=True)
            answer = await http.post("/api/agents/coordinator/restart", headers={"Authorization": f"Bearer {token}"})
            assert answer.json()["ok"], answer.text
            after = await subscriber.live(*AGENTS)
            assert after["coordinator"]["epoch"] > before["coordinator"]["epoch"]
            async with event_stream((http.base_url.host, http.base_url.port or 0)) as events:
                killed = await http.post("/api/agents/coordinator/kill", headers={"Authorization": f"Bearer {token}"})
                assert killed.json()["ok"], killed.text
                report = killed.json()["result"]
                account = await account_of(http, events, "coordinator", report["epoch_after"])
            assert {name: account[name] for name in SAME} == {name: report[name] for name in SAME}
            assert account["outputs_checked"] > 0
            assert account["first_output_ms"] >= account["claimed_ms"]
        await subscriber.live(*AGENTS)
        found = json.loads((await swarm.command("doctor", "--json")).out)["findings"]
        [about] = [finding for finding in found if finding["check"] == "dashboard"]
        assert about["level"] == "ok", about
        assert await swarm.end(signal.SIGINT) == 0
        gone = await swarm.command("dashboard", "--link")
        assert (gone.code, gone.out) == (2, "")
        for log in (tmp_path / ".signalmesh" / "logs").glob("*.log"):
            assert token not in log.read_text(errors="replace"), log


@pytest.mark.slow
async def test_without_a_dashboard_there_is_none(tmp_path: Path):
    async with Swarm(tmp_path, agents_toml(speed=20)) as swarm:
        subscriber = await swarm.up()  # with --no-dashboard
        await subscriber.live(*AGENTS)
        assert dashboard_pid(swarm) is None
        assert not (tmp_path / ".signalmesh" / "dashboard.token").exists()
        assert (await swarm.command("health", "dashboard", "--timeout", "1")).code == 1
        assert await swarm.end(signal.SIGINT) == 0
