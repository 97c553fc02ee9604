"""What `up` says of the embedded nats-server: in its log, on the terminal, and as alerts where the bus takes them."""

from __future__ import annotations

import sys
from collections.abc import Callable

import structlog

from bus.plain import harmless
from bus.reports import Reporter
from bus.server import ServerDied, ServerEvent, ServerNotStoring, ServerRestarted

log = structlog.get_logger("signalmesh.up")


def tell_of_server(event: ServerEvent, reports: Callable[[], Reporter]) -> None:
    """Say it on the terminal too, where no alert can arrive while the server is down or stores nothing."""
    if isinstance(event, ServerDied):
        log.warning("nats_server_died", pid=event.pid, returncode=event.returncode, retry_s=event.retry_s)
        _print(f"nats-server (pid {event.pid}) ended with {event.returncode}; starting it again")
    elif isinstance(event, ServerRestarted):
        log.warning("nats_server_restarted", pid=event.pid, down_ms=round(event.down_s * 1000))
        reports().alert(
            "warning",
            "nats_server_restarted",
            f"nats-server died and answers again as pid {event.pid} after {event.down_s * 1000:.0f} ms",
            pid=event.pid,
        )
    elif isinstance(event, ServerNotStoring):
        log.error("nats_server_not_storing", pid=event.pid, problem=event.problem)
        _print(
            f"nats-server (pid {event.pid}) stores nothing any more: {event.problem}; nothing that was acknowledged is "
            "lost. Make room on that disk: the server is then started again, and everything goes on"
        )
        reports().alert(
            "critical",
            "nats_server_not_storing",
            f"nats-server (pid {event.pid}) stored nothing for a while: {event.problem}",
            pid=event.pid,
        )
    else:
        log.error("nats_server_restart_failed", problem=event.problem, retry_s=event.retry_s)
        _print(f"nats-server does not start: {event.problem}; next try in {event.retry_s} s")


def _print(text: str) -> None:
    print(harmless(text), file=sys.stderr)
