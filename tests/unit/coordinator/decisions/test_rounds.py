"""The name of a round and back, and which window a feed has (coordinator/decisions/rounds.py)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.decisions.agent import MAX_FEEDS
from coordinator.decisions.risk import MIN_RETURNS, WINDOW
from coordinator.decisions.rounds import RoundName, parse_round_id, round_id, signed_position, window_of

names = st.text(st.sampled_from("aB1/:=3AD-"), min_size=1, max_size=8)


@given(names, names, st.integers(-(10**6), 10**15), st.integers(1, 1000))
def test_the_name_of_a_round_is_read_back(symbol: str, source: str, sequence: int, run: int) -> None:
    assert parse_round_id(round_id(symbol, source, sequence, run)) == RoundName(symbol, source, sequence, run)


@pytest.mark.parametrize(
    "text", ["", "a", "a:b", "a:b:c", "a:b:1.5", "a:b:+1", "a:b:01", "a::1", ":b:1", "a:b=1:4", "a:b=0:4"]
)
def test_what_names_no_round(text: str) -> None:
    assert parse_round_id(text) is None


def test_windows_shrink_with_feeds_and_stay_long_enough_to_know_the_risk() -> None:
    assert [window_of(feeds) for feeds in (1, 32)] == [WINDOW, WINDOW]
    assert window_of(33) < WINDOW
    assert window_of(MAX_FEEDS) > MIN_RETURNS


def test_a_sale_is_a_position_below_zero() -> None:
    assert (signed_position("buy", 0.2), signed_position("sell", 0.2)) == (0.2, -0.2)
    assert str(signed_position("sell", 0.0)) == "0.0"
