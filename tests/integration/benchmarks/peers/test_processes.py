from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import orjson
import psutil
import pytest

from benchmarks.peers import work as w
from benchmarks.peers.catalogue import PEERS
from benchmarks.peers.processes import pipeline

WORK = w.Work(
    address="", way="", speed=0.0, first=1, last=20, rounds=20, sizes={"tick": 168, "signal": 265, "decision": 330}
)
CORE = next(peer for peer in PEERS if peer.way == "core" and peer.environment == "nats-py")


async def test_every_round_is_decided_once_with_payloads_of_the_asked_sizes_and_all_processes_end():
    rounds, sizes = [], set()
    async with pipeline(CORE, Path(sys.executable), WORK) as running:
        assert running.client is not None
        subscription = await running.client.subscribe(w.DECISIONS)
        await running.client.flush()
        assert psutil.pid_exists(running.voter_pid)
        running.go()
        for _ in range(WORK.rounds):
            msg = await subscription.next_msg(timeout=20)
            rounds.append(orjson.loads(msg.data)["round"])
            sizes.add(len(msg.data))
        children = [child.pid for child in psutil.Process(os.getpid()).children()]
        assert running.voter_pid in children
    assert rounds == list(range(1, WORK.rounds + 1))
    assert all(WORK.sizes["decision"] - 2 <= size <= WORK.sizes["decision"] for size in sizes)
    assert not psutil.pid_exists(running.voter_pid)


async def test_a_process_that_ends_before_it_is_ready_is_named():
    broken = replace(CORE, module="benchmarks.peers.no_such_module")
    with pytest.raises(ExceptionGroup) as caught:
        async with pipeline(broken, Path(sys.executable), WORK):
            pass
    assert "nats-py, core: the process of" in str(caught.value.exceptions[0])
