"""Whose network a sandbox sees: counters of bytes mean something only where it is nobody else's."""

from __future__ import annotations

from collections.abc import Mapping

from agents.probe import network_of_here
from bus.messages import SandboxUsage

__all__ = ["HERE", "shared_with"]

HERE = "this machine"


def shared_with(name: str, usages: Mapping[str, SandboxUsage | None]) -> list[str] | None:
    """Who else has the network of `name`: HERE, other sandboxes; None where that is not told."""
    usage = usages.get(name)
    if usage is None or usage.network is None:
        return None
    others = [other for other, theirs in usages.items() if other != name and theirs and theirs.network == usage.network]
    return [*([HERE] if usage.network == network_of_here() else []), *others]
