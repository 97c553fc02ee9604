"""The history of one agent's deaths: the pause before its next start, and when there is none."""

from __future__ import annotations

import random

import pytest

from coordinator.supervisor.crash_loop import FIRST_BACKOFF_S, LAST_BACKOFF_S, MAX_STALLS, CrashHistory

WINDOW_S, DEATHS = 30.0, 5


class Middle(random.Random):
    """Jitter of nothing."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def die(history: CrashHistory, at: float, cursor: int = 10, outputs: int = 0, *, unresponsive: bool = False):
    return history.add(at, WINDOW_S, DEATHS, cursor=cursor, outputs=outputs, unresponsive=unresponsive)


def pause(history: CrashHistory) -> float:
    return history.next_pause_s(Middle())


def test_there_is_no_pause_after_a_first_death():
    history = CrashHistory()
    die(history, 100.0)
    assert pause(history) == 0.0
    assert history.backoff_s == 0.0


def test_there_is_one_after_a_second_within_the_window_wherever_it_was():
    history = CrashHistory()
    die(history, 100.0, cursor=10)
    die(history, 101.0, cursor=20)
    assert (len(history), history.in_a_row) == (2, 1)
    assert pause(history) == pytest.approx(FIRST_BACKOFF_S)


def test_there_is_one_after_a_second_at_its_place_however_long_ago_the_first_was():
    history = CrashHistory()
    die(history, 100.0)
    die(history, 100.0 + 10 * WINDOW_S)
    assert (len(history), history.in_a_row) == (1, 2)
    assert pause(history) == pytest.approx(FIRST_BACKOFF_S)


def test_pauses_double_up_to_the_longest_and_begin_anew_after_a_reset():
    history = CrashHistory()
    pauses = [history.back_off(Middle()) for _ in range(9)]
    assert pauses[:3] == pytest.approx([FIRST_BACKOFF_S, 2 * FIRST_BACKOFF_S, 4 * FIRST_BACKOFF_S])
    assert pauses[-2:] == [LAST_BACKOFF_S, LAST_BACKOFF_S]
    history.reset()
    assert history.back_off(Middle()) == pytest.approx(FIRST_BACKOFF_S)


def test_the_jitter_is_a_fifth_to_either_side():
    rng = random.Random(1)
    drawn = [CrashHistory().back_off(rng) / FIRST_BACKOFF_S for _ in range(200)]
    assert 0.8 <= min(drawn) < 0.85
    assert 1.15 < max(drawn) <= 1.2


def test_a_death_as_old_as_the_window_still_counts_and_an_older_one_does_not():
    history = CrashHistory()
    for number in range(DEATHS - 1):
        assert die(history, 100.0, cursor=number) is None
    assert die(history, 100.0 + WINDOW_S, cursor=DEATHS) == "5 deaths within 30 s"
    assert die(history, 100.5 + WINDOW_S, cursor=DEATHS + 1) is None
    assert len(history) == 2


@pytest.mark.parametrize("further", [{"cursor": 11}, {"outputs": 1}])
def test_progress_beyond_all_deaths_ends_a_row_and_as_much_as_before_does_not(further):
    history = CrashHistory()
    for number in range(DEATHS - 1):
        assert die(history, 100.0 + number * (WINDOW_S + 1)) is None
    assert not history.is_beyond(10, 0)
    assert history.is_beyond(**{"cursor": 10, "outputs": 0, **further})
    assert die(history, 1000.0, **further) is None
    assert history.in_a_row == 1
    assert die(history, 2000.0, cursor=3) is None  # behind the furthest
    assert history.in_a_row == 2


def test_too_many_deaths_at_one_place_quarantine_however_far_apart():
    history = CrashHistory()
    reasons = [die(history, 100.0 + number * (WINDOW_S + 1), cursor=10) for number in range(DEATHS)]
    assert reasons[:-1] == [None] * (DEATHS - 1)
    assert reasons[-1] == "5 deaths in a row without progress; the last handled input is message 10"


def test_a_process_that_is_unresponsive_again_and_again_at_one_place_is_quarantined_sooner():
    history = CrashHistory()
    reasons = [die(history, 100.0 + number * (WINDOW_S + 1), unresponsive=True) for number in range(MAX_STALLS)]
    assert reasons[:-1] == [None] * (MAX_STALLS - 1)
    assert reasons[-1] == (
        "unresponsive 3 times in a row; the last handled input is message 10: check the handler of the message after it"
    )


def test_of_the_deaths_in_a_row_only_the_unresponsive_ones_count_as_that():
    history = CrashHistory()
    for number, unresponsive in enumerate((True, False, True)):
        assert die(history, 100.0 + number * (WINDOW_S + 1), unresponsive=unresponsive) is None
    assert (history.stalls, history.in_a_row) == (2, 3)
    die(history, 1000.0, cursor=11, unresponsive=True)
    assert history.stalls == 1
