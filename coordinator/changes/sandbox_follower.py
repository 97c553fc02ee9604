"""What the provider follows of the changes made at run time: the sandboxes that it is to keep.

One that was removed is kept until the watchdog reports that no agent is left there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import structlog

from bus.errors import ConfigError, MessageError
from bus.interface import ReceivedMessage
from bus.messages import Lifecycle, VotingConfig
from bus.messages.subjects import WATCHDOG
from bus.nats.bus import NatsBus
from coordinator.changes.removals import is_reported
from coordinator.config.changes import Changes, changed_sandboxes
from coordinator.config.settings import SandboxSpec, SwarmConfig
from coordinator.supervisor.config_publisher import changes_in, read_config

__all__ = ["SandboxFollower"]

log = structlog.get_logger("signalmesh.provider")


class SandboxFollower:
    """Calls `on_change` with the sandboxes at E2B that are to be kept, by name, whenever these have changed."""

    def __init__(self, config: SwarmConfig, on_change: Callable[[Mapping[str, SandboxSpec]], None]) -> None:
        """`config` is that of swarm.toml."""
        self._config, self._on_change = config, on_change
        self._changes = Changes(revision=-1)
        self._known = {spec.name: spec for spec in config.sandboxes}
        """The newest table of each sandbox."""
        self._leaving: set[str] = set()
        """Those that were removed, and still have agents."""

    async def listen(self, bus: NatsBus) -> None:
        """Receive the changes that are to come.

        Raises:
            BusError: the bus does not answer.
        """

        async def on_config(received: ReceivedMessage) -> None:
            with contextlib.suppress(MessageError):
                message = received.decode(bus.subjects)
                if isinstance(message, VotingConfig) and self._take(changes_in(message)):
                    self._tell()

        async def on_lifecycle(received: ReceivedMessage) -> None:
            with contextlib.suppress(MessageError):
                event = received.decode(bus.subjects)
                if isinstance(event, Lifecycle) and event.event == "removed" and self._forget(event.agent):
                    self._tell()

        await bus.listen(bus.subjects.config(WATCHDOG), on_config)
        await bus.listen(bus.subjects.lifecycle("*", WATCHDOG), on_lifecycle)

    async def look(self, bus: NatsBus) -> None:
        """Read the newest changes: a message may have been missed while the connection was down.

        Raises:
            BusError: the bus does not answer.
        """
        changed = self._take(changes_in(await read_config(bus)))
        for name in [*self._leaving]:
            removed = self._changes.removed_sandboxes.get(name)
            if removed is not None and await is_reported(bus, name, removed.after):
                changed = self._forget(name) or changed
        if changed:
            self._tell()

    def _take(self, changes: Changes) -> bool:
        """Take over newer changes; whether they are."""
        if changes.revision <= self._changes.revision:
            return False
        try:
            present = {spec.name: spec for spec in changed_sandboxes(self._config, changes)}
        except ConfigError as error:
            log.error("changes_not_possible", problem=str(error))  # noqa: TRY400 - the watchdog has accepted them
            return False
        self._changes = changes
        self._known |= present
        self._leaving = {name for name in self._known if name not in present and name in changes.removed_sandboxes}
        return True

    def _forget(self, name: str) -> bool:
        """Nothing is left in this sandbox; whether it was still kept."""
        if name not in self._leaving:
            return False
        self._leaving.remove(name)
        del self._known[name]
        return True

    def _tell(self) -> None:
        self._on_change({name: spec for name, spec in self._known.items() if spec.e2b is not None})
