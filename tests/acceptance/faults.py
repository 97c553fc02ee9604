"""What happens to a swarm, each with the wait until it has recovered."""

from __future__ import annotations

import random
import signal
from collections.abc import Awaitable, Callable

from tests.acceptance.ear import Ear
from tests.acceptance.swarm import AGENTS, SANDBOXES, Ends, Swarm


async def kill_agents(swarm: Swarm, ear: Ear, *agents: str) -> None:
    """SIGKILL them at the same moment; back when each is live in a newer epoch."""
    beats = await ear.live(*agents)
    for beat in beats.values():
        swarm.send(beat["pid"], signal.SIGKILL)
    await ear.back({agent: beat["epoch"] for agent, beat in beats.items()})


async def stop_agent(swarm: Swarm, ear: Ear, agent: str) -> None:
    """SIGSTOP: it is replaced and then gone, though nobody ever let it go on."""
    beat = (await ear.live(agent))[agent]
    ends = await Ends.of(beat["pid"])
    swarm.send(beat["pid"], signal.SIGSTOP)
    await ear.back({agent: beat["epoch"]})
    await ends.all()
    swarm.send(beat["pid"], signal.SIGCONT)


async def kill_host(swarm: Swarm, ear: Ear, sandbox: str) -> None:
    """SIGKILL a sandbox host: its agents end with it and are started elsewhere, and it comes back itself."""
    beats = {name: beat for name, beat in (await ear.live(*AGENTS)).items() if beat["sandbox"] == sandbox}
    host = ear.beats[sandbox]["pid"]
    ends = await Ends.of(host, *(beat["pid"] for beat in beats.values()))
    swarm.send(host, signal.SIGKILL)
    await ends.all()
    await ear.back({name: beat["epoch"] for name, beat in beats.items()})
    await ear.until(f"another host {sandbox}", lambda: ear.beats[sandbox]["pid"] != host)


async def kill_server(swarm: Swarm, ear: Ear) -> None:
    """SIGKILL nats-server; back when all agents are heard through the next one."""
    [pid] = [process.pid for process in swarm.everybody() if process.name().startswith("nats-server")]
    ends = await Ends.of(pid)
    swarm.send(pid, signal.SIGKILL)
    await ends.all()
    await ear.more_beats(2, *AGENTS)


async def refuse_and_kill(swarm: Swarm, ear: Ear) -> None:
    """The stream takes nothing for a while, though the buckets do; meanwhile every agent is killed.

    What they had published by then is stored nowhere. A snapshot that counted it would lose it for good.
    """
    beats = await ear.live(*AGENTS)
    stream = f"{swarm.name}_events"
    config = (await ear.api(f"STREAM.INFO.{stream}"))["config"]
    await ear.api(f"STREAM.UPDATE.{stream}", {**config, "max_msg_size": 1})
    await ear.more_beats(15, *AGENTS)  # a second and a half: time for a snapshot
    for beat in beats.values():
        swarm.send(beat["pid"], signal.SIGKILL)
    await ear.api(f"STREAM.UPDATE.{stream}", config)
    await ear.back({agent: beat["epoch"] for agent, beat in beats.items()})


async def freeze_and_thaw(swarm: Swarm, ear: Ear, sandbox: str) -> dict[str, int]:
    """SIGSTOP a sandbox whole, host and agents, until the agents are claimed for elsewhere; then let it go on.

    So each agent has a zombie that wakes with unanswered inputs at the very moment when its successor starts. Returns
    the zombies' epochs, once all of them have ended and their successors are live.
    """
    beats = {name: beat for name, beat in (await ear.live(*AGENTS)).items() if beat["sandbox"] == sandbox}
    host = ear.beats[sandbox]["pid"]
    ends = await Ends.of(*(beat["pid"] for beat in beats.values()))
    for pid in (host, *(beat["pid"] for beat in beats.values())):
        swarm.send(pid, signal.SIGSTOP)
    await ear.until("claims", lambda: all(ear.claims[name] > beat["epoch"] for name, beat in beats.items()))
    for pid in (*(beat["pid"] for beat in beats.values()), host):
        swarm.send(pid, signal.SIGCONT)
    await ends.all()
    await ear.back({name: beat["epoch"] for name, beat in beats.items()})
    await ear.until(f"{sandbox} back", lambda: ear.beats[sandbox]["status"] == "live")
    return {name: beat["epoch"] for name, beat in beats.items()}


async def _agents(swarm: Swarm, ear: Ear, chance: random.Random) -> None:
    await kill_agents(swarm, ear, *chance.sample(AGENTS, chance.randint(1, len(AGENTS))))


async def _stop(swarm: Swarm, ear: Ear, chance: random.Random) -> None:
    await stop_agent(swarm, ear, chance.choice(AGENTS))


async def _host(swarm: Swarm, ear: Ear, chance: random.Random) -> None:
    await kill_host(swarm, ear, chance.choice(SANDBOXES))


async def _freeze(swarm: Swarm, ear: Ear, chance: random.Random) -> None:
    sandboxes = [beat["sandbox"] for beat in (await ear.live(*AGENTS)).values()]
    await freeze_and_thaw(swarm, ear, chance.choice(sandboxes))


async def _server(swarm: Swarm, ear: Ear, _: random.Random) -> None:
    await kill_server(swarm, ear)


async def _refuse(swarm: Swarm, ear: Ear, _: random.Random) -> None:
    await refuse_and_kill(swarm, ear)


FAULTS: dict[str, Callable[[Swarm, Ear, random.Random], Awaitable[None]]] = {
    "agents": _agents,
    "stop": _stop,
    "host": _host,
    "freeze": _freeze,
    "server": _server,
    "refuse": _refuse,
}
"""By name, for random sequences of them."""
