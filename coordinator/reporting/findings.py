"""The result of a check, as `doctor` reports it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Diagnosis", "Finding", "Level", "error", "ok", "skipped", "warning"]

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check. `remedy` is the action to take, empty if none is needed.

    `skipped` if the check was not possible; `text` is then the reason, and `level` has no meaning.
    """

    check: str
    level: Level
    text: str
    remedy: str = ""
    skipped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """`doctor --json`. `ok`: no check found an error. `running`: an `up` of this state directory runs."""

    ok: bool
    swarm: str
    nats: str
    state_dir: str
    running: bool
    findings: list[Finding]


def ok(check: str, text: str) -> Finding:
    return Finding(check=check, level="ok", text=text)


def warning(check: str, text: str, remedy: str) -> Finding:
    return Finding(check=check, level="warning", text=text, remedy=remedy)


def error(check: str, text: str, remedy: str) -> Finding:
    return Finding(check=check, level="error", text=text, remedy=remedy)


def skipped(check: str, why: str) -> Finding:
    """The finding of a check that was not possible, with the reason."""
    return Finding(check=check, level="ok", text=f"not checked: {why}", skipped=True)
