"""Heartbeats of a captured agent and of a voter that name other processes, on a whole swarm."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest

from bus.nats.bus import NatsBus
from bus.nats.credentials import credentials_of
from bus.nats.key_files import read_seed
from coordinator.security.keys import KeyStore
from tests.acceptance.swarm import AGENTS, Swarm, agents_toml

AGENT = "strategy-momentum"
VOTER = "acme"
AHEAD = 10**9
"""An epoch that nobody has claimed."""


def forged(heartbeats: dict[str, dict[str, Any]], own: str) -> list[dict[str, Any]]:
    """What would move, end or replace others, if it were believed."""
    base, coordinator, victim = heartbeats["base"], heartbeats["coordinator"], heartbeats["research-2"]
    child = {"agent": "research-2", "epoch": victim["epoch"], "pid": victim["pid"], "agent_id": victim["agent_id"]}
    as_host = {**base, "agent": own, "sandbox": own, "agent_id": "forged"}
    return [
        {**base, "agent_id": "forged", "status": "ending"},
        {**base, "inventory": [{**child, "exit_code": 2}]},
        {**coordinator, "epoch": AHEAD},
        {**heartbeats["watchdog"], "epoch": AHEAD},
        {**coordinator, "agent": own, "role": "watchdog", "epoch": AHEAD},
        {**as_host, "inventory": [{**child, "exit_code": 2}]},
        {**as_host, "group": "python", "inventory": []},
        {**as_host, "group": None, "inventory": []},
    ]


@pytest.mark.slow
async def test_heartbeats_that_name_other_processes_are_not_believed(tmp_path: Path):
    async with Swarm(tmp_path, agents_toml(speed=20)) as swarm, AsyncExitStack() as stack:
        subscriber = await swarm.up()
        await subscriber.live(*AGENTS)
        assert (await swarm.command("keys", "add", "python", "--role", "voter")).code == 2
        assert (await swarm.command("keys", "add", VOTER, "--role", "voter")).code == 0
        store = KeyStore(tmp_path / ".signalmesh")
        seeds = {
            AGENT: read_seed(store.incarnations / f"{AGENT}.next.nk"),
            VOTER: store.seed(f"voter-{VOTER}"),
        }
        before = {name: subscriber.claims[name] for name in AGENTS}
        status = (await swarm.command("status", "--json")).json
        assert status["refused"] is None
        for own, seed in seeds.items():
            bus = await NatsBus.connect(swarm.url, swarm.name, own, credentials=credentials_of(seed))
            stack.push_async_callback(bus.close)
            for heartbeat in 3 * forged(subscriber.heartbeats, own):
                await bus.notify(f"{swarm.name}.heartbeat.{own}", orjson.dumps(heartbeat))
            await bus.flush()
        for code in ("heartbeat_refused", "host_refused"):
            alerts = await subscriber.alerted(code, 2)
            assert {alert["agent"] for alert in alerts} == {AGENT, VOTER}
        await subscriber.more_decisions(40)  # longer than a host may be silent
        told = [(alert["code"], alert["agent"]) for alert in subscriber.alerts if alert["code"].endswith("_refused")]
        assert {*Counter(told).values()} == {1}, "of each name once, then once a minute"
        assert {name: subscriber.claims[name] for name in before} == before
        events = {item["event"] for item in subscriber.lifecycle}
        assert not events & {"declared_dead", "exited", "moved", "quarantined"}, events
        after = (await swarm.command("status", "--json")).json
        assert {agent["restarts"] for agent in after["agents"]} == {0}
        refused = {(one["who"], one["attempt"], one["reported_by"]) for one in after["refused"]["by"]}
        assert refused == {(who, "heartbeat", "watchdog") for who in (f"agent-{AGENT}", f"voter-{VOTER}")}
        assert after["watchdog_term"] == status["watchdog_term"]
