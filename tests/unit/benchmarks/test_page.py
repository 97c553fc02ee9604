from __future__ import annotations

from typing import Any

from benchmarks import page

ROW = {
    "system": "signalmesh", "p50, ms": 2.0, "p99, ms": 4.0, "p50 / ours": 1.0, "decisions/s": 1800.0, "start, s": 2.8,
    "voted again": "5 of 5", "SIGKILL to vote p50, ms": 40.0, "state": "kept",
}  # fmt: skip
RUN: dict[str, Any] = {
    "machine": {"cpu": "a processor", "cores": 2, "memory_gib": 8.0, "kernel": "Linux 6"},
    "versions": {"python": "3.11", "nats-server": "2.12", "signalmesh": "0.1.0"},
    "results": [
        {
            "conditions": "On purpose.",
            "rows": [ROW, {"system": "absent", "failed": "cannot be installed here: ERROR: no wheel"}],
            "notes": ["first", "Other load.", "Load average."],
            "raw": {"signalmesh": {"versions": {}, "lacks": "It is slow."}},
        }
    ],
}
TEXT = "".join(
    f"<!-- results: {name} -->\nold {name}\n<!-- end of results -->\n" for name in ("goals", "peers", "peers_lack")
)


def test_the_tables_of_a_run_that_is_not_there_stay():
    text = page.with_results(TEXT, {"peers": RUN})
    assert "old goals" in text
    assert "old peers" not in text


def test_the_peers_have_machine_load_conditions_a_table_and_the_plot():
    text = page.peers(RUN)
    assert text.startswith("a processor, 2 cores, 8.0 GiB, Linux 6, Python 3.11, nats-server 2.12")
    assert "Other load. Load average.\n\nOn purpose.\n" in text
    assert "| signalmesh | 2.00 | 4.00 | 1.00 | 1,800 | - | - | 2.80 | - |" in text
    assert "absent" not in text
    assert f"(assets/{page.PLOT.name})" in text


def test_a_peer_that_was_not_measured_is_listed_with_the_reason():
    assert "| absent | - | Not measured: cannot be installed here: ERROR: no wheel |" in page.peers_lack(RUN)
    assert "| signalmesh | signalmesh 0.1.0 | It is slow. |" in page.peers_lack(RUN)


def test_what_happened_after_the_kill_has_a_table():
    assert "| signalmesh | 5 of 5 | 40.0 | - | - | kept |" in page.peers_killed(RUN)
