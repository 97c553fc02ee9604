"""events.md: every alert code and every log event, as the code publishes and writes them."""

from __future__ import annotations

import ast
import re
import typing
from collections.abc import Iterator
from pathlib import Path

from bus.messages import Severity
from coordinator.runner.child_process import STOP_GRACE_S
from coordinator.runner.liveness import WATCHED_KINDS
from coordinator.sandboxes.provider import CRITICAL_ALERTS
from docs.generate.alert_codes import MEANINGS
from docs.generate.markdown import code, page, table
from docs.generate.source import ROOT, called, calls, literal, product, relative_path, tree

SEVERITIES = typing.get_args(Severity)
PUBLISHERS = re.compile(r"_?(alert|on_alert|tick_alert)")
"""Functions that publish an alert: of `severity, code, ...`, or of `code, text` in coordinator/sandboxes."""
LEVELS = ("debug", "info", "warning", "error", "exception", "critical")
CODE = re.compile(r"[a-z]+(_[a-z]+)*")
SANDBOXES = ROOT / "coordinator" / "sandboxes"
KINDS_OF_SUFFIX = {"_died": tuple(STOP_GRACE_S), "_unresponsive": WATCHED_KINDS}
"""`up` builds the codes of its child processes from their kind."""


def text() -> str:
    """The page.

    Raises:
        LookupError: an alert code has no meaning in MEANINGS, or one there is no code any more.
    """
    alerts = alert_codes()
    if alerts.keys() != MEANINGS.keys():
        raise LookupError(f"docs/generate/alert_codes.py: not in both: {sorted(alerts.keys() ^ MEANINGS.keys())}")
    rows = [
        (code(name), _sorted(found, SEVERITIES), MEANINGS[name], _files(found))
        for name, found in sorted(alerts.items())
    ]
    logged = [(code(name), _sorted(found, LEVELS), _files(found)) for name, found in sorted(log_events().items())]
    return page(
        "Alert codes and log events",
        "[Logs and alerts](../ops/alerts.md) says where alerts and logs go. [Runbooks](../runbooks/index.md) say what "
        "to do.",
        "## Alert codes",
        "An agent of your own can publish further codes by `self.alert(...)`.",
        table(("code", "severity", "meaning", "published in"), rows),
        "## Log events",
        "The event is the field `event` of a log line. An alert is logged too: the event is its code, the level "
        "warning. A lifecycle event is logged with its name as the event and level info.",
        table(("event", "level", "written in"), logged),
    )


def _sorted(found: list[tuple[str, str]], order: tuple[str, ...]) -> str:
    return ", ".join(sorted({level for level, _ in found}, key=order.index))


def _files(found: list[tuple[str, str]]) -> str:
    return ", ".join(code(file) for file in sorted({file for _, file in found}))


def alert_codes() -> dict[str, list[tuple[str, str]]]:
    """Code -> severities and files in which it is published.

    Raises:
        LookupError: a call whose code cannot be read from the source.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for path in product():
        for call in calls(path):
            if PUBLISHERS.fullmatch(called(call)):
                for severity, name in _alerts_of(call, path):
                    found.setdefault(name, []).append((severity, relative_path(path)))
    return found


def _alerts_of(call: ast.Call, path: Path) -> Iterator[tuple[str, str]]:
    arguments = [item for argument in call.args for item in _unpacked(argument, path)]
    if len(arguments) >= 2 and literal(arguments[0]) in SEVERITIES:
        severity, given = literal(arguments[0]), arguments[1]
    elif path.is_relative_to(SANDBOXES) and len(arguments) == 2 and CODE.fullmatch(literal(arguments[0])):
        name = literal(arguments[0])
        yield "critical" if name in CRITICAL_ALERTS else "warning", name
        return
    else:
        return  # it only passes on what it was given, or is no alert
    names = list(_codes(given, path))
    if not names:
        raise LookupError(f"{relative_path(path)}:{call.lineno}: the code of this alert is no literal")
    for name in names:
        yield severity, name


def _unpacked(argument: ast.expr, path: Path) -> list[ast.expr]:
    """The arguments that `*NAME` stands for, if it is a constant of the module; else the argument."""
    if isinstance(argument, ast.Starred) and isinstance(argument.value, ast.Name):
        for item in tree(path).body:
            target = item.target if isinstance(item, ast.AnnAssign) else None
            if isinstance(target, ast.Name) and target.id == argument.value.id:
                value = item.value if isinstance(item, ast.AnnAssign) else None
                return value.elts if isinstance(value, ast.Tuple) else [argument]
    return [argument]


def _codes(given: ast.expr, path: Path) -> Iterator[str]:
    """The codes that an expression can be: a literal, a suffix of a child's kind, or a name assigned from literals."""
    if name := literal(given):
        yield name
    elif isinstance(given, ast.JoinedStr):
        suffix = literal(given.values[-1])
        yield from (f"{kind}{suffix}" for kind in KINDS_OF_SUFFIX.get(suffix, ()))
    elif isinstance(given, ast.Name):
        for item in ast.walk(tree(path)):
            if isinstance(item, ast.Assign):
                yield from _assigned(item, given.id)


def _assigned(assignment: ast.Assign, name: str) -> Iterator[str]:
    for target in assignment.targets:
        pairs = [(target, assignment.value)]
        if isinstance(target, ast.Tuple) and isinstance(assignment.value, ast.Tuple):
            pairs = list(zip(target.elts, assignment.value.elts, strict=False))
        for left, right in pairs:
            if isinstance(left, ast.Name) and left.id == name and literal(right):
                yield literal(right)


def log_events() -> dict[str, list[tuple[str, str]]]:
    """Event -> levels and files in which it is logged."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path in product():
        for call in calls(path):
            name = literal(call.args[0]) if call.args else ""
            if name and called(call) in LEVELS and isinstance(call.func, ast.Attribute):
                of = call.func.value
                if isinstance(of, ast.Name) and of.id == "log":
                    level = "error" if called(call) == "exception" else called(call)
                    found.setdefault(name, []).append((level, relative_path(path)))
    return found
