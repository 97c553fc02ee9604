"""Which columns of the status table a narrow terminal shortens or leaves out, and in which order."""

from __future__ import annotations

import os
import pty
import re
from dataclasses import replace
from typing import Any, TextIO

import pytest

from coordinator.monitor.models import NOT_RUNNING, AgentStatus, DecisionCount, Refusals, SandboxStatus, Status
from coordinator.monitor.status_table import SANDBOX_COLUMNS, STATUS_COLUMNS, print_status
from coordinator.sandboxes.health import SandboxHealth
from coordinator.security.refusals import RefusedAttempts

HEALTH = SandboxHealth(
    processes=21, cpu_s=9.0, cpu_percent=10.0, rss_mb=3127.0, pss_mb=1127.0, network="its own", rx_bytes=1 << 20,
    tx_bytes=2 << 20, seen_s=100.0, availability=0.9, price_per_hour=0.4, price_source="a bill", cost=0.01,
)  # fmt: skip
SANDBOXES = ("base", "nodejs", "python")


def status_of(agents: int) -> Status:
    names = [f"strategy-mean-reversion-{number}" for number in range(agents)]
    found = [
        AgentStatus(
            name=name, kind="mean-reversion", agent_id="a", status="active", epoch=12345, pid=20000,
            sandbox=SANDBOXES[at % 3], capabilities=[], restarts=0, heartbeat_age_ms=12, cursor=12345, lag=0,
            outputs=12345, poison=0, skipped=0, last_output_at=None,
        )
        for at, name in enumerate(names)
    ]  # fmt: skip
    sandboxes = [
        SandboxStatus(
            name=name,
            provider="local",
            endpoint=None,
            status="active",
            agents=names[at::3],
            uptime_s=60.0,
            pid=20001,
            health=HEALTH,
        )
        for at, name in enumerate(SANDBOXES)
    ]
    decisions = DecisionCount(count=0, last_at=None, from_other_writers=0)
    return Status(
        swarm="s", nats="n", active_agents=agents, processes=agents, watchdog_term=None, sandboxes=sandboxes,
        agents=found, decisions=decisions,
    )  # fmt: skip


def sandbox_table(result: str) -> list[str]:
    """The head of the table of sandboxes, and what follows."""
    lines = result.splitlines()
    return lines[next(at for at, line in enumerate(lines) if line.startswith("sandbox ")) :]


def on_terminal(columns: int, status: Status, monkeypatch: pytest.MonkeyPatch) -> str:
    """What `status` prints on a terminal that is so wide."""
    near, far = pty.openpty()
    result = b""
    with os.fdopen(far, "w", encoding="utf-8") as terminal:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("NO_COLOR", "1")
        _print_to(terminal, status, monkeypatch)
        print("the end", file=terminal, flush=True)
        while b"the end" not in result:
            result += os.read(near, 1 << 16)
    os.close(near)
    return re.sub(r"\x1b\[[0-9;]*m", "", result.decode()).replace("\r\n", "\n")


def _print_to(terminal: TextIO, status: Status, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", terminal)
        print_status(status)


@pytest.mark.parametrize("agents", [9, 60])
@pytest.mark.parametrize("columns", [None, "80", "200"])
def test_a_pipe_gets_every_column_and_every_name(agents, columns, capsys, monkeypatch):
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    print_status(status_of(agents))
    result = capsys.readouterr().out
    head, _, *rows = sandbox_table(result)
    assert all(column.title in head for column in SANDBOX_COLUMNS)
    assert all(column.title in result for column in STATUS_COLUMNS)
    for at, row in enumerate(rows):
        assert row.rstrip().endswith(", ".join(status_of(agents).sandboxes[at].agents))
        assert "10.0 %" in row
        assert "1127" in row
    assert "hidden columns" not in result


@pytest.mark.parametrize("agents", [9, 60])
def test_a_terminal_has_names_shortened_before_a_column_goes(agents, monkeypatch):
    head, _, *rows = sandbox_table(on_terminal(155, status_of(agents), monkeypatch))
    assert all(column.title in head for column in SANDBOX_COLUMNS)
    assert rows[0].rstrip().endswith(f"strategy-mean-reversion-0 and {agents // 3 - 1} more")
    assert "1127" in rows[0]


def test_a_narrow_terminal_keeps_what_counts_and_names_what_it_leaves_out(monkeypatch):
    result = on_terminal(80, status_of(60), monkeypatch)
    assert max(len(line) for line in result.splitlines() if not line.startswith("hidden")) <= 80
    head, _, row, *rest = sandbox_table(result)
    assert head.split() == ["sandbox", "provider", "state", "pid", "up", "available", "CPU", "PSS", "MiB", "agents"]
    assert row.split()[-3:] == ["20", "in", "all"]
    assert "hidden columns: processes, network in/out, cost (terminal is 80 columns wide; use --json for all)" in rest


def test_agents_that_are_not_configured_any_more_are_counted_apart(capsys):
    """Where a watchdog leads, that is: without one whoever stopped is missed."""
    status = status_of(5)
    agents = [replace(agent, status="stopped") for agent in status.agents[:2]] + status.agents[2:]
    print_status(replace(status, agents=agents, active_agents=3, watchdog_term=7))
    assert "\n3 of 3 agents active, 2 stopped and not configured any more; " in capsys.readouterr().out
    print_status(replace(status, agents=agents, active_agents=3, watchdog_term=None))
    assert "\n3 of 5 agents active; " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("endpoint", "provider", "at"),
    [
        ("E2B at https://api.e2b.app", "e2b", "E2B at https://api.e2b.app"),
        ("custom endpoint http://h:1", "e2b, custom endpoint", "custom endpoint http://h:1"),
        (None, "e2b, endpoint not known", "an endpoint that their hosts do not report"),
    ],
)
def test_what_is_not_known_to_be_e2b_is_not_called_so(endpoint, provider, at, capsys):
    status = status_of(3)
    far = [replace(sandbox, provider="e2b", endpoint=endpoint) for sandbox in status.sandboxes]
    print_status(replace(status, sandboxes=far))
    result = capsys.readouterr().out
    assert [re.split("  +", row)[1] for row in sandbox_table(result)[2:]] == [provider] * 3
    assert f"no provider runs: the lifetimes of the sandboxes are not renewed at {at}\n" in result


def test_a_sandbox_that_does_not_run_is_shown_with_the_reason(capsys):
    status = status_of(3)
    gone: dict[str, Any] = {"uptime_s": None, "pid": None, "agents": [], "reason": "no provider is running"}
    far = replace(status.sandboxes[0], name="far", provider="e2b", status=NOT_RUNNING, **gone)
    print_status(replace(status, sandboxes=[*status.sandboxes, far]))
    result = capsys.readouterr().out
    assert re.split("  +", sandbox_table(result)[5])[:3] == ["far", "e2b, endpoint not known", "not running"]
    assert "\nfar: not running: no provider is running\n" in result
    assert "are not renewed" not in result, "there are none"


def test_what_was_refused_is_shown_with_who_reports_it_and_nothing_if_nobody_does(capsys):
    by = [
        RefusedAttempts(who=f"agent-{number}", attempt="publish", reported_by="up", count=9 - number)
        for number in range(5)
    ]
    print_status(replace(status_of(1), refused=Refusals(count=35, since=7, by=by)))
    expected = "refused to clients: 35 by the alerts of up since message 7: "
    assert expected + "agent-0 9 (publish), agent-1 8 (publish), agent-2 7 (publish), others 11\n" in (
        capsys.readouterr().out
    )
    print_status(status_of(1))
    assert "refused" not in capsys.readouterr().out
