"""Which sandbox hosts are heard on the bus, and when last."""

from __future__ import annotations

import time

from bus.errors import MessageError
from bus.interface import ReceivedMessage
from bus.messages import Heartbeat, decode
from bus.nats.bus import NatsBus

__all__ = ["Hosts"]


class Hosts:
    """Listens to heartbeats over `bus`; times are monotonic."""

    def __init__(self, bus: NatsBus) -> None:
        self._bus = bus
        self._received: dict[str, float] = {}

    async def start(self) -> None:
        await self._bus.listen(f"{self._bus.subjects.ns}.heartbeat.*", self._on_heartbeat)

    @property
    def live(self) -> bool:
        """Whether we can hear anybody."""
        return self._bus.live

    def received_at(self, name: str) -> float:
        """When that host was last heard; long ago where it never was."""
        return self._received.get(name, -1e9)

    def silent_s(self, name: str) -> float:
        return time.monotonic() - self.received_at(name)

    async def _on_heartbeat(self, received: ReceivedMessage) -> None:
        try:
            heartbeat = decode(self._bus.subjects.parse(received.subject), received.subject, received.data)
        except MessageError:
            return
        assert isinstance(heartbeat, Heartbeat)
        if heartbeat.role == "sandbox":
            self._received[heartbeat.agent] = time.monotonic()
