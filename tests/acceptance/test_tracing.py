"""Traces as a collector receives them: one tree a decision; an unhealthy collector does no harm."""

from __future__ import annotations

import asyncio
import functools
import json
import signal
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from bus.observability.otel_env import host_id
from tests.acceptance.exact import ROUNDS, Content, assert_numbered, assert_same, content_of, exact_toml
from tests.acceptance.subscriber import Subscriber, SwarmMessage, read_stream
from tests.acceptance.swarm import AGENTS, GUARD_S, VOTERS, Ends, Swarm, agents_toml, run_command
from tests.acceptance.traces import PHASES, assert_tree, decision_of, is_whole, recoveries
from tests.support.collector import OtlpCollector, Received, collecting, orphans, roots
from tests.support.collector_process import collector_process

PRODUCER = 4
MICROSECOND_NS = 1000
KILLS = 2


def environment(collector: OtlpCollector, **more: str) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_TRACES_SAMPLER": "always_on", **more}


async def whole(collector: OtlpCollector, number: int) -> dict[str, Received]:
    """The trace of the round `number`, once all five agents have exported their spans."""

    def found() -> dict[str, Received] | None:
        trace = collector.of_round(number)
        return trace if is_whole(trace) else None

    return await collector.until(f"the trace of round {number}", found)


async def test_a_decision_is_one_trace(tmp_path: Path):
    async with (
        collecting() as collector,
        Swarm(tmp_path, exact_toml(speed=0, rounds=40), environment=environment(collector)) as swarm,
    ):
        subscriber = await swarm.up()
        await subscriber.decided(40)
        for number in range(1, 41):
            trace = await whole(collector, number)
            decision = assert_tree(trace, set(VOTERS))
            assert decision.attributes["mesh.round"] == number
            assert [event for event in decision.events if event[0] == "absent"] == []
        stored = {
            m.headers["Nats-Msg-Id"]: m for m in await read_stream(swarm.url, swarm.name) if "Mesh-Output" in m.headers
        }
        assert len(collector.spans) == len(stored), "each output has its span, once"
        for span in collector.spans:
            message = stored[span.attributes["messaging.message.id"]]
            assert message.headers["traceparent"] == f"00-{span.trace}-{span.id}-01"
            assert span.kind == PRODUCER
            assert span.attributes["messaging.system"] == "nats"
            assert span.attributes["messaging.destination.name"] == message.subject
            assert span.attributes["messaging.message.body.size"] == len(message.data)
            assert span.attributes["mesh.stream_sequence"] == message.sequence
            assert span.start_ns <= span.end_ns
            heartbeat = subscriber.heartbeats[span.service]
            assert span.resource["service.instance.id"] == heartbeat["agent_id"]
            assert (span.resource["mesh.epoch"], span.resource["mesh.sandbox"]) == (
                heartbeat["epoch"],
                heartbeat["sandbox"],
            )
            # Jaeger compares clocks where the hosts of two spans differ or are unknown, and then warns of a skew.
            assert (span.resource["host.name"], span.resource["host.id"]) == (heartbeat["machine"], host_id())


LOOKER = """
import sys
import threading
from agents.agent import Agent
from bus.messages import MarketData, Signal

class Looker(Agent):
    kind = "looker"
    listens = ("market",)

    def on_market(self, tick: MarketData) -> Signal:
        found = {
            "opentelemetry": sum(name.startswith(("opentelemetry", "google.protobuf")) for name in sys.modules),
            "spans": sum(thread.name == "spans" for thread in threading.enumerate()),
        }
        return self.signal(tick, "hold", 0.5, found)
"""


async def last_probe(directory: Path, environment: dict[str, str]) -> tuple[dict[str, float], list[SwarmMessage]]:
    """What an agent finds in its own process after some rounds, and all that was stored."""
    directory.mkdir()
    (directory / "looker.py").write_text(LOOKER)
    # Paced, so that its first span is acknowledged before its last tick.
    toml = f'max_agents = 6\n{agents_toml(speed=20, limit=20, history=5)}[agents.looker]\nclass = "looker:Looker"\n'
    async with Swarm(directory, toml, environment=environment) as swarm:
        subscriber = await swarm.up()
        await subscriber.decided(20)
        stored = await read_stream(swarm.url, swarm.name)
        last = [message for message in stored if message.subject.endswith(".looker") and message.kind == "signal"][-1]
        return last.json["indicators"], [message for message in stored if "Mesh-Output" in message.headers]


@pytest.mark.slow
async def test_without_an_endpoint_nothing_is_imported_and_nothing_travels(tmp_path: Path):
    found, stored = await last_probe(tmp_path / "off", {})
    assert found == {"opentelemetry": 0, "spans": 0}
    assert [message for message in stored if "traceparent" in message.headers] == []
    async with collecting() as collector:
        found, stored = await last_probe(tmp_path / "on", environment(collector))
        assert found["opentelemetry"] > 0
        assert found["spans"] == 1
        assert [message for message in stored if "traceparent" not in message.headers] == []


@pytest.mark.slow
async def test_the_stored_bytes_are_those_of_a_run_without_tracing(tmp_path: Path, undisturbed: Content):
    async with (
        collecting() as collector,
        Swarm(tmp_path, exact_toml(speed=0), environment=environment(collector)) as swarm,
    ):
        subscriber = await swarm.up()
        await subscriber.decided(ROUNDS)
        messages = await read_stream(swarm.url, swarm.name)
        assert_same(content_of(messages), undisturbed)
        assert_numbered(messages)
        audit = await swarm.command("audit")
        assert audit.code == 0, audit.out


@pytest.mark.slow
@pytest.mark.parametrize("killed", AGENTS)
async def test_a_round_in_which_an_agent_was_killed_is_one_trace(tmp_path: Path, killed: str):
    toml = f"[coordinator]\nround_timeout_ms = 60000\n{agents_toml(speed=20, history=20)}"
    async with collecting() as collector, Swarm(tmp_path, toml, environment=environment(collector)) as swarm:
        subscriber = await swarm.up()
        await subscriber.decided(25)
        late: set[int] = set()
        for kill in range(1, KILLS + 1):
            heartbeat = (await subscriber.live(killed))[killed]
            swarm.send(heartbeat["pid"], signal.SIGSTOP)
            if killed != "research-1":  # a tick comes that the stopped agent will not answer
                before = ticks(subscriber)[-1]
                # A round whose votes come only after the successor is ready is no part of its recovery.
                await all_voted(subscriber, before + 2, set(VOTERS) - {killed})
                late.add(before + 2)
            swarm.send(heartbeat["pid"], signal.SIGKILL)
            await subscriber.back({killed: heartbeat["epoch"]})
            await subscriber.more_decisions(3)
            await collector.until("the recovery", lambda kill=kill: len(recoveries(collector, killed)) == kill)  # type: ignore[misc]
            # A span that is exported again after the next kill links that recovery, not this one any more.
            await collector.until("an answer that links it", lambda: links_newest(collector, killed, late))
        for number in range(1, subscriber.decisions[-1]["round"]):
            assert_tree(await whole(collector, number), set(VOTERS))

        linked = set()
        for trace in recoveries(collector, killed):
            assert orphans(trace) == []
            [root] = roots(trace)
            assert (root.name, root.service) == (f"respawn {killed}", "watchdog")
            assert {span.name: span.service for span in trace.values()} == {root.name: "watchdog", **phases_of(killed)}
            assert {span.parent for span in trace.values()} == {"", root.id}
            spans = {span.name: span for span in trace.values()}
            exited = await subscriber.happened("exited", killed, root.attributes["mesh.epoch_before"])
            reported_ns = datetime.fromisoformat(exited["timestamp"]).timestamp() * 1e9
            assert abs(spans["detect"].start_ns - reported_ns) < MICROSECOND_NS, "known from its host's report on"
            assert (root.start_ns, root.end_ns >= spans["spawn"].end_ns) == (spans["detect"].start_ns, True)
            linked.add((root.trace, root.id))
        linking = [span for span in collector.spans if any(link[:2] in linked for link in span.links)]
        assert {span.service for span in linking} == {killed}
        if killed == "research-1":
            assert len({link[:2] for span in linking for link in span.links} & linked) == KILLS
        else:
            assert {span.attributes.get("mesh.round") for span in linking} >= late


@pytest.mark.slow
async def test_a_round_is_sampled_whole_or_not_at_all(tmp_path: Path):
    """The tick decides: an unsampled message carries no context, and a successor decides nothing anew."""
    toml = f"[coordinator]\nround_timeout_ms = 60000\n{agents_toml(speed=20, limit=60, history=20)}"
    half = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.5"}
    async with collecting() as collector, Swarm(tmp_path, toml, environment=environment(collector, **half)) as swarm:
        subscriber = await swarm.up()
        await subscriber.decided(25)
        for killed in ("research-1", "coordinator"):
            heartbeat = (await subscriber.live(killed))[killed]
            swarm.send(heartbeat["pid"], signal.SIGKILL)
            await subscriber.back({killed: heartbeat["epoch"]})
        await subscriber.decided(60)
        traced: dict[int, set[bool]] = {}
        for message in await read_stream(swarm.url, swarm.name):
            number = message.json.get("sequence" if message.kind == "market" else "round")
            if "Mesh-Output" in message.headers and number is not None:
                traced.setdefault(number, set()).add("traceparent" in message.headers)
        assert {len(found) for found in traced.values()} == {1}
        sampled = [number for number, found in traced.items() if True in found]
        assert 0 < len(sampled) < len(traced) == 60
        for number in sampled:
            assert_tree(await whole(collector, number), set(VOTERS))


@pytest.mark.slow
async def test_a_watchdog_that_dies_in_a_recovery_leaves_no_parent_missing(tmp_path: Path):
    """Its spans were not taken yet: its successor makes the root again."""
    async with collecting() as collector, Swarm(tmp_path, environment=environment(collector)) as swarm:
        subscriber = await swarm.up()
        heartbeat = (await subscriber.live(*AGENTS))["strategy-momentum"]
        leader = (await subscriber.live("watchdog"))["watchdog"]
        collector.mode = "unavailable"  # the processes that live on try again
        swarm.send(heartbeat["pid"], signal.SIGKILL)
        await subscriber.back({"strategy-momentum": heartbeat["epoch"]})
        ends = await Ends.of(leader["pid"])
        swarm.send(leader["pid"], signal.SIGKILL)
        await ends.all()  # it sends nothing any more
        collector.mode = "well"
        name, parts = "respawn strategy-momentum", {"restore", "replay"}

        def whole_of() -> dict[str, Received] | None:
            traces = collector.traces().values()
            return next((trace for trace in traces if {name, *parts} <= {span.name for span in trace.values()}), None)

        trace = await collector.until("its root and the new process's part", whole_of)
        [root] = roots(trace)
        assert root.attributes["mesh.reemitted"] is True
        assert (root.attributes["mesh.epoch_before"], root.problem) == (heartbeat["epoch"], "")
        assert orphans(trace) == []
        assert {span.service for span in trace.values()} == {"watchdog", "strategy-momentum"}
        restored = next(span for span in trace.values() if span.name == "restore")
        assert root.start_ns < restored.start_ns


def phases_of(killed: str) -> dict[str, str]:
    return {name: "watchdog" if name in PHASES[:3] else killed for name in PHASES}


def links_newest(collector: OtlpCollector, killed: str, late: set[int]) -> bool:
    """Whether the newest recovery is linked: by the round that had to wait for it, if one had."""
    newest = {(root.trace, root.id) for trace in recoveries(collector, killed)[-1:] for root in roots(trace)}
    linking = [span for span in collector.spans if any(link[:2] in newest for link in span.links)]
    waited = max(late, default=None)
    return any(waited in (None, span.attributes.get("mesh.round")) for span in linking)


def ticks(subscriber: Subscriber) -> list[int]:
    return [stored.json["sequence"] for stored in subscriber.messages if stored.kind == "market"]


async def all_voted(subscriber: Subscriber, number: int, voters: set[str]) -> None:
    def voted() -> bool:
        votes = [stored for stored in subscriber.messages if stored.kind in ("signal", "sentiment")]
        return voters <= {vote.writer for vote in votes if vote.json["round"] == number}

    await subscriber.until(f"votes of {sorted(voters)} in round {number}", voted)


@pytest.mark.slow
@pytest.mark.parametrize("unhealthy", ["hanging", "unavailable", "dead"])
async def test_an_unhealthy_collector_costs_spans_and_nothing_else(
    tmp_path: Path, undisturbed: Content, unhealthy: str
):
    async with collecting("hanging" if unhealthy == "hanging" else "unavailable") as collector:
        if unhealthy == "dead":
            await collector.stop()
        few = {"OTEL_BSP_MAX_QUEUE_SIZE": "64", "OTEL_EXPORTER_OTLP_TIMEOUT": "1", "OTEL_METRIC_EXPORT_INTERVAL": "100"}
        variables = environment(collector, **few)
        async with Swarm(tmp_path, exact_toml(speed=0), environment=variables) as swarm:
            subscriber = await swarm.up()
            await subscriber.decided(ROUNDS)
            if unhealthy != "dead":
                await collector.until("an export was tried", lambda: collector.requests)
            for agent in AGENTS:
                counts = await subscriber.ask(agent, "status")
                assert counts["spans_exported"] == 0
                assert counts["spans_dropped"] > 0, "600 spans, and room for 64"
            messages = await read_stream(swarm.url, swarm.name)
            assert_same(content_of(messages), undisturbed)
            assert_numbered(messages)
            assert [event for event in subscriber.lifecycle if event["event"] in ("exited", "declared_dead")] == []
            logs = [path.read_text() for path in (tmp_path / ".signalmesh" / "logs").glob("*.log")]
            lines = [json.loads(line) for text in logs for line in text.splitlines()]
            dropped = Counter(line["agent"] for line in lines if line["event"] == "spans_dropped")
            assert dropped == dict.fromkeys(AGENTS, 1), "told once each"
            assert [line["event"] for line in lines].count("metrics_not_exported") == 1
            assert await swarm.end(signal.SIGTERM) == 0, "nobody waits for a collector at the end"


@pytest.mark.slow
@pytest.mark.parametrize("unhealthy", ["hanging", "dead"])
async def test_a_process_that_ends_beside_an_unhealthy_collector_sends_heartbeats_until_its_end(
    tmp_path: Path, unhealthy: str
):
    async with collecting("hanging") as collector:
        if unhealthy == "dead":
            await collector.stop()
        async with Swarm(tmp_path, exact_toml(speed=20), environment=environment(collector)) as swarm:
            subscriber = await swarm.up()
            await subscriber.more_decisions(5)
            for agent in ("coordinator", "research-1"):
                restart = await swarm.command("restart", agent)
                assert restart.code == 0, restart.out + restart.err
                await subscriber.until("its end", functools.partial(ends_of, subscriber, agent))
                await subscriber.more_decisions(5)
            ends = [event for event in subscriber.lifecycle if event["event"] == "exited"]
            assert [event["detail"]["exit_code"] for event in ends] == [0, 0]
            assert not [event for event in subscriber.lifecycle if event["event"] == "declared_dead"]
            assert not subscriber.alerts


def ends_of(subscriber: Subscriber, agent: str) -> list[dict[str, Any]]:
    return [event for event in subscriber.lifecycle if (event["event"], event["agent"]) == ("exited", agent)]


@pytest.mark.slow
async def test_a_collector_that_is_killed_costs_spans_and_nothing_else(tmp_path: Path, undisturbed: Content):
    async with collector_process() as collector:
        variables = {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.url}/v1/traces", "OTEL_TRACES_SAMPLER": "always_on",
            "OTEL_BSP_MAX_QUEUE_SIZE": "64", "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
        }  # fmt: skip
        async with Swarm(tmp_path, exact_toml(), environment=variables) as swarm:
            subscriber = await swarm.up()
            await subscriber.decided(260)
            await collector.until(spans=500)
            await collector.kill()
            assert subscriber.decisions[-1]["round"] < ROUNDS, "killed while the swarm had more to tell"
            await subscriber.decided(ROUNDS)
            messages = await read_stream(swarm.url, swarm.name)
            assert_same(content_of(messages), undisturbed)
            assert_numbered(messages)
            assert [event for event in subscriber.lifecycle if event["event"] in ("exited", "declared_dead")] == []
            outputs = Counter(message.writer for message in messages if "Mesh-Output" in message.headers)
            exported = 0
            for agent in AGENTS:
                counts = await exported_spans(subscriber, agent, outputs[agent])
                assert counts["spans_dropped"] > 0
                exported += counts["spans_exported"]
            # It may be killed while it takes, answers and counts a request: at worst one of each agent.
            assert abs(collector.spans - exported) <= 64 * len(AGENTS)
            logs = [path.read_text() for path in (tmp_path / ".signalmesh" / "logs").glob("*.log")]
            lines = [json.loads(line) for text in logs for line in text.splitlines()]
            dropped = [line for line in lines if line["event"] == "spans_dropped"]
            assert Counter(line["agent"] for line in dropped) == dict.fromkeys(AGENTS, 1), "told once each"
            assert await swarm.end(signal.SIGTERM) == 0


async def exported_spans(subscriber: Subscriber, agent: str, spans: int) -> dict[str, int]:
    """What an agent reports in its heartbeat once each of its spans is exported or dropped."""
    async with asyncio.timeout(GUARD_S):
        while True:
            counts: dict[str, int] = await subscriber.ask(agent, "status")
            if counts["spans_exported"] + counts["spans_dropped"] == spans:
                return counts


STUMBLER = """
from agents.agent import Agent
from bus.messages import MarketData, Signal

class Stumbler(Agent):
    kind = "stumbler"
    listens = ("market",)

    def on_market(self, tick: MarketData) -> Signal:
        if tick.sequence == 3:
            raise ValueError("three is too much")
        return self.signal(tick, "hold", 0.5)
"""


@pytest.mark.slow
async def test_absent_voters_failing_handlers_and_traces_from_outside(tmp_path: Path):
    (tmp_path / "stumbler.py").write_text(STUMBLER)
    toml = (
        f"max_agents = 7\n[coordinator]\nround_timeout_ms = 300\n{agents_toml(speed=0, limit=6)}"
        '[agents.stumbler]\nclass = "stumbler:Stumbler"\nvotes = false\n[agents.oracle]\nexternal = true\n'
    )
    outside, span = "c" * 32, "d" * 16
    async with collecting() as collector, Swarm(tmp_path, toml, environment=environment(collector)) as swarm:
        subscriber = await swarm.up()
        await subscriber.decided(6)
        for number in range(1, 7):
            decision = assert_tree(await whole(collector, number), set(VOTERS))
            assert [event for event in decision.events if event[1]["mesh.voter"] == "oracle"] != []
            assert decision.parent == roots(await whole(collector, number))[0].id, "the timer closed it"
        failed = await collector.until("the failure", lambda: [s for s in collector.spans if s.status])
        assert {(each.name, each.service, each.kind) for each in failed} == {("process swarm.market", "stumbler", 5)}
        assert "three is too much" in failed[0].problem
        [(event, attributes)] = failed[0].events
        assert (event, attributes["exception.type"]) == ("exception", "ValueError")
        assert failed[0].parent == roots(await whole(collector, 3))[0].id

        tick = {"price": 1.5, "volume": 1, "timestamp": "2026-01-01T00:00:00Z", "source": "me", "symbol": "ETH/USD"}
        for number, flag in ((1, "00"), (2, "01")):
            header = f"00-{outside}-{span}-{flag}"
            await subscriber.publish("market.ETH-USD.me", {**tick, "sequence": number}, traceparent=header)
        await subscriber.until(
            "both decided", lambda: len([d for d in subscriber.decisions if d["symbol"] == "ETH/USD"]) == 2
        )

        def decided() -> dict[str, Received] | None:
            trace = collector.traces().get(outside, {})
            return trace if decision_of(trace) and len(trace) >= 5 else None

        trace = await collector.until("the trace from outside", decided)
        assert {each.parent for each in trace.values()} == {span}
        assert {each.attributes["mesh.round"] for each in trace.values()} == {2}, "the first one was not to be sampled"
        unsampled = [s for s in subscriber.messages if s.headers.get("traceparent") == f"00-{outside}-{span}-00"]
        assert {s.kind for s in unsampled} == {"market", "sentiment", "signal", "decision"}, "handed on as it was"


@pytest.mark.slow
async def test_wrong_variables_stop_no_process_and_are_reported_once_by_up_and_by_each_role(tmp_path: Path):
    token = "s3cr3t-t0ken"
    wrong = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4318", "OTEL_EXPORTER_OTLP_HEADERS": token,
        "OTEL_TRACES_SAMPLER": "banana",
    }  # fmt: skip
    async with Swarm(tmp_path, exact_toml(speed=0, rounds=40), environment=wrong) as swarm:
        subscriber = await swarm.up()
        await subscriber.decided(40)
        warnings = [line for line in swarm.errors.splitlines() if line.startswith("warning: ")]
        for signal_name in ("traces", "metrics"):
            expected = f"expected http://HOST:PORT or https://HOST:PORT; no {signal_name} are exported"
            assert f"warning: OTEL_EXPORTER_OTLP_ENDPOINT=localhost:4318: {expected}" in warnings
        assert [line.partition(":")[2].partition(":")[0] for line in warnings] == [
            " OTEL_EXPORTER_OTLP_ENDPOINT=localhost", " OTEL_EXPORTER_OTLP_HEADERS", " OTEL_TRACES_SAMPLER=banana",
            " OTEL_EXPORTER_OTLP_ENDPOINT=localhost",
        ]  # fmt: skip
        found = await run_command(tmp_path, "doctor", "--json", environment=wrong)
        about = [finding["text"] for finding in found.json["findings"] if finding["check"] == "exporting"]
        assert [f"warning: {text}" for text in about] == warnings
        logs = tmp_path / ".signalmesh" / "logs"
        for name in ("python", "watchdog", "metrics"):
            lines = [json.loads(line) for line in (logs / f"{name}.log").read_text().splitlines() if line[:1] == "{"]
            stored = [line["problem"] for line in lines if line["event"] == "otel_variable_invalid"]
            assert [f"warning: {problem}" for problem in stored] == warnings, name
        assert not [path for path in (tmp_path / "up.err", *logs.iterdir()) if token in path.read_text()]
