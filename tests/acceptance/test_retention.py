"""A stream that removes claims and the VotingConfig: they are renewed in time, and what loses its claim comes back."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.exact import assert_each_round_once, exact_toml
from tests.acceptance.subscriber import Subscriber
from tests.acceptance.swarm import AGENTS, Swarm

ROUNDS = 750
MAX_BYTES = 4 << 20
ALL = (*AGENTS, "watchdog")
FILLER = {
    "severity": "info", "code": "filler", "message": "m", "timestamp": "2026-01-01T00:00:00Z", "source": "filler",
    "detail": {"text": "x" * 60_000},
}  # fmt: skip


async def stored(subscriber: Subscriber) -> dict[str, Any]:
    state: dict[str, Any] = (await subscriber.api(f"STREAM.INFO.{subscriber.name}_events"))["state"]
    return state


async def fill(subscriber: Subscriber) -> None:
    await subscriber.publish("alert.info.filler", FILLER)


@pytest.mark.slow
async def test_claims_are_renewed_in_order_and_what_has_lost_its_claim_recovers(tmp_path: Path):
    async with Swarm(tmp_path, exact_toml(speed=30, rounds=ROUNDS) + f"[stream]\nmax_bytes = {MAX_BYTES}\n") as swarm:
        subscriber = await swarm.up()
        await subscriber.decided(260)
        before = await subscriber.live(*AGENTS)
        leader = subscriber.heartbeats["watchdog"]
        configs = len(subscriber.configs)
        while (await stored(subscriber))["bytes"] < 0.91 * MAX_BYTES:
            await fill(subscriber)
        await subscriber.back({name: before[name]["epoch"] for name in AGENTS})
        await subscriber.until("a new term", lambda: subscriber.heartbeats["watchdog"]["epoch"] > leader["epoch"])
        assert subscriber.heartbeats["watchdog"]["pid"] == leader["pid"]
        assert len(subscriber.configs) > configs
        events = [(event["event"], event["agent"]) for event in subscriber.lifecycle if event["agent"] in AGENTS]
        assert not [event for event in events if event[0] in ("suspected", "declared_dead")]
        assert sorted(agent for event, agent in events if event == "drained") == sorted(AGENTS)
        assert [alert for alert in subscriber.alerts if alert["code"] != "filler"] == []

        renewed = {name: subscriber.claims[name] for name in ALL}
        await subscriber.more_decisions(150)  # what is kept after the claims are removed has all that is still unread
        while (await stored(subscriber))["first_seq"] <= max(renewed.values()):
            await fill(subscriber)
        await subscriber.until("new claims", lambda: all(subscriber.claims[name] > renewed[name] for name in ALL))
        await subscriber.back({name: renewed[name] for name in AGENTS})
        await subscriber.all_decided(ROUNDS)
        assert_each_round_once(subscriber.decisions, ROUNDS)
        assert not [event for event in subscriber.lifecycle if event["event"] == "quarantined"]
        assert {alert["code"] for alert in subscriber.alerts} == {"filler"}
        assert subscriber.heartbeats["watchdog"]["pid"] == leader["pid"]
        audit = await swarm.command("audit", "--json")
        assert (audit.code, audit.json["problems"]) == (0, []), audit
        assert audit.json["stream"]["first"] == audit.json["stream"]["kept_from"] > max(renewed.values())
        assert await swarm.end(signal.SIGINT) == 0
        mirror = str(tmp_path / ".signalmesh" / "mirror.sqlite")  # which has all that the stream has removed
        for command in ("audit", "replay"):
            whole = await swarm.command(command, "--file", mirror, "--json")
            assert whole.code == 0, whole
