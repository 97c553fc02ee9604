from __future__ import annotations

from typing import get_args

import orjson
import pytest

from bus.errors import MessageError
from bus.messages import LifecycleEvent, decode
from bus.messages.reporters import MAX_AGENTS, MAX_CLAIMS, ClaimedHosts
from bus.messages.subjects import RESERVED_NAMES, Subjects

SUBJECTS = Subjects("swarm")
WRITERS = ("momentum", "coordinator", "base", *sorted(RESERVED_NAMES))
HOSTS = {"base", "coordinator"}
"""An agent has no right to write about another: to the rule its name is one that a host may have."""
MAY = {
    **{event: {"momentum"} for event in ("restored", "ready", "skipped", "drained")},
    **{event: {"watchdog"} for event in ("suspected", "declared_dead", "quarantined", "revived", "moved", "removed")},
    "spawned": HOSTS,
    "exited": HOSTS | {"up", "provider"},
    "rebuilt": set(),
}


def problem(event: str, subject: str, agent: str, source: str) -> str:
    """Why this event is malformed; empty: it is not."""
    payload = {"event": event, "agent": agent, "timestamp": "2026-01-01T00:00:00Z", "source": source, "epoch": 4}
    try:
        decode(SUBJECTS.parse(subject), subject, orjson.dumps(payload))
    except MessageError as error:
        return error.problem
    return ""


@pytest.mark.parametrize("event", get_args(LifecycleEvent))
def test_each_event_of_an_agent_has_its_writers(event: str):
    accepted = {
        writer for writer in WRITERS if not problem(event, f"swarm.lifecycle.momentum.{writer}", "momentum", writer)
    }
    assert accepted == MAY[event]


def test_the_restoring_process_alone_reports_that_the_stream_was_rebuilt():
    accepted = {
        writer for writer in WRITERS if not problem("rebuilt", f"swarm.lifecycle.swarm.{writer}", "swarm", writer)
    }
    assert accepted == {"up", "mirror"}


def test_the_subject_names_the_agent_and_the_writer():
    own = "swarm.lifecycle.momentum.momentum"
    assert problem("exited", own, "momentum", "momentum") == ("exited: 'momentum' may not report it, expected a host")
    assert problem("exited", own, "victim", "momentum") == (
        "agent: expected 'momentum', which the subject names, not 'victim'"
    )
    assert problem("ready", own, "momentum", "base") == (
        "source: expected 'momentum', which the subject names, not 'base'"
    )


def test_an_alert_is_of_the_writer_that_its_subject_names():
    payload = {
        "severity": "warning", "code": "client_refused", "message": "x", "timestamp": "2026-01-01T00:00:00Z",
        "source": "up",
    }  # fmt: skip
    subject = "swarm.alert.warning.momentum"
    assert getattr(decode(SUBJECTS.parse(subject), subject, orjson.dumps(payload)), "source", "") == "momentum"


def test_the_host_of_the_claim_alone_reports_the_start_and_the_end():
    hosts = ClaimedHosts()
    assert hosts.may_report("exited", "a", 7, "base"), "no claim is known"
    hosts.claimed("a", 7, "base")
    hosts.claimed("a", 9, "python")
    for event in ("spawned", "exited"):
        believed = {
            (epoch, host)
            for epoch in (7, 8, 9, 10**9)
            for host in ("base", "python", "up")
            if hosts.may_report(event, "a", epoch, host)
        }
        assert believed == {(7, "base"), (9, "python")}
        assert hosts.may_report(event, "a", 6, "nodejs"), "older than all known claims"
    assert hosts.may_report("ready", "a", 10**9, "a"), "decode has checked the writer"
    assert [hosts.may_report("exited", "python", None, by) for by in ("up", "provider", "base", "python")] == [
        True,
        True,
        False,
        False,
    ]
    assert (hosts.host_of("a", 9), hosts.host_of("a", 8), hosts.host_of("b", None)) == ("python", None, None)


def test_the_newest_claims_and_agents_are_known():
    hosts = ClaimedHosts()
    for epoch in (*range(MAX_CLAIMS + 5, 0, -1), *range(MAX_CLAIMS + 6)):
        hosts.claimed("a", epoch, "base")
    assert [hosts.host_of("a", epoch) for epoch in (MAX_CLAIMS + 5, 6, 5)] == ["base", "base", None]
    for number in range(MAX_AGENTS):
        hosts.claimed(f"b{number}", 1, "base")
    assert [hosts.host_of(name, 1) for name in ("a", "b0")] == [None, "base"]
