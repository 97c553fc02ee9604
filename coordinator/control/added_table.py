"""The options of `add` as the table [agents.NAME] that they stand for."""

from __future__ import annotations

import math
import shlex
import tomllib
from collections.abc import Sequence
from typing import Any

from bus.errors import UsageError
from coordinator.config.credential_check import check_no_credentials
from coordinator.config.tables import MAX_WEIGHT


def added_table(
    agent: str,
    *,
    kind: str | None = None,
    class_: str | None = None,
    command: str | None = None,
    listens: Sequence[str] | None = None,
    publishes: Sequence[str] | None = None,
    sandbox: str | None = None,
    weight: float | None = None,
    options: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The table, with what is given; the watchdog checks its values.

    Raises:
        UsageError: not exactly one of --kind, --class and --command is given, the weight is out of range, an option is
            no KEY=VALUE, or something looks like a credential.
    """
    ways = {"--class": class_, "--kind": kind, "--command": command}
    given = [way for way, value in ways.items() if value is not None]
    if len(given) != 1:
        found = f"{' and '.join(given)} are given" if given else "none is given"
        raise UsageError(f"{', '.join(ways)}: expected one of them, {found}")
    if weight is not None and not 0 <= weight <= MAX_WEIGHT:
        raise UsageError(f"--weight {weight:g}: expected a number from 0 to {MAX_WEIGHT}; 1 is that of other agents")
    values = {
        "class": class_,
        "kind": kind,
        "command": None if command is None else _words(command),
        "listens": [*listens] if listens else None,
        "publishes": [*publishes] if publishes else None,
        "sandbox": sandbox,
        "weight": weight,
        "options": dict(parse_option(text) for text in options) if options else None,
    }
    table = {key: value for key, value in values.items() if value is not None}
    check_no_credentials(f"add {agent}", table)  # before it is sent anywhere
    return table


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--command {command!r}: {error}") from None


def parse_option(text: str) -> tuple[str, Any]:
    """KEY=VALUE; a value that is none of TOML is a text."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--option {text!r}: expected KEY=VALUE")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value
    if isinstance(parsed, float) and not math.isfinite(parsed):
        raise UsageError(f"--option {text!r}: expected a finite number")
    return key.strip(), parsed
