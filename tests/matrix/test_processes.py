"""Each kind of process, killed or stopped for a while, in a quiet swarm and a busy one: nobody can tell afterwards."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import cast

import pytest
from nats.aio.client import Client

from tests.acceptance.ear import Ear
from tests.acceptance.exact import Content
from tests.acceptance.faults import freeze_and_thaw, kill_agents, kill_host, kill_server, stop_agent
from tests.acceptance.swarm import AGENTS, VOTERS, Ends, Swarm
from tests.matrix.proof import Before, matrix_toml, prove

SANDBOX = "nodejs"
Fault = Callable[[Swarm, Ear], Awaitable[Collection[str]]]
"""Does it, and waits until it is overcome; returns whose epochs must have risen."""


def pid_of(swarm: Swarm, name: str) -> int:
    [pid] = [process.pid for process in swarm.everybody() if process.name().startswith(name)]
    return pid


async def kill_research(swarm: Swarm, ear: Ear) -> Collection[str]:
    await kill_agents(swarm, ear, "research-1")
    return {"research-1"}


async def stop_research(swarm: Swarm, ear: Ear) -> Collection[str]:
    await stop_agent(swarm, ear, "research-1")
    return {"research-1"}


async def kill_coordinator(swarm: Swarm, ear: Ear) -> Collection[str]:
    await kill_agents(swarm, ear, "coordinator")
    return {"coordinator"}


async def stop_coordinator(swarm: Swarm, ear: Ear) -> Collection[str]:
    await stop_agent(swarm, ear, "coordinator")
    return {"coordinator"}


async def kill_voters(swarm: Swarm, ear: Ear) -> Collection[str]:
    await kill_agents(swarm, ear, *VOTERS)
    return VOTERS


async def stop_voters(swarm: Swarm, ear: Ear) -> Collection[str]:
    await asyncio.gather(*(stop_agent(swarm, ear, agent) for agent in VOTERS))
    return VOTERS


async def _both_watchdogs(ear: Ear) -> tuple[int, int]:
    await ear.until("two watchdogs", lambda: {"watchdog", "standby"} <= ear.beats.keys())
    return ear.beats["watchdog"]["pid"], ear.beats["standby"]["pid"]


async def kill_watchdog(swarm: Swarm, ear: Ear) -> Collection[str]:
    leader, standby = await _both_watchdogs(ear)
    swarm.send(leader, signal.SIGKILL)
    await ear.until("the standby leads", lambda: ear.beats["watchdog"]["pid"] == standby)
    await ear.until("another stands by", lambda: ear.beats["standby"]["pid"] != standby)
    await ear.more_beats(20, "watchdog")  # long enough to hear every host, and to start what nobody reports
    return {"watchdog"}


async def stop_watchdog(swarm: Swarm, ear: Ear) -> Collection[str]:
    leader, standby = await _both_watchdogs(ear)
    ends = await Ends.of(leader)
    swarm.send(leader, signal.SIGSTOP)
    await ear.until("the standby leads", lambda: ear.beats["watchdog"]["pid"] == standby)
    swarm.send(leader, signal.SIGCONT)
    await ends.all()
    await ear.until("another stands by", lambda: ear.beats["standby"]["pid"] not in (leader, standby))
    await ear.more_beats(20, "watchdog")
    assert ear.beats["watchdog"]["pid"] == standby
    return {"watchdog"}


async def _in_sandbox(ear: Ear) -> dict[str, int]:
    """Agent -> epoch of those that run in SANDBOX; they may have started elsewhere."""
    return {name: beat["epoch"] for name, beat in (await ear.live(*AGENTS)).items() if beat["sandbox"] == SANDBOX}


async def kill_sandbox_host(swarm: Swarm, ear: Ear) -> Collection[str]:
    there = await _in_sandbox(ear)
    assert there
    await kill_host(swarm, ear, SANDBOX)
    return there


async def stop_sandbox_host(swarm: Swarm, ear: Ear) -> Collection[str]:
    """The host alone: its agents go on, are started elsewhere nevertheless, and end as soon as they learn of it."""
    there = await _in_sandbox(ear)
    assert there
    ends = await Ends.of(*(ear.beats[name]["pid"] for name in there))
    host = ear.beats[SANDBOX]["pid"]
    swarm.send(host, signal.SIGSTOP)
    await ear.back(there)
    swarm.send(host, signal.SIGCONT)
    await ends.all()
    await ear.more_beats(20, SANDBOX)
    assert ear.beats[SANDBOX]["pid"] == host
    return there


async def freeze_sandbox(swarm: Swarm, ear: Ear) -> Collection[str]:
    frozen = await freeze_and_thaw(swarm, ear, SANDBOX)
    assert frozen
    return frozen


async def _mirror_has(ear: Ear, sequence: int) -> None:
    await ear.until("a mirror up to here", lambda: (ear.beats["mirror"]["cursor"] or 0) >= sequence)


async def kill_mirror(swarm: Swarm, ear: Ear) -> Collection[str]:
    pid = ear.beats["mirror"]["pid"]
    swarm.send(pid, signal.SIGKILL)
    await ear.until("another mirror", lambda: ear.beats["mirror"]["pid"] != pid)
    await _mirror_has(ear, ear.said[-1].sequence)
    return ()


async def stop_mirror(swarm: Swarm, ear: Ear) -> Collection[str]:
    pid = ear.beats["mirror"]["pid"]
    swarm.send(pid, signal.SIGSTOP)
    await ear.more_beats(30, *AGENTS)  # three seconds
    swarm.send(pid, signal.SIGCONT)
    await _mirror_has(ear, ear.said[-1].sequence)
    assert ear.beats["mirror"]["pid"] == pid
    return ()


async def kill_nats_server(swarm: Swarm, ear: Ear) -> Collection[str]:
    await kill_server(swarm, ear)
    return ()


async def stop_nats_server(swarm: Swarm, ear: Ear) -> Collection[str]:
    """For so long that connections break, and attempts to make new ones fail."""
    gone, failed = asyncio.Event(), asyncio.Event()

    async def on_down() -> None:
        gone.set()

    async def on_error(_: Exception) -> None:
        if gone.is_set():
            failed.set()

    canary = Client()
    await canary.connect(
        swarm.url, ping_interval=cast(int, 0.5), max_outstanding_pings=2, max_reconnect_attempts=-1,
        reconnect_time_wait=cast(int, 0.05), connect_timeout=1, disconnected_cb=on_down, error_cb=on_error,
    )  # fmt: skip
    pid = pid_of(swarm, "nats-server")
    swarm.send(pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(60):
            await gone.wait()
            await failed.wait()
    finally:
        swarm.send(pid, signal.SIGCONT)
        await canary.close()
    await ear.more_beats(10, *AGENTS, "watchdog")
    assert pid_of(swarm, "nats-server") == pid
    return ()


FAULTS: dict[str, Fault] = {
    "kill research-1": kill_research,
    "stop research-1": stop_research,
    "kill coordinator": kill_coordinator,
    "stop coordinator": stop_coordinator,
    "kill all voters": kill_voters,
    "stop all voters": stop_voters,
    "kill watchdog": kill_watchdog,
    "stop watchdog": stop_watchdog,
    "kill host": kill_sandbox_host,
    "stop host": stop_sandbox_host,
    "freeze sandbox": freeze_sandbox,
    "kill mirror": kill_mirror,
    "stop mirror": stop_mirror,
    "kill nats-server": kill_nats_server,
    "stop nats-server": stop_nats_server,
}


@pytest.mark.parametrize("load", ["idle", "load"])
@pytest.mark.parametrize("fault", list(FAULTS))
async def test_processes(tmp_path: Path, undisturbed_long: Content, fault: str, load: str):
    async with Swarm(tmp_path, matrix_toml(load)) as swarm:
        ear = await swarm.up(*(["--standby"] if "watchdog" in fault else []))
        before = await Before.of(ear, load)
        await ear.until("a mirror", lambda: "mirror" in ear.beats)
        risen = await FAULTS[fault](swarm, ear)
        await prove(swarm, ear, undisturbed_long, before, risen, load=load, heard="nats-server" not in fault)
        assert await swarm.end(signal.SIGINT) == 0
