"""Pending timers: which are started, when they run out, and which are never published."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from agents.agent import TimerSet
from agents.runtime.timers import Timers
from bus.errors import Fenced
from bus.messages.subjects import Subjects

LONG_MS = 3_600_000


class Published:
    """The part of an OutputLog that publishes timers."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.subjects: list[str] = []
        self.names: list[str] = []
        self.pushes = 0
        self.pushed = asyncio.Event()
        self.fenced = False

    def timer(self, subject: str, data: bytes, number: int) -> None:
        if self.fenced:
            self.pushed.set()
            raise Fenced("agent", "claimed again")
        self.numbers.append(number)
        self.subjects.append(subject)
        self.names.append(orjson.loads(data)["name"])

    def push(self) -> None:
        self.pushes += 1
        self.pushed.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.numbers) < count:
                self.pushed.clear()
                await self.pushed.wait()


class Clock:
    """The loop's clock, which a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        self.ahead_s, real = 0.0, loop.time
        monkeypatch.setattr(loop, "time", lambda: real() + self.ahead_s)


@pytest.fixture
async def clock(monkeypatch):
    return Clock(monkeypatch)


def timers(published: Any) -> Timers:
    return Timers(Subjects("swarm"), "agent", published)


async def test_timers_run_out_in_the_order_of_their_time_and_each_once():
    published = Published()
    running = timers(published)
    running.arm({"late": TimerSet(1, "A", 40), "early": TimerSet(2, "B", 1)}, 2)
    await published.until(2)
    assert published.names == ["early", "late"]
    assert published.subjects == ["swarm.timer.B.agent", "swarm.timer.A.agent"]
    assert published.pushes == 2


async def test_those_that_are_due_together_are_published_together(clock):
    published = Published()
    running = timers(published)
    running.arm({name: TimerSet(number, "A", 100) for number, name in enumerate("abc", 1)}, 3)
    clock.ahead_s = 1.0
    await published.until(3)
    assert sorted(published.numbers) == [1, 2, 3]
    assert published.pushes == 1


async def test_a_timer_that_runs_is_not_started_again_by_one_that_is_set_later(clock):
    """Each keeps the time at which it was due, though its agent sets others meanwhile."""
    published = Published()
    running = timers(published)
    pending = {"first": TimerSet(1, "A", 10_000)}
    running.arm(pending, 1)
    clock.ahead_s = 9.0
    pending["second"] = TimerSet(2, "A", LONG_MS)
    running.arm(pending, 2)
    running.arm(pending, 2)
    clock.ahead_s = 10.5
    await published.until(1)
    del pending["first"]
    clock.ahead_s += LONG_MS / 1000
    running.arm(pending, 2)
    await published.until(2)
    assert published.numbers == [1, 2]


async def test_all_that_were_set_at_once_are_started():
    published = Published()
    timers(published).arm({name: TimerSet(number, "A", 1) for number, name in enumerate("abc", 1)}, 3)
    await published.until(3)
    assert sorted(published.names) == ["a", "b", "c"]


async def test_after_a_restart_each_has_its_whole_time_again(clock):
    published = Published()
    running = timers(published)
    pending = {"timer": TimerSet(7, "A", 10_000)}
    running.start_pending(pending)
    clock.ahead_s = 9.0
    running.start_pending(pending)
    clock.ahead_s = 18.0
    running.arm(pending | {"new": TimerSet(8, "A", 1)}, 8)
    await published.until(1)
    assert published.names == ["new"]
    clock.ahead_s = 19.5
    await published.until(2)
    assert published.numbers == [8, 7]


async def test_none_that_was_cancelled_or_set_again_runs_out(clock):
    published = Published()
    running = timers(published)
    running.arm({"cancelled": TimerSet(1, "A", 1000), "again": TimerSet(2, "A", 1000)}, 2)
    pending = {"again": TimerSet(3, "A", 5000)}
    running.arm(pending, 3)
    clock.ahead_s = 6.0
    await published.until(1)
    assert published.numbers == [3]


async def test_one_cancelled_after_it_was_scheduled_does_not_run_out(clock):
    published = Published()
    running = timers(published)
    pending = {"cancelled": TimerSet(1, "A", 1000), "kept": TimerSet(2, "A", 1000)}
    running.arm(pending, 2)
    del pending["cancelled"]
    clock.ahead_s = 2.0
    await published.until(1)
    assert published.names == ["kept"]


async def test_a_superseded_incarnation_publishes_no_further_timer(clock):
    published = Published()
    published.fenced = True
    running = timers(published)
    running.arm({"one": TimerSet(1, "A", 1000), "two": TimerSet(2, "A", 1000)}, 2)
    clock.ahead_s = 2.0
    async with asyncio.timeout(10):
        await published.pushed.wait()
    published.fenced = False
    await asyncio.sleep(0)
    assert (published.numbers, published.pushes) == ([], 0)


async def test_none_runs_out_after_the_end(clock):
    published = Published()
    running = timers(published)
    running.close()  # with none pending
    running.arm({"timer": TimerSet(1, "A", 1000)}, 1)
    running.close()
    clock.ahead_s = 2.0
    later = timers(other := Published())
    later.arm({"timer": TimerSet(1, "A", 1)}, 1)
    await other.until(1)
    assert published.numbers == []
