"""The role `proxy`: forwards the connections of agents to the bus, and injects network faults on request.

Requests on `{ns}.control.proxy.{command}` name the agents concerned (none: all): `reset`, `delay`, `blackhole`.
The proxy ends a fault by itself, so that a client that dies leaves no fault behind.
"""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
import orjson
import structlog

from bus.errors import EXIT_DONE, UsageError
from bus.interface import ReceivedMessage
from bus.nats.bus import NatsBus
from bus.nats.credentials import credentials_from
from bus.nats.urls import redacted_url, urls_of
from bus.observability.logging import set_up_logs
from bus.testing.tcp_proxy import DOWN, UP, Proxy, ProxyTls
from bus.utils.aio import end_tasks, run_to_end
from bus.utils.processes import on_signals
from coordinator.runner.child_process import LISTENER_VARIABLE
from coordinator.security.tls_files import TlsFiles

__all__ = ["NAME", "Affected", "BadNetwork", "open_proxy_port", "run_proxy"]

NAME = "proxy"
AGENTS_URL_VARIABLE = "SIGNALMESH_AGENTS_NATS"
LONGEST_S = 60.0

log = structlog.get_logger("signalmesh.proxy")


def open_proxy_port(url: str, *, embedded: bool) -> tuple[socket.socket, dict[str, str]]:
    """A listening socket for the proxy in front of `url`, and the environment by which hosts send their agents there.

    Raises:
        UsageError: `url` has several servers, or is not nats:// and no `embedded` server's: the certificate of another
            one is not for the proxy's address.
    """
    parts = urlsplit(url if "://" in url else f"nats://{url}")
    if not (parts.scheme == "nats" or embedded) or len(urls_of(url)) > 1:
        raise UsageError(
            f"--fault-proxy: expected the embedded server, or one server at nats://…, not {redacted_url(url)}"
        )
    listener = socket.create_server(("127.0.0.1", 0))
    userinfo = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    return listener, {AGENTS_URL_VARIABLE: f"{parts.scheme}://{userinfo}127.0.0.1:{listener.getsockname()[1]}"}


def _tls(files: TlsFiles) -> ProxyTls:
    """TLS with the server's certificate as its file is now, which is for this address too."""
    accepting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    accepting.load_cert_chain(files.certificate("server"), files.key("server"))
    return ProxyTls(accepting, credentials_from().context())


@dataclass(frozen=True, slots=True, kw_only=True)
class BadNetwork:
    """A request: the agents concerned, and for `delay` by how much and for how long, in seconds."""

    agents: tuple[str, ...] = ()
    delay_s: Annotated[float, msgspec.Meta(ge=0, le=5)] = 0.0
    for_s: Annotated[float, msgspec.Meta(ge=0, le=LONGEST_S)] = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Affected:
    """The answer: how many connections are affected, and the names of all that are open."""

    connections: int
    names: list[str]


class FaultService:
    """Handles the requests to `proxy` on `bus`."""

    def __init__(self, bus: NatsBus, proxy: Proxy) -> None:
        self._bus, self._proxy = bus, proxy
        self._ending: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        for command, action in (("reset", self._reset), ("delay", self._delay), ("blackhole", self._blackhole)):
            await self._bus.answer(self._bus.subjects.control(NAME, command), self._served(command, action))

    async def stop(self) -> None:
        await end_tasks(self._ending)

    def _served(self, command: str, action: Any) -> Any:
        async def serve(received: ReceivedMessage) -> bytes:
            try:
                fault = msgspec.convert(orjson.loads(received.data), BadNetwork)
            except (orjson.JSONDecodeError, msgspec.ValidationError) as error:
                return orjson.dumps({"error": f"proxy, {command}: {error}"})
            names = self._proxy.names
            answer = Affected(connections=action(fault), names=names)
            log.info(command, agents=fault.agents, connections=answer.connections, for_s=fault.for_s)
            return orjson.dumps(answer)

        return serve

    def _reset(self, fault: BadNetwork) -> int:
        return self._proxy.reset(fault.agents)

    def _blackhole(self, fault: BadNetwork) -> int:
        return self._proxy.drop(UP, DOWN, names=fault.agents)

    def _delay(self, fault: BadNetwork) -> int:
        count = self._proxy.delay(fault.delay_s, fault.agents)

        async def end() -> None:
            await asyncio.sleep(fault.for_s)
            self._proxy.delay(0.0, fault.agents)

        task = asyncio.create_task(end(), name="proxy-end-of-delay")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return count


def run_proxy(url: str, swarm: str, log_level: str, state_dir: Path) -> int:
    """Forward to the server at `url` until a signal ends it; on the inherited socket, else on any free port.

    In front of tls:// it has the certificate of the server of `state_dir`.
    """
    tls = functools.partial(_tls, TlsFiles(state_dir)) if url.startswith("tls://") else None
    set_up_logs(log_level)
    number = os.environ.get(LISTENER_VARIABLE)
    listener = socket.socket(fileno=int(number)) if number else None

    async def serve() -> None:
        stop = asyncio.Event()
        on_signals(stop.set)
        async with Proxy(url, listener, tls) as proxy:
            log.info("proxy_ready", url=proxy.url)
            bus = await NatsBus.connect(url, swarm, NAME, wait_s=None)
            service = FaultService(bus, proxy)
            try:
                await service.start()
                await stop.wait()
            finally:
                await service.stop()
                await bus.close()

    run_to_end(serve())
    return EXIT_DONE
