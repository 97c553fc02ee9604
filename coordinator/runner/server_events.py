"""What `up` reports of its nats-server and of the stream there: in its log, on the terminal and as alerts.

The terminal repeats the alerts, since no alert can be stored while the server is down or stores nothing.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

import structlog

from bus.durable.events import EventPublisher
from bus.errors import BusError, Refused, UsageError
from bus.nats.bus import NatsBus
from bus.nats.jetstream import STREAM_NOT_FOUND
from bus.server.supervisor import NatsServer, ServerDied, ServerEvent, ServerNotStoring, ServerRestarted
from bus.utils.terminal import escape_control
from coordinator.config.settings import SwarmConfig
from coordinator.security.tls_files import ServedTls

log = structlog.get_logger("signalmesh.up")


async def warn_of_deleted_stream(bus: NatsBus, *, warned: bool) -> bool:
    """Print once that the swarm's stream is deleted; return whether it is. `warned` is the previous answer.

    Raises:
        BusTimeout, Disconnected: the server does not answer now.
    """
    try:
        await bus.bounds()
    except Refused as error:
        if error.code != STREAM_NOT_FOUND:
            return warned
        if not warned:
            stream = bus.subjects.stream
            log.warning("stream_gone", stream=stream)
            _print(
                f"the stream {stream} has been deleted: nothing is stored or decided. Stop this swarm and start it "
                "again: `up` then restores what the mirror contains"
            )
        return True
    return False


def report_server_event(event: ServerEvent, events: Callable[[], EventPublisher]) -> None:
    """Log it, print it, and publish an alert once the server takes one."""
    if isinstance(event, ServerDied):
        log.warning("nats_server_died", pid=event.pid, returncode=event.returncode, retry_s=event.retry_s)
        _print(f"nats-server (pid {event.pid}) ended with {event.returncode}; it is restarted")
    elif isinstance(event, ServerRestarted):
        log.warning("nats_server_restarted", pid=event.pid, down_ms=round(event.down_s * 1000))
        events().alert(
            "warning",
            "nats_server_restarted",
            f"nats-server died and was restarted as pid {event.pid}; it was away for {event.down_s * 1000:.0f} ms",
            pid=event.pid,
        )
    elif isinstance(event, ServerNotStoring):
        log.error("nats_server_not_storing", pid=event.pid, problem=event.problem)
        _print(
            f"nats-server (pid {event.pid}) stores nothing: {event.problem}. No acknowledged message is lost. "
            "Free space on that disk: the server is then restarted, and the swarm continues"
        )
        events().alert(
            "critical",
            "nats_server_not_storing",
            f"nats-server (pid {event.pid}) stored nothing for a while: {event.problem}",
            pid=event.pid,
        )
    else:
        log.error("nats_server_restart_failed", problem=event.problem, retry_s=event.retry_s)
        _print(f"nats-server does not start: {event.problem}; next try in {event.retry_s} s")


def alert_external_durability(events: EventPublisher, config: SwarmConfig, url: str) -> None:
    """Report that the server of --nats ignores `stream.durability`: only its own configuration sets it."""
    text = (
        f"{config.file}: stream.durability: {config.stream.durability!r} applies to the embedded server only; "
        f"the server at {url} uses its own configuration (for `power` it needs jetstream {{ sync_interval: always }})"
    )
    _print(f"signalmesh: {text}")
    events.alert("warning", "durability_not_set", text)


def _print(text: str) -> None:
    print(escape_control(text), file=sys.stderr)


async def renew_certificates(tls: ServedTls, server: NatsServer, events: EventPublisher) -> None:
    """Have the server use certificates that were replaced, or expire soon and were renewed; no connection is lost."""
    try:
        renewed = await asyncio.to_thread(tls.update)
    except UsageError as error:
        events.alert("critical", "certificate_unusable", f"{error}; until then the server has the old one")
        return
    if renewed is not None:
        try:
            await server.reload()
        except (OSError, BusError) as error:
            events.alert("critical", "certificate_unusable", f"{error}; until then the server has the old one")
            return
        text = f"the server has read its certificates again; renewed: {', '.join(renewed) or 'none'}"
        events.alert("info", "certificates_replaced", text, renewed=list(renewed))
