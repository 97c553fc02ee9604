"""What a run of `up` has achieved: whether any decision was made, which sources have published all that they have, and
which agents are quarantined at its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from bus.errors import BusError, MessageError
from bus.heartbeats import HeartbeatListener, ReceivedHeartbeat
from bus.interface import Bus, Closable, ReceivedMessage
from bus.messages import Lifecycle
from bus.messages import headers as h
from coordinator.config.settings import ResolvedSwarm

LEAST_RUN_S = 10.0
"""A run that a signal ends sooner may have no decision: it was too short for one."""


class Outcome:
    """Receives the decisions and lifecycle events of the swarm of `config`, and the heartbeats of its sources."""

    def __init__(self, config: ResolvedSwarm) -> None:
        self._set(config)
        self._listened: set[str] = set()
        self._finished: dict[str, int] = {}
        self.on_finished: Callable[[str], None] = lambda _: None
        """Called with a text when the last source has published all that it has."""
        self._started_at = time.monotonic()
        self._decided = False
        self._first: Closable | None = None
        self._closing: asyncio.Future[None] | None = None
        self._quarantined: dict[str, str] = {}

    def _set(self, config: ResolvedSwarm) -> None:
        self._decides = bool(config.deciders)
        self._agents = {settings.spec.name for settings in config.agents}
        external = {settings.spec.name for settings in config.agents if settings.external}
        self._sources = sorted(config.sources - external)

    async def listen(self, bus: Bus) -> None:
        """Begin to receive."""
        self._first = await bus.listen_directly(bus.subjects.all_of("decision"), self._on_decision)

        def on_lifecycle(received: ReceivedMessage) -> None:
            try:
                event = received.decode(bus.subjects)
            except MessageError:
                return
            if isinstance(event, Lifecycle) and event.event == "quarantined":
                self._quarantined[event.agent] = event.reason or ""
            elif isinstance(event, Lifecycle) and event.event in ("revived", "ready"):
                self._quarantined.pop(event.agent, None)

        await bus.listen_directly(bus.subjects.all_of("lifecycle"), on_lifecycle)
        await self._listen_to_sources(bus)

    async def take(self, config: ResolvedSwarm, bus: Bus) -> None:
        """The swarm is this one from now on."""
        self._set(config)
        await self._listen_to_sources(bus)

    async def _listen_to_sources(self, bus: Bus) -> None:
        if new := [name for name in self._sources if name not in self._listened]:
            self._listened.update(new)
            await HeartbeatListener(bus, new, on_heartbeat=self._on_heartbeat).start()

    def _on_heartbeat(self, received: ReceivedHeartbeat) -> None:
        heartbeat = received.heartbeat
        if heartbeat.status != "finished":
            self._finished.pop(heartbeat.agent, None)
        elif heartbeat.agent not in self._finished:
            self._finished[heartbeat.agent] = heartbeat.outputs
            if (text := self.ending()) is not None:
                self.on_finished(text)

    def ending(self) -> str | None:
        """That no source of this swarm publishes any more, if so."""
        finished = {name: self._finished[name] for name in self._sources if name in self._finished}
        if not self._sources or len(finished) < len(self._sources):
            return None
        parts = [f"{name} ({outputs} events)" for name, outputs in finished.items()]
        return f"the data has ended: {', '.join(parts)}; further decisions need data of another program"

    def _on_decision(self, received: ReceivedMessage) -> None:
        if not received.headers.get(h.SEQUENCE):
            return  # not of the stream: an acknowledgement that was sent here
        self._decided = True
        if self._first is not None:  # one is enough: later ones need not be received twice
            first, self._first = self._first, None
            self._closing = asyncio.ensure_future(first.close())

    async def problems(self, bus: Bus, *, signalled: bool) -> list[str]:
        """What went wrong, one line each; `signalled`: a signal has ended the run, not its own time."""
        with contextlib.suppress(BusError):
            await bus.flush()  # a signal may come before what the server has sent until then is read
        found = [
            f"agent {name} is quarantined: {reason}; fix the cause, then start the swarm again"
            for name, reason in sorted(self._quarantined.items())
            if name in self._agents
        ]
        short = signalled and time.monotonic() - self._started_at < LEAST_RUN_S
        if self._decides and not self._decided and not short:
            found.append("no decision was made in this run; the logs in the state directory show what the agents did")
        return found
