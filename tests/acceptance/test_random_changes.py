"""Random changes of a running swarm, with deaths between and within them: it is what was asked for, and proves it.

`ACCEPTANCE_CHANGES=100 ACCEPTANCE_SEED=7` makes more of them, or others.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest

from tests.acceptance.subscriber import Subscriber, read_stream
from tests.acceptance.swarm import AGENTS, SANDBOXES, VOTERS, Swarm, agents_toml
from tests.acceptance.test_changes import (
    agents_of,
    assert_clean,
    assert_voters_of_their_rounds,
    changes_of,
    homes_of,
    numbers_of,
)

CHANGES = int(os.environ.get("ACCEPTANCE_CHANGES", "20"))
SEED = int(os.environ.get("ACCEPTANCE_SEED", "1"))
SPEED = "50"
CANDLES = 20_111
"""Of the packaged recording."""
MOST = 11
NAMES = ("one", "two", "three")
KINDS = ("momentum", "mean-reversion")
GUARD_S = 60.0 + 15.0 * CHANGES


class Changing:
    """Makes one random change after the other, and knows which agents there must be."""

    def __init__(self, swarm: Swarm, subscriber: Subscriber, seed: int) -> None:
        self.swarm, self.subscriber, self.random = swarm, subscriber, random.Random(seed)
        self.agents = {*AGENTS}
        self.homes: dict[str, str] = {}
        self.scaled = dict.fromkeys(KINDS, 0)
        self.left: dict[str, tuple[str, ...]] = {}
        """Agent that was removed and has left a state -> how it was added."""
        self.added: dict[str, tuple[str, ...]] = {
            name: ("--kind", kind) for name, kind in zip(VOTERS, ("sentiment", *KINDS), strict=True)
        }
        self.done: list[str] = []

    def draw(self) -> tuple[str, ...]:
        """The next command; the knowledge of this class is changed as if it were done."""
        pick = self.random.choice
        absent = [name for name in (*NAMES, *VOTERS) if name not in self.agents]
        removable = sorted(self.agents & {*NAMES, *VOTERS}) if len(self.agents & {*NAMES, *VOTERS}) > 2 else []
        what = pick(("add", "add", "remove", "move", "scale"))
        if what == "add" and absent and len(self.agents) < MOST:
            name = pick(absent)
            how = self.left.pop(name, None) or self.added.get(name) or ("--kind", pick(KINDS))
            self.added[name] = how
            self.agents.add(name)
            self.homes.pop(name, None)
            return ("add", name, *how)
        if what == "remove" and removable:
            name, forget = pick(removable), self.random.random() < 0.4
            self.agents.discard(name)
            self.homes.pop(name, None)
            if not forget:
                self.left[name] = self.added[name]
            return ("remove", name, *(("--forget",) if forget else ()))
        if what == "scale":
            kind = pick(KINDS)
            count = self.random.randrange(max(1, min(4, MOST + 1 - len(self.agents) + self.scaled[kind])))
            self.agents -= {f"{kind}-{n + 1}" for n in range(self.scaled[kind])}
            self.agents |= {f"{kind}-{n + 1}" for n in range(count)}
            self.scaled[kind] = count
            self.homes = {name: home for name, home in self.homes.items() if name in self.agents}
            return ("scale", kind, str(count))
        name, home = pick(sorted(self.agents)), pick(SANDBOXES)
        self.homes[name] = home
        return ("move", name, "--to", home)

    async def change(self) -> None:
        """Make the next change, perhaps with the death of an agent or of the watchdog while it is made."""
        command = self.draw()
        self.done.append(" ".join(command))
        stored = len(changes_of(self.subscriber))
        running = asyncio.ensure_future(self.swarm.command(*command, "--json"))
        victim = self.random.choice((None, None, "watchdog", *sorted({*AGENTS} & self.agents)))
        if victim is not None:
            if self.random.random() < 0.5:
                await self.subscriber.until(
                    "stored or done", lambda: len(changes_of(self.subscriber)) > stored or running.done()
                )
            self.swarm.send(self.subscriber.heartbeats[victim]["pid"], signal.SIGKILL)
            self.done[-1] += f", kill {victim}"
        result = await running
        assert result.code == 0, (self.done, result.err)

    async def kill_host(self) -> None:
        """Kill a host, and wait until it and all agents are back."""
        name = self.random.choice(SANDBOXES)
        before = self.subscriber.heartbeats[name]["pid"]
        self.swarm.send(before, signal.SIGKILL)
        self.done.append(f"kill sandbox {name}")
        await self.subscriber.until("its host is back", lambda: self.subscriber.heartbeats[name]["pid"] != before)
        await self.settled()

    async def settled(self) -> None:
        """Wait until exactly the agents that there must be are active."""
        async with asyncio.timeout(60):
            while True:
                status = (await self.swarm.command("status", "--json")).json
                active = {agent["name"] for agent in status["agents"] if agent["status"] in ("active", "finished")}
                if active == self.agents == {agent["name"] for agent in status["agents"]}:
                    return


@pytest.mark.slow
@pytest.mark.timeout(GUARD_S)
async def test_the_swarm_is_what_was_asked_for_whatever_dies_meanwhile(tmp_path: Path):
    async with Swarm(
        tmp_path, f"max_agents = {MOST + 1}\n[watchdog]\nquarantine_deaths = 40\n{agents_toml()}"
    ) as swarm:
        subscriber = await swarm.up("--speed", SPEED)
        await subscriber.live(*AGENTS)
        changing = Changing(swarm, subscriber, SEED)
        for number in range(CHANGES):
            await changing.change()
            if number % 7 == 6:
                await changing.kill_host()
        await changing.settled()
        assert {alert["code"] for alert in subscriber.alerts} & {
            "key_unusable",
            "quarantined",
            "agent_unusable",
        } == set()
        await subscriber.more_decisions(20, CANDLES)
        assert (await swarm.command("rebalance")).code == 0
        assert changing.homes.items() <= (await homes_of(swarm)).items(), changing.done
        assert await swarm.end(signal.SIGINT) == 0

        subscriber = await swarm.up("--speed", SPEED)
        await subscriber.live(*changing.agents)
        assert await agents_of(swarm) == changing.agents, changing.done
        await subscriber.more_decisions(20, CANDLES)
        messages = await read_stream(swarm.url, swarm.name)
        for agent in {message.writer for message in messages if "Mesh-Output" in message.headers}:
            numbers = numbers_of(messages, agent)
            assert numbers == list(range(1, len(numbers) + 1)), (agent, changing.done)
        assert_voters_of_their_rounds(messages)
        await assert_clean(swarm)
