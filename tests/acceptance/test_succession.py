"""Deaths while nobody leads: the next watchdog declares them, and recovers them as any other."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path

import psutil
import pytest

from coordinator.telemetry.recovery_metrics import reason_class
from tests.acceptance.ear import read_stream
from tests.acceptance.exact import assert_each_round_once, assert_numbered
from tests.acceptance.swarm import AGENTS, Ends, Swarm
from tests.acceptance.traces import recoveries
from tests.support.collector import collecting, orphans
from tests.support.page import parsed

KILLED = "strategy-mean-reversion"
PHASES = ("detected_ms", "claimed_ms", "spawned_ms", "restored_ms", "ready_ms")


@pytest.mark.slow
async def test_an_agent_that_dies_after_its_watchdog_is_recovered_as_any_other(tmp_path: Path):
    async with collecting() as collector:
        told = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.url}/v1/traces"}
        async with Swarm(tmp_path, environment=told) as swarm:
            ear = await swarm.up("--speed", "20")
            await ear.decided(1)
            before = await ear.live(*AGENTS)
            watchdog = ear.beats["watchdog"]
            ends = await Ends.of(watchdog["pid"])
            swarm.process.send_signal(signal.SIGSTOP)  # nobody starts another one meanwhile
            swarm.send(watchdog["pid"], signal.SIGKILL)
            killing = asyncio.create_task(swarm.verb("kill", KILLED, "--json"))
            await ear.happened("exited", KILLED, before[KILLED]["epoch"])
            swarm.process.send_signal(signal.SIGCONT)
            await ends.all()
            killed = await killing
            assert killed.code == 0, killed
            assert [phase for phase in PHASES if killed.json[phase] is None] == [], killed.json
            assert (killed.json["outputs_lost"], killed.json["outputs_doubled"]) == (0, 0)
            await ear.more_decisions(5)
            assert_each_round_once(ear.decisions)

            dead = await ear.happened("declared_dead", KILLED)
            assert (dead["epoch"], dead["sandbox"], dead["pid"], dead["reason"]) == (
                before[KILLED]["epoch"], "python", before[KILLED]["pid"], "signal 9",
            )  # fmt: skip
            assert [event["agent"] for event in ear.lifecycle if event["event"] == "declared_dead"] == [KILLED]
            after = await ear.live(*AGENTS)
            assert [name for name in AGENTS if after[name]["epoch"] != before[name]["epoch"]] == [KILLED]

            once = await swarm.verb("metrics", "--once")
            shown = parsed(once.out)
            assert shown["signalmesh_deaths_total", (KILLED, "signal 9")] == 1
            assert shown["signalmesh_restarts_total", (KILLED, "signal 9")] == 1
            assert shown["signalmesh_detection_seconds_count", ("exit",)] == 1
            assert shown["signalmesh_recovery_seconds_count", (KILLED,)] == 1

            [trace] = await collector.until("its recovery", lambda: recoveries(collector, KILLED))
            assert orphans(trace) == []
            spans = {span.name: span for span in trace.values()}
            assert spans["detect"].attributes["mesh.reason"] == "signal 9"
            seconds = (spans["detect"].end_ns - spans["detect"].start_ns) * 1e-9
            assert abs(seconds - shown["signalmesh_detection_seconds_sum", ("exit",)]) < 0.5, "both from its exit on"
            audit = await swarm.verb("audit")
            assert audit.code == 0, audit.out


@pytest.mark.slow
async def test_agents_that_die_with_their_host_after_their_watchdog_are_declared_dead(tmp_path: Path):
    async with Swarm(tmp_path) as swarm:
        ear = await swarm.up("--speed", "20")
        await ear.decided(1)
        before = await ear.live(*AGENTS)
        lost = {name: beat["epoch"] for name, beat in before.items() if beat["sandbox"] == "nodejs"}
        ends = await Ends.of(ear.beats["watchdog"]["pid"], ear.beats["nodejs"]["pid"])
        swarm.process.send_signal(signal.SIGSTOP)
        for pid in ends.pids:
            swarm.send(pid, signal.SIGKILL)
        gone = await Ends.of(*(before[name]["pid"] for name in lost))
        await gone.all()
        swarm.process.send_signal(signal.SIGCONT)
        await ends.all()
        await ear.back(lost)
        after = await ear.live(*AGENTS)
        assert {name for name in AGENTS if after[name]["epoch"] != before[name]["epoch"]} == set(lost)
        deaths = [event for event in ear.lifecycle if event["event"] == "declared_dead"]
        assert {event["agent"]: event["epoch"] for event in deaths} == lost
        assert len(deaths) == len(lost)
        assert {reason_class(event["reason"]) for event in deaths} == {"sandbox lost"}
        await ear.more_decisions(5)
        assert_numbered(await read_stream(swarm.url, swarm.name))


@pytest.mark.slow
async def test_a_swarm_that_was_killed_as_a_whole_starts_without_a_death(tmp_path: Path):
    async with Swarm(tmp_path) as swarm:
        ear = await swarm.up("--speed", "20")
        await ear.decided(1)
        await ear.live(*AGENTS)
        before = dict(ear.claims)
        everybody = swarm.everybody()
        ends = await Ends.of(*(process.pid for process in everybody))
        for process in everybody:
            with contextlib.suppress(psutil.NoSuchProcess):  # they end with their parents
                process.kill()
        await swarm.wait()
        await ends.all()
        ear = await swarm.up("--speed", "20")
        after = await ear.live(*AGENTS)
        assert [name for name in AGENTS if after[name]["epoch"] <= before[name]] == []
        await ear.more_beats(5, "watchdog")
        assert [event for event in ear.lifecycle if event["event"] == "declared_dead"] == []
