"""Each kind of process, killed or stopped for a while, in a quiet swarm and a busy one: no stored byte differs."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import cast

import pytest

from coordinator.runner.run_record import read_run
from tests.acceptance.exact import Content
from tests.acceptance.faults import kill_agents, kill_host, kill_server, pause_and_resume, stop_agent
from tests.acceptance.subscriber import Subscriber
from tests.acceptance.swarm import AGENTS, VOTERS, Ends, Swarm
from tests.matrix.verification import Before, matrix_toml, verify
from tests.support.plain_client import PlainClient

SANDBOX = "nodejs"
Fault = Callable[[Swarm, Subscriber], Awaitable[Collection[str]]]
"""Injects it, and waits for the recovery; returns the agents whose epochs must have risen."""


def pid_of(swarm: Swarm, name: str) -> int:
    [pid] = [process.pid for process in swarm.all_agents() if process.name().startswith(name)]
    return pid


async def kill_research(swarm: Swarm, subscriber: Subscriber) -> Collection[str]:
    await kill_agents(swarm, subscriber, "research-1")
    return {"research-1"}


async def stop_research(swarm: Swarm, subscriber: Subscriber) -> Collection[str]:
    await stop_agent(swarm, subscriber, "research-1")
    return {"research-1"}


async def kill_coordinator(swarm: Swarm, subscriber: Subscriber) -> Collection[str]:
    await kill_agents(swarm, subscriber, "coordinator")
    return {"coordinator"}


async def stop_coordinator(swarm: Swarm, subscriber: Subscriber) -> Collection[str]:
    await stop_agent(swarm, subscriber, "coordinator")
    return {"coordinator"}


async def kill_voters(swarm: Swarm, subscriber: Subscriber) -> Collection[str]:
    await kill_agents(swarm, subscriber, *VOTERS)
    return VOTERS


async def stop_voters(swarm: Swarm, subscriber: Subscriber) -> Collection[str]:
    await asyncio.gather(*(stop_agent(swarm, subscriber, agent) for agent in VOTERS))
    return VOTERS


async def _both_watchdogs(subscriber: Subscriber) -> tuple[int, int]:
    await subscriber.until("two watchdogs", lambda: {"watchdog", "standby"} <= subscriber.heartbeats.keys())
    return subscriber.heartbeats["watchdog"]["pid"], subscriber.heartbeats["standby"]["pid"]


async def kill_watchdog(swarm: Swarm, subscriber: Subscriber) -> Collection[str]:
    leader, standby = await _both_watchdogs(subscriber)
    swarm.send(leader, signal.SIGKILL)
    await subscriber.until("the standby leads", lambda: subscriber.heartbeats["watchdog"]["pid"] == standby)
    await subscriber.until("another stands by", lambda: subscriber.heartbeats["standby"]["pid"] != standby)
    await subscriber.more_heartbeats(
        20, "watchdog"
    )  # long enough for a heartbeat of every host, and to start what no host reports
    return {"watchdog"}


async def stop_watchdog(swarm: Swarm, subscriber: Subscriber) -> Collection[str]:
    leader, standby = await _both_watchdogs(subscriber)
    ends = await Ends.of(leader)
    swarm.send(leader, signal.SIGSTOP)
    await subscriber.until("the standby leads", lambda: subscriber.heartbeats["watchdog"]["pid"] == standby)
    swarm.send(leader, signal.SIGCONT)
    await ends.all()
    await subscriber.until(
        "another stands by", lambda: subscriber.heartbeats["standby"]["pid"] not in (leader, standby)
    )
    await subscriber.more_heartbeats(20, "watchdog")
    assert subscriber.heartbeats["watchdog"]["pid"] == standby
    return {"watchdog"}


async def _in_sandbox(subscriber: Subscriber) -> dict[str, int]:
    """Agent -> epoch of those that run in SANDBOX; they may have started in another."""
    return {
        name: heartbeat["epoch"]
        for name, heartbeat in (await subscriber.live(*AGENTS)).items()
        if heartbeat["sandbox"] == SANDBOX
    }


async def kill_sandbox_host(swarm: Swarm, subscriber: Subscriber) -> Collection[str]:
    there = await _in_sandbox(subscriber)
    assert there
    await kill_host(swarm, subscriber, SANDBOX)
    return there


async def stop_sandbox_host(swarm: Swarm, subscriber: Subscriber) -> Collection[str]:
    """The host alone: its agents go on, are started on another host nevertheless, and then end."""
    there = await _in_sandbox(subscriber)
    assert there
    ends = await Ends.of(*(subscriber.heartbeats[name]["pid"] for name in there))
    host = subscriber.heartbeats[SANDBOX]["pid"]
    swarm.send(host, signal.SIGSTOP)
    await subscriber.back(there)
    swarm.send(host, signal.SIGCONT)
    await ends.all()
    await subscriber.more_heartbeats(20, SANDBOX)
    assert subscriber.heartbeats[SANDBOX]["pid"] == host
    return there


async def freeze_sandbox(swarm: Swarm, subscriber: Subscriber) -> Collection[str]:
    frozen = await pause_and_resume(swarm, subscriber, SANDBOX)
    assert frozen
    return frozen


async def _mirror_has(subscriber: Subscriber, sequence: int) -> None:
    await subscriber.until("a mirror up to here", lambda: (subscriber.heartbeats["mirror"]["cursor"] or 0) >= sequence)


async def kill_mirror(swarm: Swarm, subscriber: Subscriber) -> Collection[str]:
    pid = subscriber.heartbeats["mirror"]["pid"]
    swarm.send(pid, signal.SIGKILL)
    await subscriber.until("another mirror", lambda: subscriber.heartbeats["mirror"]["pid"] != pid)
    await _mirror_has(subscriber, subscriber.messages[-1].sequence)
    return ()


async def stop_mirror(swarm: Swarm, subscriber: Subscriber) -> Collection[str]:
    pid = subscriber.heartbeats["mirror"]["pid"]
    swarm.send(pid, signal.SIGSTOP)
    await subscriber.more_heartbeats(30, *AGENTS)  # three seconds
    swarm.send(pid, signal.SIGCONT)
    await _mirror_has(subscriber, subscriber.messages[-1].sequence)
    assert subscriber.heartbeats["mirror"]["pid"] == pid
    return ()


async def kill_zygote(swarm: Swarm, subscriber: Subscriber) -> Collection[str]:
    """Nothing ends with it, and a mirror that dies meanwhile or afterwards is started again."""

    def zygote() -> int | None:
        run = read_run(swarm.directory / ".signalmesh")
        assert run is not None
        child = run.child("zygote")
        return None if child is None else child.pid

    killed = zygote()
    assert killed is not None
    swarm.send(killed, signal.SIGKILL)
    await kill_mirror(swarm, subscriber)
    await subscriber.until("another zygote", lambda: zygote() not in (None, killed))
    await kill_mirror(swarm, subscriber)
    return ()


async def kill_nats_server(swarm: Swarm, subscriber: Subscriber) -> Collection[str]:
    await kill_server(swarm, subscriber)
    return ()


async def stop_nats_server(swarm: Swarm, subscriber: Subscriber) -> Collection[str]:
    """For so long that connections break, and attempts to make new ones fail."""
    gone, failed = asyncio.Event(), asyncio.Event()

    async def on_down() -> None:
        gone.set()

    async def on_error(_: Exception) -> None:
        if gone.is_set():
            failed.set()

    canary = PlainClient()
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
    await subscriber.more_heartbeats(10, *AGENTS, "watchdog")
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
    "kill zygote": kill_zygote,
    "kill nats-server": kill_nats_server,
    "stop nats-server": stop_nats_server,
}


@pytest.mark.parametrize("load", ["idle", "load"])
@pytest.mark.parametrize("fault", list(FAULTS))
async def test_processes(tmp_path: Path, undisturbed_long: Content, fault: str, load: str):
    async with Swarm(tmp_path, matrix_toml(load)) as swarm:
        subscriber = await swarm.up(*(["--standby"] if "watchdog" in fault else []))
        before = await Before.of(subscriber, load)
        await subscriber.until("a mirror", lambda: "mirror" in subscriber.heartbeats)
        risen = await FAULTS[fault](swarm, subscriber)
        await verify(swarm, subscriber, undisturbed_long, before, risen, load=load, received="nats-server" not in fault)
        assert await swarm.end(signal.SIGINT) == 0
