"""What happens to a swarm, each with the wait until it has recovered."""

from __future__ import annotations

import random
import signal
from collections.abc import Awaitable, Callable

from tests.acceptance.subscriber import Subscriber
from tests.acceptance.swarm import AGENTS, SANDBOXES, Ends, Swarm


async def kill_agents(swarm: Swarm, subscriber: Subscriber, *agents: str) -> None:
    """SIGKILL them at the same moment; back when each is live in a newer epoch."""
    heartbeats = await subscriber.live(*agents)
    for heartbeat in heartbeats.values():
        swarm.send(heartbeat["pid"], signal.SIGKILL)
    await subscriber.back({agent: heartbeat["epoch"] for agent, heartbeat in heartbeats.items()})


async def stop_agent(swarm: Swarm, subscriber: Subscriber, agent: str) -> None:
    """SIGSTOP: it is replaced and then gone, though it is never resumed."""
    heartbeat = (await subscriber.live(agent))[agent]
    ends = await Ends.of(heartbeat["pid"])
    swarm.send(heartbeat["pid"], signal.SIGSTOP)
    await subscriber.back({agent: heartbeat["epoch"]})
    await ends.all()
    swarm.send(heartbeat["pid"], signal.SIGCONT)


async def kill_host(swarm: Swarm, subscriber: Subscriber, sandbox: str) -> None:
    """SIGKILL a sandbox host: its agents end with it and are started on another host, and it comes back itself."""
    heartbeats = {
        name: heartbeat
        for name, heartbeat in (await subscriber.live(*AGENTS)).items()
        if heartbeat["sandbox"] == sandbox
    }
    host = subscriber.heartbeats[sandbox]["pid"]
    ends = await Ends.of(host, *(heartbeat["pid"] for heartbeat in heartbeats.values()))
    swarm.send(host, signal.SIGKILL)
    await ends.all()
    await subscriber.back({name: heartbeat["epoch"] for name, heartbeat in heartbeats.items()})
    await subscriber.until(f"another host {sandbox}", lambda: subscriber.heartbeats[sandbox]["pid"] != host)


async def kill_server(swarm: Swarm, subscriber: Subscriber) -> None:
    """SIGKILL nats-server; back when heartbeats of all agents come through the next one."""
    [pid] = [process.pid for process in swarm.all_agents() if process.name().startswith("nats-server")]
    ends = await Ends.of(pid)
    swarm.send(pid, signal.SIGKILL)
    await ends.all()
    await subscriber.more_heartbeats(2, *AGENTS)


async def refuse_and_kill(swarm: Swarm, subscriber: Subscriber) -> None:
    """The stream takes nothing for a while, though the buckets do; meanwhile every agent is killed.

    What they had published by then is stored nowhere. A snapshot that counted it would lose it for good.
    """
    heartbeats = await subscriber.live(*AGENTS)
    stream = f"{swarm.name}_events"
    config = (await subscriber.api(f"STREAM.INFO.{stream}"))["config"]
    await subscriber.api(f"STREAM.UPDATE.{stream}", {**config, "max_msg_size": 1})
    await subscriber.more_heartbeats(15, *AGENTS)  # a second and a half: time for a snapshot
    for heartbeat in heartbeats.values():
        swarm.send(heartbeat["pid"], signal.SIGKILL)
    await subscriber.api(f"STREAM.UPDATE.{stream}", config)
    await subscriber.back({agent: heartbeat["epoch"] for agent, heartbeat in heartbeats.items()})


async def pause_and_resume(swarm: Swarm, subscriber: Subscriber, sandbox: str) -> dict[str, int]:
    """SIGSTOP a sandbox whole, host and agents, until the agents are claimed for other hosts; then resume it.

    So each agent has a zombie that wakes with unanswered inputs at the very moment when its successor starts. Returns
    the zombies' epochs, once all of them have ended and their successors are live.
    """
    heartbeats = {
        name: heartbeat
        for name, heartbeat in (await subscriber.live(*AGENTS)).items()
        if heartbeat["sandbox"] == sandbox
    }
    host = subscriber.heartbeats[sandbox]["pid"]
    ends = await Ends.of(*(heartbeat["pid"] for heartbeat in heartbeats.values()))
    for pid in (host, *(heartbeat["pid"] for heartbeat in heartbeats.values())):
        swarm.send(pid, signal.SIGSTOP)
    await subscriber.until(
        "claims", lambda: all(subscriber.claims[name] > heartbeat["epoch"] for name, heartbeat in heartbeats.items())
    )
    for pid in (*(heartbeat["pid"] for heartbeat in heartbeats.values()), host):
        swarm.send(pid, signal.SIGCONT)
    await ends.all()
    await subscriber.back({name: heartbeat["epoch"] for name, heartbeat in heartbeats.items()})
    await subscriber.until(f"{sandbox} back", lambda: subscriber.heartbeats[sandbox]["status"] == "live")
    return {name: heartbeat["epoch"] for name, heartbeat in heartbeats.items()}


async def _agents(swarm: Swarm, subscriber: Subscriber, chance: random.Random) -> None:
    await kill_agents(swarm, subscriber, *chance.sample(AGENTS, chance.randint(1, len(AGENTS))))


async def _stop(swarm: Swarm, subscriber: Subscriber, chance: random.Random) -> None:
    await stop_agent(swarm, subscriber, chance.choice(AGENTS))


async def _host(swarm: Swarm, subscriber: Subscriber, chance: random.Random) -> None:
    await kill_host(swarm, subscriber, chance.choice(SANDBOXES))


async def _freeze(swarm: Swarm, subscriber: Subscriber, chance: random.Random) -> None:
    sandboxes = [heartbeat["sandbox"] for heartbeat in (await subscriber.live(*AGENTS)).values()]
    await pause_and_resume(swarm, subscriber, chance.choice(sandboxes))


async def _server(swarm: Swarm, subscriber: Subscriber, _: random.Random) -> None:
    await kill_server(swarm, subscriber)


async def _refuse(swarm: Swarm, subscriber: Subscriber, _: random.Random) -> None:
    await refuse_and_kill(swarm, subscriber)


FAULTS: dict[str, Callable[[Swarm, Subscriber, random.Random], Awaitable[None]]] = {
    "agents": _agents,
    "stop": _stop,
    "host": _host,
    "freeze": _freeze,
    "server": _server,
    "refuse": _refuse,
}
"""By name, for random sequences of them."""
