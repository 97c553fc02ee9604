"""What a check has found: the form in which `doctor` reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Diagnosis", "Finding", "Level", "error", "ok", "skipped", "warning"]

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at. `remedy` says what to do, and is empty where nothing is to be done.

    `made` is false for a check that could not be made; `text` then says why, and `level` says nothing of its subject.
    """

    check: str
    level: Level
    text: str
    remedy: str = ""
    made: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """`doctor --json`. `ok`: no error was found. `running`: an `up` of this state directory runs."""

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
    """The check could not be made, and why."""
    return Finding(check=check, level="ok", text=f"not checked: {why}", made=False)
