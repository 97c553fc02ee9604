"""What the parts that keep sandboxes report to the process that runs them."""

from __future__ import annotations

from typing import Protocol

__all__ = ["SandboxEvents"]


class SandboxEvents(Protocol):
    """Receives what happens to the sandboxes of the provider."""

    def alert(self, code: str, text: str, *, sandbox: str | None = None) -> None:
        """A person should know this about the sandbox of this name in the configuration."""

    def host_ended(self, host: str, reason: str) -> None:
        """The host of this name runs no more."""

    def instances_changed(self) -> None:
        """A sandbox was created, adopted or ended, or could not be ended."""
