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
