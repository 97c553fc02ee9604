"""Has the server of `up` admit the keys that are in use: people replace them, and agents start and die."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import NoReturn

import structlog

from bus.durable.events import EventPublisher
from bus.errors import BusError, MessageError, UsageError
from bus.interface import ReceivedMessage
from bus.messages import Epoch, Lifecycle
from bus.messages import headers as h
from bus.messages.reporters import ClaimedHosts
from bus.messages.subjects import WATCHDOG
from bus.nats.bus import NatsBus
from bus.server.supervisor import NatsServer
from coordinator.config.settings import ResolvedSwarm
from coordinator.security.keys import KeyChanges, ServedKeys

__all__ = ["KeyReloader"]

CHECK_S = 0.5
"""Between two looks at the key files if nothing is received."""
COALESCE_S = 0.1
"""Seconds without a start or end of an agent before one reload for all until then: recoveries have ended by that time.
With 200 agents the server passes nothing on for up to 30 ms, and it forgets which answers it awaits."""
LONGEST_S = 0.4
"""From the first of them to the reload, however many follow."""
ENDS = ("declared_dead", "exited", "quarantined")
STEPS = ("spawned", "restored", "ready")

log = structlog.get_logger("signalmesh.up")


class KeyReloader:
    """Has `server` use the keys that are there now; `restart` gets the identities whose processes need a new key."""

    def __init__(
        self,
        keys: ServedKeys,
        server: NatsServer,
        events: EventPublisher,
        restart: Callable[[frozenset[str]], None],
    ) -> None:
        self._keys, self._server, self._events, self._restart = keys, server, events, restart
        self._hosts = ClaimedHosts()
        self._due = asyncio.Event()
        self._pending: list[KeyChanges] = []
        """What was found, and the server has still to read."""
        self._config: ResolvedSwarm | None = None
        """The swarm, if agents or sandboxes were added or removed since the last look."""
        self.served = False
        """Whether the server has read the keys of the present swarm."""

    def take(self, config: ResolvedSwarm) -> None:
        """Agents or sandboxes were added or removed: this is the swarm now."""
        self._config, self.served = config, False
        self._due.set()

    def suspend(self, identity: str, why: str) -> None:
        """Take the permission to publish away from an identity outside the swarm.

        Raises:
            UsageError: it cannot be noted in the state directory.
        """
        self._keys.store.suspend(identity, why)
        self._due.set()

    async def listen(self, bus: NatsBus) -> None:
        """Receive the claims of agents, and reports of their ends.

        Raises:
            BusError: the bus does not accept a subscription.
        """
        incarnations = self._keys.incarnations
        if incarnations is None:
            return

        async def on_claim(received: ReceivedMessage) -> None:
            if epoch := h.number(received.headers, h.SEQUENCE):
                agent = received.subject.rpartition(".")[2]
                with contextlib.suppress(MessageError):
                    if isinstance(claim := received.decode(bus.subjects), Epoch):
                        self._hosts.claimed(agent, epoch, claim.sandbox)
                incarnations.claimed(agent, epoch)
                self._due.set()

        async def on_lifecycle(received: ReceivedMessage) -> None:
            with contextlib.suppress(MessageError):
                event = received.decode(bus.subjects)
                if not isinstance(event, Lifecycle) or event.epoch is None:
                    return
                if event.event in ENDS and self._may_end(event):
                    incarnations.ended(event.agent, event.epoch)
                if event.event in (*ENDS, *STEPS):
                    self._due.set()

        await bus.listen(bus.subjects.epoch("*"), on_claim)
        await bus.listen(bus.subjects.all_of("lifecycle"), on_lifecycle)

    def _may_end(self, event: Lifecycle) -> bool:
        """Whether it is of the watchdog, or of the host that runs this incarnation; `decode` has checked its writer."""
        return event.source == WATCHDOG or self._hosts.host_of(event.agent, event.epoch) == event.source

    async def run(self) -> NoReturn:
        """Look at the keys whenever agents have come or gone, and twice a second."""
        while True:
            if await self._happens(CHECK_S):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LONGEST_S):
                        while await self._happens(COALESCE_S):
                            pass
            await self._apply()

    async def _happens(self, within_s: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._due.wait()
            self._due.clear()
            return True
        return False

    async def _apply(self) -> None:
        try:
            changes = await asyncio.to_thread(self._look)
        except UsageError as error:
            log.warning("key_unusable", problem=str(error))
            self._events.alert("critical", "key_unusable", f"{error}; until then the keys stay as they were")
            return
        if changes:
            self._pending.append(changes)
        if not self._pending:
            self.served = self._config is None
            return
        try:
            await self._server.reload(await asyncio.to_thread(lambda: self._keys.authorization))
        except (OSError, BusError) as error:
            log.warning("keys_not_reloaded", problem=str(error))
            return
        read, self._pending = self._pending, []
        for changes in read:
            self._report(changes)
            self._restart(changes.new)
        self.served = self._config is None

    def _look(self) -> KeyChanges:
        config, self._config = self._config, None
        if config is not None:
            self._keys.take(config)
        return self._keys.update()

    def _report(self, changes: KeyChanges) -> None:
        if changes.hosts:
            log.info("host_keys_changed", identities=sorted(changes.hosts))
        if names := sorted(changes.new - changes.hosts):
            text = f"new keys are in use for: {', '.join(names)}; what has the old ones is restarted"
            self._events.alert("info", "keys_replaced", text, identities=names)
        if names := sorted(changes.revoked - changes.hosts):
            text = f"these keys were removed, and what was connected with them is cut off: {', '.join(names)}"
            self._events.alert("info", "keys_revoked", text, identities=names)
