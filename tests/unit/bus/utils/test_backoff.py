"""The pauses before a restart: doubled, limited, and started again after a steady time."""

from __future__ import annotations

from bus.utils.backoff import RestartBackoff


def test_backoff_doubles_up_to_its_limit_and_is_reset_after_a_steady_time():
    backoff = RestartBackoff()
    assert [backoff.after_s(0.1) for _ in range(9)] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert [backoff.after_s(10.0), backoff.after_s(0.1)] == [0.05, 0.1]


def test_a_process_may_be_restarted_at_once_after_a_steady_time():
    backoff = RestartBackoff(first_s=0.0)
    assert [backoff.after_s(up_s) for up_s in (11.0, 11.0, 0.1, 0.1, 11.0, 0.1)] == [0.0, 0.0, 0.05, 0.1, 0.0, 0.05]
