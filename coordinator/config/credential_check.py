"""Refuses what looks like a credential where it would be stored for others to read.

It recognises names and forms. A secret without either looks like any other text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bus.errors import UsageError
from bus.observability.logging import SEED, USERINFO, is_secret

__all__ = ["check_no_credentials"]

_KEY = re.compile(r"(^|[_-])(key|pwd|pin)$", re.IGNORECASE)
_PLACE = re.compile(r"[_-](file|path|dir|env|var|variable|command|name|id)$", re.IGNORECASE)
"""Of the name of an option that says where a secret is."""
_NUMBERS = re.compile(r"seed$", re.IGNORECASE)
"""Names of secrets that as numbers are none."""
_ASSIGNMENT = re.compile(r"""([A-Za-z0-9_-]+)\s*=\s*["']?[^\s;&,$"']""")
"""Of a value, which is no variable of a shell."""
_FLAG = re.compile(r"--?[A-Za-z][A-Za-z0-9_-]*")
_FLAG_IN_TEXT = re.compile(rf"""(?:^|\s)({_FLAG.pattern})\s+["']?[^\s$"'-]""")
_FORMS = {
    "a password or a user name in a URL": USERINFO,
    "the seed of an nkey": SEED,
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY"),
    "a bearer token": re.compile(r"\bbearer\s+[\w.~+/=-]{8,}|\bauthorization\s*:\s*\S", re.IGNORECASE),
    "a JSON Web Token": re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+"),
    "the key of a service": re.compile(r"\b(AKIA[0-9A-Z]{16}|gh[pousr]_\w{20,}|sk-[\w-]{20,}|xox[abprs]-[\w-]{10,})"),
}
_REMEDY = (
    "what is added at run time is stored in the stream and in the state directory, which others may read; have the "
    "agent read it from a file, or from a variable of the environment of `up`, and give the name of that"
)


MAX_TEXT = 2000
"""Characters of an option or a word: the time of a look grows with their square, and a watchdog takes it."""


def check_no_credentials(what: str, table: Mapping[str, Any]) -> None:
    """Refuse a table of an agent whose command or options hold what looks like a credential; it is not shown.

    Raises:
        UsageError: they do.
    """
    command, options = table.get("command"), table.get("options")
    if isinstance(command, Sequence) and not isinstance(command, str):
        words = [word for word in command if isinstance(word, str)]
        for at, found in _in_words(words):
            raise UsageError(f"{what}: --command: word {at + 1} looks like {found}: {_REMEDY}")
    if isinstance(options, Mapping):
        for name, found in _in_options(options):
            raise UsageError(f"{what}: --option {name}: looks like {found}: {_REMEDY}")


def _in_words(words: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Words of a command, by their positions, and what they look like."""
    for at, word in enumerate(words):
        if found := _in_text(word):
            yield at, found
        elif _FLAG.fullmatch(word) and _names_secret(word) and words[at + 1 : at + 2]:
            yield at + 1, f"the value of {word}"


def _in_options(options: Mapping[Any, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in options.items():
        name = f"{before}{key}"
        if _holds_secret(str(key), value):
            yield name, "a secret by its name"
        elif isinstance(value, Mapping):
            yield from _in_options(value, f"{name}.")
        else:
            texts = value if isinstance(value, list) else [value]
            for item in texts:
                if isinstance(item, Mapping):
                    yield from _in_options(item, f"{name}.")
            yield from ((name, found) for text in texts if isinstance(text, str) and (found := _in_text(text)))


def _holds_secret(name: str, value: Any) -> bool:
    if isinstance(value, (bool, Mapping)) or value in ("", None) or not _names_secret(name):
        return False
    return isinstance(value, str) or not _NUMBERS.search(name)


def _names_secret(name: str) -> bool:
    return (is_secret(name) or _KEY.search(name) is not None) and not _PLACE.search(name)


def _in_text(text: str) -> str | None:
    """What a text looks like, if it looks like a credential, or holds one."""
    if len(text) > MAX_TEXT:
        return f"a text of {len(text)} characters, of which at most {MAX_TEXT} are looked through"
    for what, form in _FORMS.items():
        if form.search(text):
            return what
    for form in (_ASSIGNMENT, _FLAG_IN_TEXT):
        for match in form.finditer(text):
            if _names_secret(match[1]):
                return f"a value of {match[1]}"
    return None
