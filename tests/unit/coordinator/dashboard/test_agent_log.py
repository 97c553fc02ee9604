"""The log of an agent is what the log files have about it, and nothing else."""

from __future__ import annotations

import json

from coordinator.dashboard.agent_log import TAIL_BYTES, tail


def line(number: int, **fields: str) -> str:
    return json.dumps({"event": f"e{number}", "timestamp": f"2026-01-01T00:00:{number:02}Z", **fields}) + "\n"


def test_lines_of_the_agent_and_about_it_are_in_order_of_time(tmp_path):
    (tmp_path / "base.log").write_text(line(2, agent="a") + line(1, of="a") + line(3, agent="b") + "Traceback a\n")
    (tmp_path / "python.log").write_text(line(4, agent="a") + '{"agent": "a", broken\n' + line(5, event="a"))
    found = tail(tmp_path, "a")
    assert found is not None
    assert [(entry["event"], entry["file"]) for entry in found] == [
        ("e1", "base.log"), ("e2", "base.log"), ("e4", "python.log"),
    ]  # fmt: skip
    assert tail(tmp_path, "nobody") == []
    newest = tail(tmp_path, "a", 1)
    assert newest is not None
    assert [entry["event"] for entry in newest] == ["e4"]


def test_without_log_files_it_is_not_known(tmp_path):
    assert tail(tmp_path, "a") is None
    assert tail(tmp_path / "nowhere", "a") is None


def test_only_the_end_of_a_large_file_is_read(tmp_path):
    with (tmp_path / "base.log").open("w") as file:
        file.write(line(1, agent="a"))
        file.write("x" * TAIL_BYTES + "\n")
        file.write(line(2, agent="a"))
    found = tail(tmp_path, "a")
    assert found is not None
    assert [entry["event"] for entry in found] == ["e2"]
