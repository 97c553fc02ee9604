"""JSON from anywhere: values that are too deep for the code behind the parser are refused, and no others."""

from __future__ import annotations

import orjson
import pytest

from bus.durable.registry import read_record
from bus.durable.snapshots import MAX_SNAPSHOT_BYTES, SnapshotUnreadable, read_snapshot
from bus.errors import MessageError
from bus.messages import Alert, decode, encode
from bus.messages.subjects import Subjects
from bus.observability.logging import redact
from bus.utils.json_text import MAX_DEPTH, MAX_STATE_DEPTH, TooDeep, parse_json, read_limited
from coordinator.monitor.history import entry_of
from coordinator.reporting.differences import payload_differences

SUBJECTS = Subjects("swarm")
SUBJECT = "swarm.alert.warning.me"
FIELDS = b'{"severity":"warning","code":"c","message":"m","timestamp":"2026-01-01T00:00:00Z","source":"me","detail":'


def nested(levels: int, kind: str = "object") -> bytes:
    opened, closed = (b'{"a":', b"}") if kind == "object" else (b"[", b"]")
    return opened * levels + b"1" + closed * levels


@pytest.mark.parametrize("kind", ["object", "list"])
@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 300, 1000, 1023, 1024, 1025, 100_000])
def test_a_deep_value_is_refused(levels, kind):
    with pytest.raises(ValueError, match=r"levels deep|depth limit"):
        parse_json(nested(levels, kind))
    with pytest.raises(ValueError, match=r"levels deep|depth limit"):
        parse_json(b"[1," + nested(levels, kind) + b"]")


@pytest.mark.parametrize("kind", ["object", "list"])
def test_the_deepest_value_is_read(kind):
    assert parse_json(nested(MAX_DEPTH, kind)) == orjson.loads(nested(MAX_DEPTH, kind))
    with pytest.raises(TooDeep):
        parse_json(nested(MAX_DEPTH + 1, kind))


def test_a_wide_value_and_brackets_in_texts_are_not_deep():
    wide = orjson.dumps([{"a": [{}] * 10}] * 10_000)
    assert parse_json(wide) == orjson.loads(wide)
    assert parse_json(orjson.dumps("[{" * 1000)) == "[{" * 1000


def deep_alert(levels: int) -> bytes:
    return FIELDS + b'{"x":' + nested(levels) + b"}}"


def test_every_message_that_is_decoded_can_be_written_and_logged_again():
    for levels in range(1, 1030):
        if levels > MAX_DEPTH - 2:
            with pytest.raises(MessageError):
                decode(SUBJECTS.parse(SUBJECT), SUBJECT, deep_alert(levels))
            continue
        alert = decode(SUBJECTS.parse(SUBJECT), SUBJECT, deep_alert(levels))
        assert isinstance(alert, Alert)
        assert decode(SUBJECTS.parse(SUBJECT), SUBJECT, encode(alert)) == alert
        assert redact(None, "", {"detail": alert.detail}) == {"detail": alert.detail}
        assert repr(alert)
    with pytest.raises(MessageError, match="levels deep"):
        decode(SUBJECTS.parse(SUBJECT), SUBJECT, deep_alert(1000))


@pytest.mark.parametrize("levels", [MAX_STATE_DEPTH + 1, 600, 1023, 5000])
def test_a_deep_snapshot_and_record_are_unreadable(levels):
    with pytest.raises(SnapshotUnreadable):
        read_snapshot("me", b'{"state":' + nested(levels) + b"}")
    with pytest.raises(ValueError, match=r"deep|depth"):
        read_record(nested(levels))


def test_a_snapshot_as_deep_as_a_state_can_be_is_read():
    state = nested(MAX_STATE_DEPTH - 2)
    snapshot = read_snapshot("me", b'{"state":' + state + b"}")
    assert snapshot.state == orjson.loads(state)
    assert len(snapshot.encode()) < MAX_SNAPSHOT_BYTES


@pytest.mark.parametrize("levels", [50, 100, 245, 300, 1000, 5000])
def test_history_and_replay_show_a_deep_payload(levels):
    for data in (nested(levels), nested(levels, "list")):
        entry = entry_of(1, 0, "swarm.alert.warning.me", "me", {}, data, intact=True)
        assert (entry.payload is None) != (entry.malformed is None)
        orjson.dumps({"entries": [{"entry": entry}]})
        assert payload_differences(data, data + b" ")


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    (tmp_path / "run.json").write_bytes(b"x" * 11)
    assert read_limited(tmp_path / "run.json", 11) == b"x" * 11
    with pytest.raises(ValueError, match="at most 10 bytes"):
        read_limited(tmp_path / "run.json", 10)
