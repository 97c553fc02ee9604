"""`signalmesh metrics` beside a real swarm: its page has what the stream holds and what was received."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import urllib.request
from collections import Counter
from typing import Any

import pytest

from tests.acceptance.exact import exact_toml
from tests.acceptance.faults import kill_agents, kill_server
from tests.acceptance.subscriber import Subscriber, read_stream
from tests.acceptance.swarm import AGENTS, ENVIRONMENT, GUARD_S, SANDBOXES, VOTERS, Swarm, run_command
from tests.support.collector import collecting
from tests.support.page import Shown, parsed
from tests.support.receiver import Receiver, receiver

ROUNDS = 60


async def page(swarm: Swarm) -> str:
    """The address that the role logs."""
    log = swarm.directory / ".signalmesh" / "logs" / "metrics.log"
    async with asyncio.timeout(GUARD_S):
        while True:
            for line in log.read_text().splitlines() if log.exists() else ():
                if '"metrics_served"' in line:
                    return str(json.loads(line)["url"])
            await asyncio.sleep(0.05)


async def scrape(url: str) -> Shown:
    def get() -> str:
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain")
            return str(answer.read().decode())

    return parsed(await asyncio.to_thread(get))


async def scraped_until(url: str, name: str, labels: tuple[str, ...], value: float) -> Shown:
    async with asyncio.timeout(GUARD_S):
        while (result := await scrape(url)).get((name, labels)) != value:
            await asyncio.sleep(0.05)
    return result


async def test_the_page_shows_the_stream_and_the_heartbeats(tmp_path):
    toml = exact_toml(speed=40, rounds=ROUNDS) + '\n[metrics]\nlisten = "127.0.0.1:0"\n'
    async with Swarm(tmp_path / "swarm", toml) as swarm:
        subscriber = await swarm.up()
        url = await page(swarm)
        await subscriber.decided(10)
        await kill_agents(swarm, subscriber, "strategy-momentum")
        await subscriber.decided(ROUNDS)
        healthy = await swarm.command("health", "metrics", "--json")
        assert healthy.code == 0, healthy.out
        assert healthy.json["role"] == "metrics"
        once = await swarm.command("metrics", "--once")
        assert once.code == 0, once.err
        stream = await read_stream(swarm.url, swarm.name)
        kinds = Counter(message.kind for message in stream)
        sides = Counter(message.json["final_decision"] for message in stream if message.kind == "decision")
        live = await scraped_until(url, "signalmesh_observer_lag_messages", (), 0)
        for result in (live, parsed(once.out)):
            assert {side: result["signalmesh_decisions_total", (side,)] for side in sides} == sides
            for kind in ("market", "signal", "sentiment", "decision"):
                assert result["signalmesh_messages_total", (kind,)] == kinds[kind]
            assert result["signalmesh_tick_to_decision_seconds_count", ()] == ROUNDS
            assert result["signalmesh_tick_to_decision_seconds_sum", ()] > 0
            for voter in VOTERS:
                kind = "sentiment" if voter == "research-2" else "signal"
                assert result["signalmesh_hop_latency_seconds_count", (voter, kind)] == ROUNDS
            assert result["signalmesh_hop_latency_seconds_count", ("coordinator", "decision")] == ROUNDS
            assert result["signalmesh_deaths_total", ("strategy-momentum", "signal 9")] == 1
            assert result["signalmesh_restarts_total", ("strategy-momentum", "signal 9")] == 1
            assert result["signalmesh_detection_seconds_count", ("exit",)] == 1
            assert result["signalmesh_recovery_seconds_count", ("strategy-momentum",)] == 1
            assert result["signalmesh_recovery_seconds_sum", ("strategy-momentum",)] > 0
            assert result["signalmesh_claims_total", ("strategy-momentum",)] == 2
            assert result["signalmesh_observer_connected", ()] == 1
            for agent in AGENTS:
                assert result["signalmesh_agent_outputs_total", (agent,)] >= ROUNDS
                assert result["signalmesh_agent_lag_messages", (agent,)] >= 0
                assert result["signalmesh_agent_resident_memory_bytes", (agent,)] > 1 << 20
                assert result["signalmesh_heartbeats_total", (agent, "agent")] > 0
            assert sum(result["signalmesh_sandbox_agents", (sandbox,)] for sandbox in SANDBOXES) == len(AGENTS)
            assert result["signalmesh_watchdog_term", ()] == subscriber.claims["watchdog"]
            assert result["signalmesh_mirror_state", ("live",)] == 1
        assert live["signalmesh_snapshot_seconds", ("coordinator",)] > 0
        await the_bus_dies(swarm, subscriber, url)


async def the_bus_dies(swarm: Swarm, subscriber: Subscriber, url: str) -> None:
    """The page outlives the bus, and goes on when that is back, counting nothing twice."""
    before = await scrape(url)
    await kill_server(swarm, subscriber)
    result = await scraped_until(url, "signalmesh_alerts_total", ("nats_server_restarted", "warning"), 1)
    assert result["signalmesh_messages_total", ("decision",)] == before["signalmesh_messages_total", ("decision",)]


@pytest.mark.slow
async def test_a_collector_is_given_what_the_page_shows(tmp_path):
    toml = exact_toml(speed=0, rounds=ROUNDS) + '\n[metrics]\nlisten = "127.0.0.1:0"\n'
    async with collecting() as collector:
        requested = {
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{collector.url}/v1/metrics", "OTEL_METRIC_EXPORT_INTERVAL": "100",
        }  # fmt: skip
        async with Swarm(tmp_path / "swarm", toml, environment=requested) as swarm:
            subscriber = await swarm.up()
            url = await page(swarm)
            await kill_agents(swarm, subscriber, "strategy-momentum")
            await subscriber.decided(ROUNDS)
            await scraped_until(url, "signalmesh_observer_lag_messages", (), 0)
            before, exports = await scrape(url), len(collector.measured)
            # one may be under way that was collected before
            await collector.until("figures of now", lambda: len(collector.measured) > exports + 1)
            measured = collector.measured[-1]
            result, after = measured.display(), await scrape(url)
            assert before.keys() & after.keys() <= result.keys() <= before.keys() | after.keys()
            growing = [key for key in before if key[0].endswith(("_total", "_count", "_sum", "_bucket"))]
            assert all(before[key] <= result[key] <= after[key] for key in growing)
            assert result["signalmesh_messages_total", ("decision",)] == ROUNDS
            assert result["signalmesh_tick_to_decision_seconds_count", ()] == ROUNDS
            assert result["signalmesh_restarts_total", ("strategy-momentum", "signal 9")] == 1
            assert result["signalmesh_agent_state", ("coordinator", "live")] == 1
            assert measured.resource["service.name"] == "metrics"
            assert measured.resource["service.namespace"] == measured.resource["mesh.swarm"] == swarm.name
            assert measured.resource["process.pid"] == subscriber.heartbeats["metrics"]["pid"]
            assert collector.spans == [], "only metrics were asked for"
            exports = len(collector.measured)
            assert await swarm.end(signal.SIGINT) == 0
            assert len(collector.measured) > exports, "the last ones go out at the end"


@pytest.mark.slow
async def test_a_taken_address_is_reported_before_anything_starts(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        (tmp_path / "swarm.toml").write_text(f'[metrics]\nlisten = "{address}"\n')
        for command in (("up", "--port", "0"), ("metrics", "--nats", "nats://127.0.0.1:1")):
            ended = await run_command(tmp_path, *command)
            assert ended.code == 2
            assert f"metrics.listen: {address}: cannot listen there" in ended.err
    wrong = await run_command(tmp_path, "metrics", "--listen", "here")
    assert wrong.code == 2
    assert "--listen 'here': expected HOST:PORT" in wrong.err


@pytest.mark.slow
async def test_alerts_reach_the_webhook_though_the_poster_is_killed_and_its_url_is_not_printed(tmp_path, monkeypatch):
    async with receiver() as there:
        monkeypatch.setitem(ENVIRONMENT, "SIGNALMESH_WEBHOOK", f"http://127.0.0.1:{there.port}/hook/s3cret")
        async with Swarm(tmp_path / "swarm", exact_toml(speed=40, rounds=ROUNDS)) as swarm:
            subscriber = await swarm.up()
            await subscriber.until("the observer", lambda: "metrics" in subscriber.heartbeats)
            consumer = f"{swarm.name}_events.webhook"
            created = await subscriber.client.subscribe(f"$JS.EVENT.ADVISORY.CONSUMER.CREATED.{consumer}")
            if b"error" in (await subscriber.client.request(f"$JS.API.CONSUMER.INFO.{consumer}")).data:
                await created.next_msg(timeout=GUARD_S)
            children = [process for process in swarm.all_agents() if "metrics" in " ".join(process.cmdline())]
            words = " ".join(children[0].cmdline()).split()
            assert words[words.index("metrics") :][1:3] == ["--listen", "off"]
            await killed_while_it_fails(swarm, subscriber, there)
            there.answers = [500]
            kills = 3
            for number in range(10 * kills):
                await subscriber.publish("alert.warning.test", alert(number))
                if number % 10 == 5:
                    await kill_observer(swarm, subscriber)
            async with asyncio.timeout(GUARD_S):
                while "number 29" not in [body["message"] for body in there.taken.items]:
                    await there.taken.reach(len(there.taken.items) + 1)
            taken = [body["message"] for body in there.taken.items if body["code"] == "test"]
            assert list(dict.fromkeys(taken)) == [f"number {number}" for number in range(10 * kills)]
            assert len(taken) <= 11 * kills, "repeated though nobody was killed just then"
            result = "".join(" ".join(process.cmdline()) for process in swarm.all_agents())
            assert await swarm.end(signal.SIGINT) == 0
            logs = [path.read_text() for path in (swarm.directory / ".signalmesh").rglob("*.log")]
            assert "webhook_failing" in "".join(logs)
            assert "s3cret" not in result + "".join(logs) + swarm.errors
            assert "s3cret" not in (swarm.directory / "up.err").read_text()


async def killed_while_it_fails(swarm: Swarm, subscriber: Subscriber, there: Receiver) -> None:
    """The process that reported the failure is dead; its successor reports the recovery."""
    there.answers = [500] * 1000
    await subscriber.publish("alert.warning.test", {**alert(0), "code": "first"})
    await subscriber.alerted("webhook_failing")
    await kill_observer(swarm, subscriber)
    there.answers.clear()
    await subscriber.alerted("webhook_recovered")
    async with asyncio.timeout(GUARD_S):
        while (codes := [body["code"] for body in there.taken.items])[-1:] != ["webhook_recovered"]:
            await there.taken.reach(len(codes) + 1)
    assert codes.count("webhook_failing") == codes.count("webhook_recovered") == codes.count("first") == 1


async def kill_observer(swarm: Swarm, subscriber: Subscriber) -> None:
    pid = subscriber.heartbeats["metrics"]["pid"]
    swarm.send(pid, signal.SIGKILL)
    await subscriber.until("another one", lambda: subscriber.heartbeats["metrics"]["pid"] != pid)


def alert(number: int) -> dict[str, Any]:
    return {
        "severity": "warning", "code": "test", "message": f"number {number}", "timestamp": "2026-01-01T00:00:00Z",
        "source": "test",
    }  # fmt: skip
