"""What a run of `up` has achieved: whether any decision was made, and which agents are quarantined at its end."""

from __future__ import annotations

import time

from bus.errors import MessageError
from bus.interface import Bus, Closable, ReceivedMessage
from bus.messages import Lifecycle
from coordinator.config.settings import ResolvedSwarm

LEAST_RUN_S = 10.0
"""A run that a signal ends sooner may have no decision: nobody has waited for one."""


class Outcome:
    """Receives the decisions and lifecycle events of the swarm of `config`."""

    def __init__(self, config: ResolvedSwarm) -> None:
        self._decides = bool(config.deciders)
        self._started_at = time.monotonic()
        self._decided = False
        self._first: Closable | None = None
        self._quarantined: dict[str, str] = {}

    async def listen(self, bus: Bus) -> None:
        """Begin to receive."""
        self._first = await bus.listen(bus.subjects.all_of("decision"), self._on_decision)

        async def on_lifecycle(received: ReceivedMessage) -> None:
            try:
                event = received.decode(bus.subjects)
            except MessageError:
                return
            if isinstance(event, Lifecycle) and event.event == "quarantined":
                self._quarantined[event.agent] = event.reason or ""
            elif isinstance(event, Lifecycle) and event.event in ("revived", "ready"):
                self._quarantined.pop(event.agent, None)

        await bus.listen(bus.subjects.all_of("lifecycle"), on_lifecycle)

    async def _on_decision(self, _: ReceivedMessage) -> None:
        self._decided = True
        if self._first is not None:  # one is enough: later ones need not be received twice
            first, self._first = self._first, None
            await first.close()

    def problems(self, *, signalled: bool) -> list[str]:
        """What went wrong, one line each; `signalled`: a signal has ended the run, not its own time."""
        found = [
            f"agent {name} is quarantined: {reason}; fix the cause, then start the swarm again"
            for name, reason in sorted(self._quarantined.items())
        ]
        short = signalled and time.monotonic() - self._started_at < LEAST_RUN_S
        if self._decides and not self._decided and not short:
            found.append("no decision was made in this run; the logs in the state directory show what the agents did")
        return found
