"""What alerts report as refused: who may report it, and how it is added up."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from bus.messages import Alert
from coordinator.security.permissions import UNNAMED
from coordinator.security.refusals import UNKNOWN_KEY, RefusalCounts, RefusedAttempts, refusal_in

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def alert(code: str, agent: str | None = None, **detail: Any) -> Alert:
    detail = {"count": 1, **detail}
    return Alert(severity="warning", code=code, message="m", timestamp=NOON, source="s", agent=agent, detail=detail)


def by_up(who: str, attempt: str = "publish to in.x", count: Any = 1) -> Alert:
    return alert("client_refused", who=f"{who} at 127.0.0.1", attempt=attempt, count=count)


def test_the_address_and_the_subject_are_left_out():
    found = refusal_in(by_up("agent-a", count=5), "up")
    assert found == RefusedAttempts(who="agent-a", attempt="publish", reported_by="up", count=5)


def test_who_reads_the_log_of_a_server_reports_it():
    found = refusal_in(by_up("agent-a", count=5), "metrics")
    assert found == RefusedAttempts(who="agent-a", attempt="publish", reported_by="metrics", count=5)


@pytest.mark.parametrize("code", ["heartbeat_refused", "host_refused"])
def test_the_watchdog_reports_heartbeats(code: str):
    found = refusal_in(alert(code, "a", who="agent-a", count=5), "watchdog")
    assert found == RefusedAttempts(who="agent-a", attempt="heartbeat", reported_by="watchdog", count=5)


@pytest.mark.parametrize(
    ("found", "writer"),
    [
        (by_up("agent-a"), "base"),
        (by_up("agent-a", attempt="other"), "up"),
        (by_up("agent-a", count=0), "up"),
        (by_up("agent-a", count=10**9), "up"),
        (by_up("agent-a", count="5"), "up"),
        (alert("api_request_refused"), "base"),
        (alert("api_request_refused", "a"), "up"),
        (alert("heartbeat_refused", "a", who="agent-a"), "a"),
        (alert("key_unusable", "a"), "up"),
    ],
)
def test_nothing_else_is_counted(found: Alert, writer: str):
    assert refusal_in(found, writer) is None


def test_counts_add_up_and_agents_report_nothing():
    counts = RefusalCounts(7)
    for count in (2, 3):
        counts.take(by_up("agent-a", count=count), "up")
    counts.take(by_up(UNNAMED, "subscribe to x"), "up")
    for writer in ("base", "liar"):
        counts.take(alert("api_request_refused", "a", count=9), writer)
    assert [(one.who, one.attempt, one.reported_by, one.count) for one in counts.found({"liar", "a"})] == [
        ("agent-a", "request", "base", 9),
        ("agent-a", "publish", "up", 5),
        (UNNAMED, "subscribe", "up", 1),
    ]


def test_a_client_cannot_have_them_told_apart_without_end():
    counts = RefusalCounts(1)
    for number in range(1000):
        counts.take(by_up(f"unknown key U{number}", "connect"), "up")
        counts.take(by_up(f"the revoked key of voter-{number}"), "up")
    found = counts.found(())
    assert len(found) <= 201
    assert sum(one.count for one in found) == 2000
    assert next(one.count for one in found if one.who == UNKNOWN_KEY) == 1000
