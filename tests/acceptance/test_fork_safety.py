"""Processes forked from the zygote and from a host's fork server share nothing that separate programs would not."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import signal
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from bus.utils.processes import die_with_parent
from tests.acceptance.subscriber import SwarmMessage
from tests.acceptance.swarm import AGENTS, SANDBOXES, SIGNALMESH, Ends, Swarm, agents_toml, describe
from tests.acceptance.traces import is_whole
from tests.support.collector import collecting

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists a process's descriptors in /proc"),
]

PROBE = """
import _imp
import asyncio
import gc
import logging
import os
import random
import threading
import uuid
from agents.agent import Agent
from bus.messages import MarketData, Signal

class Probe(Agent):
    kind = "probe"
    listens = ("market",)

    def setup(self) -> None:
        import numpy
        self.drawn = {
            "random": random.random(), "numpy": float(numpy.random.random()), "uuid": float(uuid.uuid4().int >> 76),
            "urandom": float(int.from_bytes(os.urandom(6))),
        }

    def on_market(self, tick: MarketData) -> Signal:
        free = [logging._lock.acquire(blocking=False), threading._active_limbo_lock.acquire(blocking=False)]
        logging._lock.release()
        threading._active_limbo_lock.release()
        return self.signal(tick, "hold", 0.5, {
            **self.drawn,
            "pid": os.getpid(),
            "locks_free": sum(free) + (not _imp.lock_held()),
            "loops": sum(isinstance(thing, asyncio.AbstractEventLoop) for thing in gc.get_objects()),
            "main": float(threading.current_thread() is threading.main_thread()),
        })
"""
PROBES = ("probe-1", "probe-2")
WHOLE = {"locks_free": 3, "main": 1, "loops": 1}
DRAWN = ("random", "numpy", "uuid", "urandom")
TOML = f"""max_agents = 7
{agents_toml(speed=20, history=5)}
[agents.probe-1]
class = "probe:Probe"
sandbox = "python"
votes = false
[agents.probe-2]
class = "probe:Probe"
sandbox = "python"
votes = false
"""


@dataclass(frozen=True)
class Descriptor:
    """One open descriptor, as /proc shows it. `target` is the same text in two processes if they share it."""

    pid: int
    number: int
    target: str
    flags: int

    @property
    def kind(self) -> str:
        if self.target.startswith("/"):
            return "/dev/null" if self.target == "/dev/null" else "file"
        return self.target.partition(":[")[0]

    @property
    def mode(self) -> str:
        return ("r", "w", "rw")[self.flags & os.O_ACCMODE]


def descriptors(pid: int) -> list[Descriptor]:
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            flags = re.search(r"flags:\s+(\d+)", Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text())
            assert flags is not None
            found.append(Descriptor(pid, int(entry.name), str(entry.readlink()), int(flags[1], 8)))
    return found


def title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):  # a zombie, or it has just ended
        return " ".join(process.cmdline()).rstrip()
    return ""


def signals(pid: int) -> dict[str, str]:
    """Which signals a process blocks and ignores, as masks."""
    return dict(re.findall(r"^(SigBlk|SigIgn):\t(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE))


def assert_nothing_shared(swarm: Swarm) -> None:
    processes = {process.pid: process for process in swarm.all_agents()}
    holders: dict[str, list[Descriptor]] = defaultdict(list)
    for pid in processes:
        for descriptor in descriptors(pid):
            holders[descriptor.target].append(descriptor)
    given = {descriptor.target for descriptor in descriptors(os.getpid())}  # what `up` has from this process
    for target, held in holders.items():
        pids = {descriptor.pid for descriptor in held}
        if len(pids) == 1 or target in given or held[0].kind in ("/dev/null", "anon_inode"):
            continue
        shown = [f"{describe(each.pid)}: {each.number} {each.mode} {target}" for each in held]
        if held[0].kind == "pipe":  # a host and a child of its own have an end each
            assert sorted(each.mode for each in held) == ["r", "w"], shown
            assert any(parent.pid in pids for pid in pids for parent in processes[pid].parents()), shown
        elif target.endswith((".log", "up.err")):
            assert all(each.flags & os.O_APPEND for each in held), shown
        else:  # the embedded server holds the lock of its store for as long as it runs
            assert target.endswith("nats/lock"), shown
            assert {processes[pid].name() for pid in pids - {swarm.process.pid}} == {"nats-server"}, shown
    # The kernel copies only the thread that forks: a lock that another one holds would never be released.
    forking = [each for each in processes.values() if title(each).endswith(("zygote", "fork-server"))]
    assert len(forking) == 1 + len(SANDBOXES)
    assert {process.num_threads() for process in forking} == {1}


def kinds(pid: int) -> Counter[str]:
    return Counter(descriptor.kind for descriptor in descriptors(pid) if descriptor.number > 2)


def probed(messages: list[SwarmMessage]) -> dict[int, dict[str, float]]:
    """What each process of a probe has found in itself, by pid."""
    found = {}
    for message in messages:
        if message.kind == "signal" and message.writer.startswith("probe"):
            indicators = message.json["indicators"]
            found[int(indicators["pid"])] = indicators
    return found


async def test_no_process_shares_descriptors_locks_or_seeds_with_another(tmp_path: Path):
    (tmp_path / "probe.py").write_text(PROBE)
    async with Swarm(tmp_path, TOML) as swarm:
        subscriber = await swarm.up("--standby")
        first = await subscriber.live(*AGENTS, *PROBES, *SANDBOXES)
        await subscriber.until("both probes", lambda: len(probed(subscriber.messages)) == len(PROBES))
        assert_nothing_shared(swarm)

        swarm.send(first["probe-1"]["pid"], signal.SIGKILL)
        await subscriber.back({"probe-1": first["probe-1"]["epoch"]})
        host = psutil.Process(first["python"]["pid"])
        ends = await Ends.of(*(child.pid for child in host.children(recursive=True)))
        swarm.send(host.pid, signal.SIGKILL)  # its agents and its fork server end with it
        await ends.all()
        await subscriber.back({name: first[name]["epoch"] for name in ("coordinator", "strategy-mean-reversion")})
        await subscriber.until("their successors", lambda: len(probed(subscriber.messages)) >= 2 * len(PROBES))
        await subscriber.more_decisions(3)
        await subscriber.live(*AGENTS, *PROBES)  # a start that is under way passes descriptors on
        assert_nothing_shared(swarm)
        found = probed(subscriber.messages)
        for name in DRAWN:
            assert len({indicators[name] for indicators in found.values()}) == len(found), name
        for indicators in found.values():
            assert {name: indicators[name] for name in WHOLE} == WHOLE, indicators
        agent_ids = [heartbeat["agent_id"] for heartbeat in subscriber.heartbeats.values()]
        assert len(set(agent_ids)) == len(agent_ids)


@pytest.mark.parametrize(
    ("role", "arguments"),
    [
        ("mirror", ("mirror", "--file", "by-hand.sqlite")),
        ("standby", ("watchdog", "--standby")),
    ],
)
async def test_a_forked_role_is_as_one_started_by_hand(tmp_path: Path, role: str, arguments: tuple[str, ...]):
    async with Swarm(tmp_path, agents_toml(limit=5, history=5)) as swarm:
        subscriber = await swarm.up("--standby")
        await subscriber.decided(5)
        await subscriber.until(f"a heartbeat of the {role}", lambda: role in subscriber.heartbeats)
        forked = subscriber.heartbeats[role]["pid"]
        assert "signalmesh zygote" in {title(each) for each in swarm.all_agents()}
        with (tmp_path / "by-hand.log").open("ab") as output:
            by_hand = await asyncio.create_subprocess_exec(
                str(SIGNALMESH), *arguments, cwd=tmp_path, env=swarm.environment, stdin=asyncio.subprocess.DEVNULL,
                stdout=output, stderr=output, preexec_fn=functools.partial(die_with_parent, os.getpid()),
            )  # fmt: skip
        try:
            await subscriber.until(
                f"a heartbeat of the {role}",
                lambda: any(each["pid"] == by_hand.pid for each in subscriber.heartbeats.values()),
            )
            assert kinds(forked) == kinds(by_hand.pid)
            assert signals(forked) == signals(by_hand.pid)
            assert os.getsid(forked) == os.getpgid(forked) == forked, "Ctrl-C in the terminal is for `up`"
        finally:
            by_hand.kill()
            await by_hand.wait()


async def test_no_two_processes_make_the_same_span(tmp_path: Path):
    """The tracer draws span ids from a generator that a fork copies."""
    async with collecting() as collector:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_TRACES_SAMPLER": "always_on"}
        async with Swarm(tmp_path, agents_toml(speed=20, history=5), environment=environment) as swarm:
            subscriber = await swarm.up()
            first = await subscriber.live(*AGENTS)
            await collector.until("spans of all", lambda: {span.service for span in collector.spans} >= set(AGENTS))
            for killed in ("research-1", "coordinator"):
                swarm.send(first[killed]["pid"], signal.SIGKILL)
                await subscriber.back({killed: first[killed]["epoch"]})
            rounds = (await subscriber.more_decisions(5))[-1]["round"]
            await collector.until("its trace", lambda: is_whole(collector.of_round(rounds)))
            # A successor makes the spans of the rounds that it recovers again, as they were.
            made = {(span.trace, span.id): (span.name, span.service) for span in collector.spans}
            assert all(made[span.trace, span.id] == (span.name, span.service) for span in collector.spans)
            assert len({span_id for _, span_id in made}) == len(made)
            instances = {(span.service, span.resource["service.instance.id"]) for span in collector.spans}
            lives = Counter(service for service, _ in instances if service in AGENTS)
            assert lives == {**dict.fromkeys(AGENTS, 1), "research-1": 2, "coordinator": 2}
