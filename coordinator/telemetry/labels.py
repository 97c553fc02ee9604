"""The names that become label values of metrics. Their number is bounded: any publisher could else create series."""

from __future__ import annotations

import re
from collections.abc import Iterable

from bus.messages.subjects import RESERVED_NAMES

OTHER = "(other)"
"""The label of all names beyond the bound."""
MAX_UNKNOWN_WRITERS = 100
"""Names outside the configuration that get a label of their own."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Names:
    """Which names get a label of their own: those that are `known`, and the first MAX_UNKNOWN_WRITERS others."""

    def __init__(self, known: Iterable[str]) -> None:
        self.known = frozenset(known) | RESERVED_NAMES
        self.removed: frozenset[str] = frozenset()
        """Those of the known ones whose processes are not there any more."""
        self._unknown_writers: set[str] = set()

    def learn(self, names: Iterable[str]) -> None:
        """These are known too from now on."""
        self.known |= frozenset(names)

    def label(self, name: str) -> str:
        """`name`, or OTHER."""
        if name in self.known or name in self._unknown_writers:
            return name
        if len(self._unknown_writers) >= MAX_UNKNOWN_WRITERS or not _NAME.fullmatch(name):
            return OTHER
        self._unknown_writers.add(name)
        return name
