"""What others do to the bus: poison in the midst of a replay, and readers that do not read."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from bus.server.monitoring import listed, read_monitoring
from tests.acceptance.exact import MANY_ROUNDS, Content, assert_each_round_once, exact_toml
from tests.acceptance.swarm import AGENTS, ENVIRONMENT, SIGNALMESH, VOTERS, Ends, Swarm
from tests.matrix.verification import Before, matrix_toml, verify
from tests.support.children import child_process
from tests.support.collecting import GUARD_S

POISON = (b"{", b'{"symbol":"BTC/USD","price":"NaN"}', b"\xff\xfe")
READERS = 8
NOISE = "noise"
"""A subject of the idle readers alone: it fills the buffers between the server and them, however large."""


async def test_poison_is_met_again_in_a_replay(tmp_path: Path, undisturbed_long: Content):
    """Stored between inputs, and read twice: by agents that are killed right after, and by their successors."""
    async with Swarm(tmp_path, matrix_toml()) as swarm:
        subscriber = await swarm.up()
        before = await Before.of(subscriber)
        heartbeats = await subscriber.live(*AGENTS)
        sequences = []
        for payload in POISON:
            sequences.append(await subscriber.publish("market.BTC-USD.stranger", payload))
            await subscriber.more_decisions(3)
        killed = (*VOTERS, "coordinator")
        for name in killed:
            swarm.send(heartbeats[name]["pid"], signal.SIGKILL)
        sequences.append(await subscriber.publish("market.BTC-USD.stranger", POISON[0]))
        await subscriber.back({name: heartbeats[name]["epoch"] for name in killed})
        stored = await verify(swarm, subscriber, undisturbed_long, before, killed, foreign=set(sequences))
        audit = await swarm.command("audit", "--json")
        assert [item["sequence"] for item in audit.json["poison"]] == sequences
        for name in (*killed, "research-1"):
            expected = 0 if name == "research-1" else len(sequences)
            assert subscriber.heartbeats[name]["poison"] == expected, name
        reported = [
            message.json["detail"]["sequence"]
            for message in stored
            if message.kind == "alert" and message.json["code"] == "poison_message"
        ]
        assert sequences[0] in reported
        assert len({*reported} & {*sequences}) == len(reported) <= 1 + len(killed), "the first of each new process"
        assert await swarm.end(signal.SIGINT) == 0


class IdleReaders:
    """Core subscribers to everything that never read a byte of it."""

    def __init__(self, url: str, subject: str) -> None:
        host, port = url.removeprefix("nats://").split(":")
        self._sockets = []
        for _ in range(READERS):
            one = socket.socket()
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.connect((host, int(port)))
            wanted = f"SUB {subject} 1\r\nSUB {NOISE} 2\r\n"
            one.sendall(b'CONNECT {"verbose":false,"name":"deaf"}\r\n' + wanted.encode())
            self._sockets.append(one)

    def close(self) -> None:
        for one in self._sockets:
            one.close()


async def server_value(swarm: Swarm, number: str) -> int:
    """One of the numbers that nats-server knows of itself."""
    [pid] = [process.pid for process in swarm.all_agents() if process.name().startswith("nats-server")]
    url = listed(swarm.directory / ".signalmesh" / "nats", pid, "monitoring")
    assert url is not None
    found = await read_monitoring(url, "varz")
    assert found is not None
    value: int = found[number]
    return value


@pytest.mark.serial
async def test_core_subscribers_that_never_read_harm_no_process(tmp_path: Path, undisturbed_long: Content):
    async with Swarm(tmp_path, exact_toml(600, MANY_ROUNDS)) as swarm:
        subscriber = await swarm.up("--open")  # with keys nobody publishes and receives noise
        before = await Before.of(subscriber)
        idle = IdleReaders(swarm.url, f"{swarm.name}.>")
        try:
            while await server_value(swarm, "slow_consumers") < READERS:
                await subscriber.client.publish(NOISE, bytes(100_000))
                await subscriber.more_decisions(10, last=MANY_ROUNDS)
            await subscriber.decided(MANY_ROUNDS)
            await verify(swarm, subscriber, undisturbed_long, before, (), more=0)
            assert_each_round_once(subscriber.decisions, MANY_ROUNDS)
            assert subscriber.alerts == []
        finally:
            idle.close()
        assert await swarm.end(signal.SIGINT) == 0


def watching(swarm: Swarm) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    """`signalmesh watch decision --json`."""
    return child_process(
        str(SIGNALMESH), "watch", "decision", "--json", cwd=swarm.directory, env=ENVIRONMENT,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def _line(process: asyncio.subprocess.Process) -> int:
    """The round of the next decision that it prints."""
    assert process.stdout is not None
    async with asyncio.timeout(GUARD_S):
        return int(json.loads(await process.stdout.readline())["payload"]["round"])


async def test_a_client_that_stops_reading_is_cut_off_and_comes_back(tmp_path: Path, undisturbed_long: Content):
    async with Swarm(tmp_path, matrix_toml()) as swarm:
        subscriber = await swarm.up()
        before = await Before.of(subscriber)
        async with watching(swarm) as watcher:
            assert await _line(watcher)
            connections = await server_value(swarm, "connections")
            os.kill(watcher.pid, signal.SIGSTOP)
            while await server_value(swarm, "connections") >= connections:
                await subscriber.more_heartbeats(1, "watchdog")
            missed = subscriber.decisions[-1]["round"]
            os.kill(watcher.pid, signal.SIGCONT)
            while await _line(watcher) <= missed:
                pass
            ends = await Ends.of(watcher.pid)
            os.kill(watcher.pid, signal.SIGINT)
            await ends.all()
        await verify(swarm, subscriber, undisturbed_long, before, ())
        assert subscriber.alerts == []
        assert await swarm.end(signal.SIGINT) == 0
