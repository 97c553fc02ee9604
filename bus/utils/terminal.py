"""What was received from anybody, made fit for a terminal: shown, and not obeyed."""

from __future__ import annotations

import re

__all__ = ["escape_control"]

_ACTIVE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal does not show but obeys: controls, and marks that turn the direction of writing (Unicode's Bidi).
And halves of characters, which cannot be printed at all."""


def escape_control(text: str, keep: str = "") -> str:
    """`text`, received from anybody, with what a terminal would obey written out; characters of `keep` stay.

    A character is written as in JSON, by its number in hexadecimal: inside a JSON string the result says the same.
    """
    return _ACTIVE.sub(lambda found: found[0] if found[0] in keep else f"\\u{ord(found[0]):04x}", text)
