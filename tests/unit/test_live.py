"""The live view of `up`, as a terminal gets it, from heartbeats that a bus would have brought."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any, cast

from rich.console import Console

from bus.messages import Heartbeat
from coordinator.gather import Listener
from coordinator.live import LiveView
from coordinator.settings import SandboxSpec


def host(name: str, group: str | None, status: str, pid: int) -> Heartbeat:
    return Heartbeat(
        agent=name, agent_id="h", epoch=1, sequence=1, progress=1, status=status, interval_ms=200, sandbox=name,
        pid=pid, role="sandbox", provider="e2b" if group else "local", uptime_s=1.0, inventory=(), group=group,
    )  # fmt: skip


def test_each_sandbox_is_shown_with_the_host_that_serves_it_now():
    sandboxes = [SandboxSpec(name="python", provider="e2b"), SandboxSpec(name="base"), SandboxSpec(name="nodejs")]
    listener = Listener(cast(Any, None))
    listener.hosts = {
        "base": (2.0, host("base", None, "live", 11)),
        "python-i1": (1.0, host("python-i1", "python", "draining", 22)),
        "python-i2": (2.0, host("python-i2", "python", "live", 33)),
    }
    view = LiveView.__new__(LiveView)
    view._up = cast(Any, SimpleNamespace(config=SimpleNamespace(sandboxes=sandboxes)))
    view._listener = listener
    out = io.StringIO()
    Console(file=out, width=100).print(view._sandboxes(2.0, 100))
    lines = [line.split() for line in out.getvalue().splitlines()[2:]]
    assert [line[:4] for line in lines if line] == [
        ["python-i2", "e2b", "live", "33"],
        ["base", "local", "live", "11"],
        ["nodejs", "local", "not", "heard"],
    ]
