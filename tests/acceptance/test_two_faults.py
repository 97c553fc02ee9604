"""Deaths while no watchdog leads: the next one declares them, and recovers them as any other."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path

import psutil
import pytest

from coordinator.telemetry.recovery_metrics import reason_class
from tests.acceptance.exact import assert_each_round_once, assert_numbered
from tests.acceptance.subscriber import read_stream
from tests.acceptance.swarm import AGENTS, Ends, Swarm
from tests.acceptance.traces import recoveries
from tests.support.collector import collecting, orphans
from tests.support.page import parsed

KILLED = "strategy-mean-reversion"
PHASES = ("detected_ms", "claimed_ms", "spawned_ms", "restored_ms", "ready_ms")


@pytest.mark.slow
async def test_an_agent_that_dies_after_its_watchdog_is_recovered_as_any_other(tmp_path: Path):
    async with collecting() as collector:
        exporting = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.url}/v1/traces"}
        async with Swarm(tmp_path, environment=exporting) as swarm:
            subscriber = await swarm.up("--speed", "20")
            await subscriber.decided(1)
            before = await subscriber.live(*AGENTS)
            watchdog = subscriber.heartbeats["watchdog"]
            ends = await Ends.of(watchdog["pid"])
            swarm.process.send_signal(signal.SIGSTOP)  # no process starts another one meanwhile
            swarm.send(watchdog["pid"], signal.SIGKILL)
            kill_report = asyncio.create_task(swarm.command("kill", KILLED, "--json"))
            await subscriber.happened("exited", KILLED, before[KILLED]["epoch"])
            swarm.process.send_signal(signal.SIGCONT)
            await ends.all()
            killed = await kill_report
            assert killed.code == 0, killed
            assert [phase for phase in PHASES if killed.json[phase] is None] == [], killed.json
            assert (killed.json["outputs_lost"], killed.json["outputs_duplicated"]) == (0, 0)
            await subscriber.more_decisions(5)
            assert_each_round_once(subscriber.decisions)

            dead = await subscriber.happened("declared_dead", KILLED)
            assert (dead["epoch"], dead["sandbox"], dead["pid"], dead["reason"]) == (
                before[KILLED]["epoch"], "python", before[KILLED]["pid"], "signal 9",
            )  # fmt: skip
            assert [event["agent"] for event in subscriber.lifecycle if event["event"] == "declared_dead"] == [KILLED]
            after = await subscriber.live(*AGENTS)
            assert [name for name in AGENTS if after[name]["epoch"] != before[name]["epoch"]] == [KILLED]

            once = await swarm.command("metrics", "--once")
            result = parsed(once.out)
            assert result["signalmesh_deaths_total", (KILLED, "signal 9")] == 1
            assert result["signalmesh_restarts_total", (KILLED, "signal 9")] == 1
            assert result["signalmesh_detection_seconds_count", ("exit",)] == 1
            assert result["signalmesh_recovery_seconds_count", (KILLED,)] == 1

            [trace] = await collector.until("its recovery", lambda: recoveries(collector, KILLED))
            assert orphans(trace) == []
            spans = {span.name: span for span in trace.values()}
            assert spans["detect"].attributes["mesh.reason"] == "signal 9"
            seconds = (spans["detect"].end_ns - spans["detect"].start_ns) * 1e-9
            assert abs(seconds - result["signalmesh_detection_seconds_sum", ("exit",)]) < 0.5, "both from its exit on"
            audit = await swarm.command("audit")
            assert audit.code == 0, audit.out


@pytest.mark.slow
async def test_agents_that_die_with_their_host_after_their_watchdog_are_declared_dead(tmp_path: Path):
    async with Swarm(tmp_path) as swarm:
        subscriber = await swarm.up("--speed", "20")
        await subscriber.decided(1)
        before = await subscriber.live(*AGENTS)
        lost = {name: heartbeat["epoch"] for name, heartbeat in before.items() if heartbeat["sandbox"] == "nodejs"}
        ends = await Ends.of(subscriber.heartbeats["watchdog"]["pid"], subscriber.heartbeats["nodejs"]["pid"])
        swarm.process.send_signal(signal.SIGSTOP)
        for pid in ends.pids:
            swarm.send(pid, signal.SIGKILL)
        gone = await Ends.of(*(before[name]["pid"] for name in lost))
        await gone.all()
        swarm.process.send_signal(signal.SIGCONT)
        await ends.all()
        await subscriber.back(lost)
        after = await subscriber.live(*AGENTS)
        assert {name for name in AGENTS if after[name]["epoch"] != before[name]["epoch"]} == set(lost)
        deaths = [event for event in subscriber.lifecycle if event["event"] == "declared_dead"]
        assert {event["agent"]: event["epoch"] for event in deaths} == lost
        assert len(deaths) == len(lost)
        assert {reason_class(event["reason"]) for event in deaths} == {"sandbox lost"}
        await subscriber.more_decisions(5)
        assert_numbered(await read_stream(swarm.url, swarm.name))


@pytest.mark.slow
async def test_a_swarm_that_was_killed_as_a_whole_starts_without_a_death(tmp_path: Path):
    async with Swarm(tmp_path) as swarm:
        subscriber = await swarm.up("--speed", "20")
        await subscriber.decided(1)
        await subscriber.live(*AGENTS)
        before = dict(subscriber.claims)
        all_agents = swarm.all_agents()
        ends = await Ends.of(*(process.pid for process in all_agents))
        for process in all_agents:
            with contextlib.suppress(psutil.NoSuchProcess):  # they end with their parents
                process.kill()
        await swarm.wait()
        await ends.all()
        subscriber = await swarm.up("--speed", "20")
        after = await subscriber.live(*AGENTS)
        assert [name for name in AGENTS if after[name]["epoch"] <= before[name]] == []
        await subscriber.more_heartbeats(5, "watchdog")
        assert [event for event in subscriber.lifecycle if event["event"] == "declared_dead"] == []
