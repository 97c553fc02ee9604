"""Texts of exceptions that code of users raises: of any length, with any characters, or none at all."""

from __future__ import annotations

__all__ = ["MAX_ERROR_TEXT", "describe_error", "shorten"]

MAX_ERROR_TEXT = 1000
"""Characters of the longest text of an exception that is reported."""
MAX_NESTED = 100
"""Groups of exceptions in one another that are looked into."""


def describe_error(error: BaseException) -> str:
    """The type and the text of `error`, bounded and encodable."""
    text = _text(error)
    name = shorten(type(error).__name__, 100)
    described = f"{name}: {text}" if text else name
    inner = _first_inner(error)
    return described if inner is None else shorten(f"{described}: {describe_error(inner)}", MAX_ERROR_TEXT + 200)


def _first_inner(error: BaseException) -> BaseException | None:
    """The first exception of a group, which a TaskGroup raises: its own text has only the number of them."""
    found = error
    try:
        for _ in range(MAX_NESTED):
            if not isinstance(found, BaseExceptionGroup):
                return None if found is error else found
            found = found.exceptions[0]
    except BaseException:  # noqa: BLE001 - a class of users may define `exceptions` anew
        return None
    return None


def _text(error: BaseException) -> str:
    """The text of `error`, bounded and encodable. Reading it may raise: then the text is what it raised."""
    try:
        text = str(error)
    except BaseException as another:  # noqa: BLE001 - a `__str__` of users may raise anything
        return f"(its text cannot be read: __str__ raised {shorten(type(another).__name__, 100)})"
    return shorten(text, MAX_ERROR_TEXT)


def shorten(text: str, limit: int) -> str:
    """The beginning of `text`, with a note of what was left out; halves of characters (surrogates) are escaped."""
    # A subclass of str may be returned by `__str__`, with methods of its own.
    plain = str.__str__(text)
    # Escaped before it is cut: half a character becomes six.
    escaped = plain[: limit + 1].encode("utf-8", "backslashreplace").decode("utf-8")
    return escaped if len(escaped) <= limit else f"{escaped[:limit]}… ({len(plain)} characters)"
