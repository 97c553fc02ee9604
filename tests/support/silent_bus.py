"""A bus whose connection never breaks and delivers nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bus.messages.subjects import Subjects


class _SilentBus:
    """What an observer needs of a connection."""

    def __init__(self) -> None:
        self.subjects = Subjects("swarm")

    def watch_connection(self, down: Callable[[], None], up: Callable[[], Any]) -> None:
        pass


def silent() -> Any:
    return _SilentBus()
