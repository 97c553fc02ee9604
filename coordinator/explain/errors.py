"""Why a decision cannot be explained: each error is one line with what was expected and what to do."""

from __future__ import annotations

from collections.abc import Sequence

from bus.errors import MeshError, UsageError
from bus.utils.terminal import escape_control

MOST_NAMED = 8
"""Ids that an error lists."""


class _OneLine(Exception):
    """Repeats ids and symbols, which may hold any character, in one line."""

    def __init__(self, text: str) -> None:
        super().__init__(escape_control(text))


class UnknownRound(_OneLine, UsageError):
    """There is no such decision, or the text names none."""


class AmbiguousRound(_OneLine, UsageError):
    """Several decisions match."""

    def __init__(self, wanted: str, found: Sequence[str]) -> None:
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        listed = ", ".join(found[:MOST_NAMED]) + more
        super().__init__(f"explain {wanted}: {len(found)} decisions match, expected one; name it: {listed}")


class RoundOpen(_OneLine, MeshError):
    """The round has no decision yet."""


class RoundRemoved(_OneLine, MeshError):
    """The decision, or a message that it follows from, is no longer stored."""


class RowChanged(MeshError):
    """A row of the mirror's file was changed."""

    def __init__(self, file: str, sequence: int) -> None:
        super().__init__(
            f"mirror {file}: message {sequence} does not match its checksum, so nothing can be computed from it; "
            f"`signalmesh audit --file {file}` lists all such rows; read the bus instead, without --file"
        )
