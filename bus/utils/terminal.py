"""Escapes control characters in received text, so that a terminal does not obey them."""

from __future__ import annotations

import re

__all__ = ["escape_control"]

_ACTIVE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that a terminal obeys: controls, and Unicode's marks of the writing direction (Bidi). Also halves of
characters (surrogates), which cannot be printed."""


def escape_control(text: str, keep: str = "") -> str:
    """`text` with its control characters escaped; characters of `keep` stay.

    A character is written as in JSON, by its number in hexadecimal: inside a JSON string the result means the same.
    """
    return _ACTIVE.sub(lambda found: found[0] if found[0] in keep else f"\\u{ord(found[0]):04x}", text)
