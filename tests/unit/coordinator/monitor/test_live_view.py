"""The live view of `up`, as a terminal gets it, from heartbeats that a bus would have brought."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace
from typing import Any, cast

from rich.console import Console

from bus.heartbeats import HeartbeatListener, ReceivedHeartbeat
from bus.messages import Heartbeat
from coordinator.config.settings import SandboxSpec
from coordinator.monitor.live_view import LiveView

OTHER = "custom endpoint http://127.0.0.1:1"


def host(name: str, group: str | None, status: str, pid: int, endpoint: str | None = None) -> Heartbeat:
    return Heartbeat(
        agent=name, agent_id="h", epoch=1, sequence=1, progress=1, status=status, interval_ms=200, sandbox=name,
        pid=pid, role="sandbox", provider="e2b" if group else "local", uptime_s=1.0, inventory=(), group=group,
        endpoint=endpoint,
    )  # fmt: skip


def displayed_sandboxes(sandboxes: list[SandboxSpec], listener: HeartbeatListener) -> list[list[str]]:
    """The rows that the live view shows after two seconds."""
    view = LiveView.__new__(LiveView)
    view._up = cast(Any, SimpleNamespace(config=SimpleNamespace(sandboxes=sandboxes)))
    view._listener = listener
    out = io.StringIO()
    Console(file=out, width=100).print(view._sandboxes(2.0, 100))
    return [re.split("  +", line.rstrip()) for line in out.getvalue().splitlines()[2:] if line.strip()]


def test_each_sandbox_is_shown_with_the_host_that_serves_it_now():
    sandboxes = [SandboxSpec(name="python", provider="e2b"), SandboxSpec(name="base"), SandboxSpec(name="nodejs")]
    listener = HeartbeatListener(cast(Any, None))
    listener.hosts = {
        "base": ReceivedHeartbeat(2.0, host("base", None, "live", 11)),
        "python-i1": ReceivedHeartbeat(1.0, host("python-i1", "python", "draining", 22)),
        "python-i2": ReceivedHeartbeat(2.0, host("python-i2", "python", "live", 33, "E2B at https://api.e2b.app")),
    }
    lines = displayed_sandboxes(sandboxes, listener)
    assert [line[:4] for line in lines] == [
        ["python-i2", "e2b", "live", "33"],
        ["base", "local", "live", "11"],
        ["nodejs", "local", "no heartbeat yet"],
    ]


def test_what_is_not_known_to_be_e2b_is_not_called_so():
    sandboxes = [SandboxSpec(name=name, provider="e2b") for name in ("base", "nodejs", "python")]
    listener = HeartbeatListener(cast(Any, None))
    listener.hosts = {
        "base-i1": ReceivedHeartbeat(2.0, host("base-i1", "base", "live", 11, OTHER)),
        "nodejs-i2": ReceivedHeartbeat(2.0, host("nodejs-i2", "nodejs", "live", 22)),
    }
    unknown, other = "e2b, endpoint not known", "e2b, custom endpoint"
    assert [line[1] for line in displayed_sandboxes(sandboxes, listener)] == [other, unknown, unknown]
    listener.provider = ReceivedHeartbeat(2.0, host("provider", None, "live", 33, OTHER))
    assert [line[1] for line in displayed_sandboxes(sandboxes, listener)] == [other, unknown, other]
