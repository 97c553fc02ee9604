"""Who reports lifecycle events in tests, as in a swarm."""

from __future__ import annotations

__all__ = ["reporter_of"]

OF_ITSELF = ("restored", "ready", "skipped", "drained")


def reporter_of(event: str, agent: str) -> str:
    """The writer of this event of `agent`, which runs in `base`."""
    if event in OF_ITSELF:
        return agent
    if event == "rebuilt":
        return "up"
    return "base" if event in ("spawned", "exited") else "watchdog"
