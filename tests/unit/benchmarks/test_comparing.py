from __future__ import annotations

import pytest

from benchmarks.comparing import Paced, Turns, after_kill, other_load, ratio, raw_of, rows_of
from benchmarks.peers.catalogue import DEEP
from benchmarks.peers.work import OPEN_ROUNDS
from benchmarks.pipeline import SWARM


def paced(ms: float, *, back_ms: float | None = None) -> Paced:
    return Paced(
        start_s=ms / 2, latencies_ms=[ms] * 10, back_ms=back_ms, lost=None if back_ms is None else 1,
        state="-" if back_ms is None else "lost",
    )  # fmt: skip


def test_a_ratio_is_the_median_over_the_turns_that_both_ended():
    assert ratio({0: 1.0, 2: 9.0, 3: 4.0}, {0: 2.0, 1: 5.0, 2: 3.0, 3: 2.0}) == 2.0
    assert ratio({1: 1.0}, {0: 1.0}) is None


def test_the_rows_have_medians_percentiles_and_ratios():
    ours = Turns(versions={}, lacks="")
    ours.paced = {0: paced(2.0, back_ms=50.0), 1: paced(4.0, back_ms=70.0)}
    ours.rates = {OPEN_ROUNDS: {0: 1000.0, 1: 3000.0}}
    other = Turns(versions={"other": "1"}, lacks="all", failed=["TimeoutError: "])
    other.paced, other.rates = {1: paced(1.0)}, {OPEN_ROUNDS: {1: 6000.0}, DEEP: {1: 9000.0}}
    first, second = rows_of({SWARM: ours, "other": other})
    assert first["system"] == SWARM
    assert (first["p50, ms"], first["p99, ms"], first["p50 / ours"]) == (2.0, 4.0, 1.0)
    assert (first["decisions/s"], first["start, s"]) == (2000.0, 1.5)
    assert (first["SIGKILL to vote p50, ms"], first["voted again"], first["rounds lost"]) == (50.0, "2 of 2", 2)
    assert second["p50 / ours"] == second["start / ours"] == 0.25
    assert (second["decisions/s / ours"], second["deep pipeline, decisions/s"]) == (2.0, 9000.0)
    assert (second["SIGKILL to vote p50, ms"], second["voted again"], second["rounds lost"]) == (None, "0 of 1", None)
    assert (second["state"], second["runs failed"]) == ("-", 1)
    assert raw_of(other)["failed"] == ["TimeoutError: "]


def test_a_system_of_which_every_run_failed_has_a_row():
    ours = Turns(versions={}, lacks="")
    ours.paced, ours.rates = {0: paced(2.0)}, {OPEN_ROUNDS: {0: 1000.0}}
    _, failed = rows_of({SWARM: ours, "other": Turns(versions={}, lacks="", failed=["a", "b"])})
    assert failed["p50, ms"] is None
    assert failed["runs failed"] == 2


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ({1: (9.0, 1)}, (None, None, "-")),
        ({1: (9.0, 1), 2: (10.5, 1)}, (500.0, 3, "lost")),
        ({1: (9.0, 1), 2: (10.5, 1000)}, (500.0, 3, "kept")),
    ],
)
def test_the_first_vote_of_a_later_process_tells_what_it_knows(votes, expected):
    found = after_kill(votes, killed_at=10.0, undecided=3)
    assert (found["back_ms"], found["lost"], found["state"]) == expected


def test_the_load_of_other_programs_is_reported():
    assert "took 5 % of the processor time (median; at most 90 %)" in other_load([1.0, 5.0, 90.0])
