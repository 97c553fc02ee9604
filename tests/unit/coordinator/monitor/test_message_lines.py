"""The lines of `watch` and a piped `up`."""

from __future__ import annotations

from datetime import UTC, datetime

import orjson

from bus.messages import decode
from bus.messages.subjects import Subjects
from coordinator.monitor.live_view import event_line
from coordinator.monitor.message_lines import line_of

NOON = datetime(2020, 1, 1, 12, tzinfo=UTC)


def test_an_alert_is_shown_with_its_writer_whomever_its_payload_names():
    subject = "swarm.alert.warning.momentum"
    payload = {
        "severity": "warning", "code": "client_refused", "message": "base was refused", "timestamp": NOON,
        "source": "up",
    }  # fmt: skip
    alert = decode(Subjects("swarm").parse(subject), subject, orjson.dumps(payload))
    assert line_of(alert, subject, "7") == "12:00:00 ALERT warning client_refused by momentum: base was refused"
    assert event_line(alert) == "12:00:00  WARNING by momentum: base was refused"  # type: ignore[arg-type]


def test_an_end_is_shown_with_its_reporter_unless_that_is_the_host_that_it_names():
    def shown(writer: str) -> tuple[str, str]:
        subject = f"swarm.lifecycle.momentum.{writer}"
        payload = {
            "event": "exited", "agent": "momentum", "timestamp": NOON, "source": writer, "epoch": 4, "sandbox": "base",
            "reason": "signal 9", "detail": {"by": "base"},
        }  # fmt: skip
        event = decode(Subjects("swarm").parse(subject), subject, orjson.dumps(payload))
        return line_of(event, subject, "7"), event_line(event)  # type: ignore[arg-type]

    assert shown("python") == (
        "12:00:00.000 lifecycle momentum exited epoch=4 sandbox=base reason=signal 9 by=python",
        "12:00:00.000  momentum exited (signal 9; reported by python)",
    )
    line, short = shown("base")
    assert "python" not in line
    assert short == "12:00:00.000  momentum exited (signal 9)"
