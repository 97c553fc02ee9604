from __future__ import annotations

from typing import get_args

import orjson
import pytest

from bus.errors import MessageError
from bus.messages import LifecycleEvent, decode
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
