from __future__ import annotations

import asyncio
import io
import json
import sys

import pytest

from benchmarks.peers import work as w


def make_work(**more) -> w.Work:
    sizes = {"tick": 168, "signal": 265, "decision": 330}
    return w.Work(
        **{"address": "", "way": "", "speed": 0.0, "first": 2, "last": 3, "rounds": 9, "sizes": sizes, **more}
    )


def test_the_work_survives_the_command_line(monkeypatch):
    work = make_work(open_rounds=7)
    monkeypatch.setattr(sys, "argv", ["program", "voter-1", work.to_argument()])
    assert w.arguments() == ("voter-1", work)


@pytest.mark.parametrize("size", [60, 265])
def test_a_payload_has_the_size_that_was_asked_for(size):
    fields = {"round": 12, "p_up": 0.5}
    text = json.dumps({**fields, "pad": w.padding(fields, size)}, separators=(",", ":"))
    assert len(text) == size


def test_a_payload_that_is_larger_anyway_has_no_padding():
    assert w.padding({"round": 12}, 3) == ""


def test_a_round_is_complete_with_the_vote_of_each_voter():
    ballots = w.Ballots()
    assert [ballots.add(number) for number in (1, 2, 1, 1, 2, 2)] == [False, False, False, True, False, True]


def test_the_source_waits_while_too_many_rounds_are_undecided(monkeypatch):
    async def run() -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
        pace = w.Source(make_work(open_rounds=3))
        published: asyncio.Queue[int] = asyncio.Queue()
        source = asyncio.create_task(pace.run(published.put))
        assert [await published.get() for _ in range(3)] == [1, 2, 3]
        assert published.empty()
        pace.decided(2)
        assert [await published.get() for _ in range(2)] == [4, 5]
        assert published.empty()
        source.cancel()

    asyncio.run(run())


def test_the_stamps_have_the_measured_rounds_the_processes_and_the_undecided_rounds():
    stamps = w.Stamps(make_work())
    stamps.vote(10, 1)
    stamps.vote(10, 2)
    stamps.vote(11, 1)
    for number in (1, 2, 3, 5):
        assert not stamps.complete or number > 3
        stamps.decide(number, float(number))
    assert stamps.complete
    assert {number: sent for number, (sent, _) in stamps.measured()["rounds"].items()} == {2: 2.0, 3: 3.0}
    report = stamps.processes()
    assert {pid: seen for pid, (_, seen) in report["processes"].items()} == {10: 1, 11: 1}
    assert report["undecided"] == 1
