"""Ray: five actors, each a process that Ray starts, and the driver, which is this program.

`max_restarts` and `max_task_retries` are -1: Ray starts a dead actor again and repeats the calls that it had not
answered. Methods are plain functions, which Ray calls faster than coroutines; the driver looks every POLL_S seconds
whether the measured rounds are complete.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

import ray

from benchmarks.peers import work as w

POLL_S = 0.5
OBJECT_STORE_BYTES = 100 * 2**20
LASTING = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}


class Coordinator:
    def __init__(self, work: w.Work) -> None:
        self._stamps, self._ballots, self._pad = w.Stamps(work), w.Ballots(), w.decision_padding(work)
        self._source: Any = None

    def connect(self, source: Any) -> None:
        self._source = source

    def on_vote(self, vote: dict[str, Any]) -> None:
        if vote["voter"] == w.VOTERS[0]:
            self._stamps.vote(vote["pid"], vote["seen"])
        if self._ballots.add(vote["round"]):
            self._stamps.decide(vote["round"], vote["sent_at"])
            self._source.on_decision.remote({"round": vote["round"], "final_decision": w.CHOICE, "pad": self._pad})

    def measured(self) -> dict[str, Any] | None:
        return self._stamps.measured() if self._stamps.complete else None

    def processes(self) -> dict[str, Any]:
        return self._stamps.processes()


class Voter:
    def __init__(self, name: str, work: w.Work, coordinator: Any) -> None:
        self._name, self._pid, self._seen = name, os.getpid(), 0
        self._pad, self._coordinator = w.vote_padding(work, sent_at=time.monotonic()), coordinator

    def pid(self) -> int:
        return self._pid

    def on_tick(self, tick: dict[str, Any]) -> None:
        self._seen += 1
        self._coordinator.on_vote.remote({
            "round": tick["sequence"], "p_up": w.P_UP, "pid": self._pid, "seen": self._seen,
            "sent_at": tick["sent_at"], "voter": self._name, "pad": self._pad,
        })  # fmt: skip


class Source:
    """`run` takes one of its two threads, decisions the other."""

    def __init__(self, work: w.Work, voters: list[Any]) -> None:
        self._work, self._voters = work, voters
        self._pad = w.tick_padding(work, sent_at=time.monotonic())
        self._decided = 0
        self._changed = threading.Condition()

    def ready(self) -> None:
        pass

    def on_decision(self, decision: dict[str, Any]) -> None:
        with self._changed:
            self._decided = max(self._decided, decision["round"])
            self._changed.notify()

    def run(self) -> None:
        due = time.monotonic()
        for number in range(1, self._work.rounds + 1):
            with self._changed:
                while number - self._decided > self._work.open_rounds:
                    self._changed.wait()
            if self._work.speed:
                time.sleep(max(0.0, due - time.monotonic()))
                due = max(due + 1 / self._work.speed, time.monotonic())
            tick = {"sequence": number, "price": w.PRICE, "sent_at": time.monotonic(), "pad": self._pad}
            for voter in self._voters:
                voter.on_tick.remote(tick)


def main(work: w.Work) -> None:
    ray.init(
        include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        object_store_memory=OBJECT_STORE_BYTES, _temp_dir=work.directory,
    )  # fmt: skip
    coordinator = ray.remote(**LASTING)(Coordinator).remote(work)
    actor = ray.remote(**LASTING)(Voter)
    voters = [actor.remote(name, work, coordinator) for name in w.VOTERS]
    source = ray.remote(max_concurrency=2, **LASTING)(Source).remote(work, voters)
    ray.get([coordinator.connect.remote(source), source.ready.remote()])
    pids = ray.get([voter.pid.remote() for voter in voters])
    w.say(f"ready {pids[0]}")
    sys.stdin.readline()
    source.run.remote()
    while (measured := ray.get(coordinator.measured.remote())) is None:
        time.sleep(POLL_S)
    w.say(json.dumps(measured))
    if sys.stdin.readline():
        w.say(json.dumps(ray.get(coordinator.processes.remote())))
        sys.stdin.readline()
    ray.shutdown()


if __name__ == "__main__":
    main(w.arguments()[1])
