"""Lanes, states and deaths follow from lifecycle events and claims."""

from __future__ import annotations

from typing import Any

from coordinator.dashboard.timeline import lanes, within


def row(t: int, event: str, epoch: int | None = 1, agent: str = "a", **rest: Any) -> dict[str, Any]:
    return {
        "t": t, "event": event, "agent": agent, "epoch": epoch, "sandbox": "base", "pid": 1, "reason": None,
        "detail": {}, "source": "watchdog", "sequence": t, "stored_at": None, "trace_id": None, **rest,
    }  # fmt: skip


def lane(*rows: dict[str, Any]) -> dict[str, Any]:
    [found] = lanes(rows, ["a"], [], [])
    return found


def test_a_death_runs_from_the_reported_exit_to_ready_of_a_newer_epoch():
    found = lane(
        row(10, "claimed"), row(20, "ready"), row(100, "exited", source="base"), row(105, "declared_dead"),
        row(106, "claimed", 2), row(107, "spawned", 2), row(130, "restored", 2),
        row(131, "ready", 2, detail={"replayed": 5}),
    )  # fmt: skip
    [death] = found["deaths"]
    assert (death["from"], death["declared"], death["claimed"], death["ready"]) == (100, 105, 106, 131)
    assert "exit that base reported, message 100" in death["from_source"]
    account = death["account"]
    assert (account["detected_ms"], account["claimed_ms"], account["ready_ms"]) == (5, 6, 31)
    assert (account["epoch_before"], account["epoch_after"], account["events_replayed"]) == (1, 2, 5)
    states = [(span["state"], span["from"], span["to"]) for span in found["spans"]]
    assert states == [
        ("starting", 10, 20), ("live", 20, 100), ("dead", 100, 106), ("starting", 106, 130), ("restoring", 130, 131),
        ("live", 131, None),
    ]  # fmt: skip


def test_what_another_host_reports_of_an_agent_is_not_on_its_lane():
    found = lane(
        row(10, "claimed", 10), row(20, "ready", 10), row(30, "exited", 10, source="python"),
        row(40, "spawned", 10**9, source="python"), row(100, "exited", 10, source="base"),
        row(105, "declared_dead", 10), row(106, "spawned", 10**9, source="python"), row(107, "claimed", 107),
        row(108, "spawned", 107, source="base"),
    )  # fmt: skip
    assert [each["t"] for each in found["events"]] == [10, 20, 100, 105, 107, 108]
    [death] = found["deaths"]
    assert (death["from"], death["account"]["spawned_ms"]) == (100, 8)
    older = lane(row(5, "exited", 3, source="python"), row(10, "claimed", 10))
    assert [each["t"] for each in older["events"]] == [5, 10], "its claim is older than what was read"


def test_silence_begins_with_the_last_heartbeat_and_an_unknown_begin_is_said():
    silent = lane(row(1000, "suspected", detail={"silent_ms": 300}), row(1400, "declared_dead"))
    assert silent["deaths"][0]["from"] == 700
    sudden = lane(row(1400, "declared_dead"))
    assert sudden["deaths"][0]["from"] == 1400
    assert "no earlier sign" in sudden["deaths"][0]["from_source"]


def test_a_suspicion_that_was_followed_by_life_is_no_sign_of_a_later_death():
    false, true = (
        row(1_000, "suspected", detail={"silent_ms": 300}),
        row(90_000, "suspected", detail={"silent_ms": 400}),
    )
    assert lane(false, row(60_000, "declared_dead"))["deaths"][0]["from"] == 60_000
    assert lane(false, true, row(90_100, "declared_dead"))["deaths"][0]["from"] == 89_600
    exited = row(89_000, "exited", source="base")
    assert lane(false, exited, true, row(90_100, "declared_dead"))["deaths"][0]["from"] == 89_000


def test_a_death_in_the_middle_of_a_recovery_is_one_of_its_own():
    found = lane(
        row(1, "declared_dead"), row(2, "claimed", 2), row(3, "declared_dead", 2), row(4, "claimed", 3),
        row(5, "ready", 3), row(6, "ready", 2),
    )  # fmt: skip
    assert [(death["claimed"], death["ready"]) for death in found["deaths"]] == [(2, None), (4, 5)]


def test_the_exit_of_a_drained_or_quarantined_process_is_no_death():
    for event in ("drained", "quarantined"):
        found = lane(row(1, "ready"), row(2, event), row(3, "exited"))
        assert [span["state"] for span in found["spans"]] == ["live", event]
        assert found["deaths"] == []


def test_everything_named_has_a_lane_and_a_window_keeps_what_overlaps():
    found = lanes(
        [row(5, "exited", None, agent="base"), row(7, "rebuilt", None, agent="swarm")], ["a"], ["base"], ["m"]
    )
    assert [(one["name"], one["kind"]) for one in found] == [
        ("a", "agent"), ("base", "sandbox"), ("m", "role"), ("swarm", "role"),
    ]  # fmt: skip
    whole = lane(row(10, "ready"), row(100, "declared_dead"), row(110, "ready", 2))
    assert within(whole, 0, 50)["deaths"] == []
    assert [span["state"] for span in within(whole, 0, 50)["spans"]] == ["live"]
    assert len(within(whole, 105, 200)["deaths"]) == 1
