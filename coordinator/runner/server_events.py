"""What `up` says of its nats-server, and of the stream there: in its log, on the terminal, and as alerts.

An alert reaches nobody while the bus takes none, the terminal does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import structlog

from bus.durable.events import EventPublisher
from bus.errors import Refused
from bus.nats.bus import NatsBus
from bus.nats.jetstream import STREAM_NOT_FOUND
from bus.server.supervisor import ServerDied, ServerEvent, ServerNotStoring, ServerRestarted
from bus.utils.terminal import escape_control
from coordinator.config.settings import SwarmConfig

log = structlog.get_logger("signalmesh.up")


async def tell_of_stream(bus: NatsBus, *, told: bool) -> bool:
    """Say on the terminal that the swarm's stream is gone, where no alert can be stored; whether it is.

    Raises:
        BusTimeout, Disconnected: nobody answers just now.
    """
    try:
        await bus.bounds()
    except Refused as error:
        if error.code != STREAM_NOT_FOUND:
            return told
        if not told:
            stream = bus.subjects.stream
            log.warning("stream_gone", stream=stream)
            _print(
                f"the stream {stream} is gone, somebody has deleted it: nothing is stored or decided. End this and "
                "start it again: what the mirror has is then put back"
            )
        return True
    return False


def tell_of_server(event: ServerEvent, reports: Callable[[], EventPublisher]) -> None:
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


def tell_foreign_durability(reports: EventPublisher, config: SwarmConfig, url: str) -> None:
    """Say that a server which somebody else runs takes no `durability` from us."""
    text = (
        f"{config.file}: stream.durability: {config.stream.durability!r} can be set on the embedded "
        f"server only; that at {url} does as its own configuration says "
        "(for `power` it needs jetstream { sync_interval: always })"
    )
    _print(f"signalmesh: {text}")
    reports.alert("warning", "durability_not_set", text)


def _print(text: str) -> None:
    print(escape_control(text), file=sys.stderr)
