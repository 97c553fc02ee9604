"""Message ids that no other writer can have used before: `{id}:{random}` in place of an id that was taken.

The stream takes a message for a duplicate by its id alone, whoever has published the first one.
"""

from __future__ import annotations

import re
import secrets

__all__ = ["is_id", "is_substitute", "substitute"]

RANDOM_BYTES = 8
_END = re.compile(r":[0-9a-f]{16}\Z")


def substitute(message_id: str) -> str:
    """An id in place of `message_id`, or of another substitute of it."""
    return f"{_END.sub('', message_id)}:{secrets.token_hex(RANDOM_BYTES)}"


def is_substitute(found: str, ordinary: str) -> bool:
    """Whether `found` is an id in place of `ordinary`."""
    return found.startswith(ordinary) and _END.fullmatch(found, len(ordinary)) is not None


def is_id(found: str, ordinary: str) -> bool:
    """Whether `found` is this id, or one in its place."""
    return found == ordinary or is_substitute(found, ordinary)
