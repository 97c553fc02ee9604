"""cli.md: every command with its arguments, options, defaults, environment variables and exit codes."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Any

import typer

from bus import errors
from coordinator.cli import main as cli_main
from coordinator.cli.app import app
from docs.generate.markdown import code, page, sentence, table
from docs.generate.source import constants_of
from docs.generate.types import type_text

GROUPS = {
    "Run": ("up", "down"),
    "Inspect": ("status", "watch", "history", "health", "doctor"),
    "Control": ("kill", "restart", "revive", "add", "remove", "scale", "move", "rebalance", "config", "keys"),
    "Verify": ("explain", "audit", "replay", "chaos", "certify"),
    "Roles": ("sandbox", "agent", "watchdog", "provider", "mirror", "proxy", "metrics", "dashboard", "mcp"),
}
_WORDS = {Path: "path", str: "text", bool: "flag"}


def root() -> Any:
    """The command line as typer builds it."""
    return typer.main.get_command(app)


def text() -> str:
    """The page."""
    commands = root().commands
    listed = [name for names in GROUPS.values() for name in names]
    if sorted(listed) != sorted(commands):
        raise LookupError(f"GROUPS of docs/generate/cli.py do not list the commands that exist: {sorted(commands)}")
    parts = [
        "[Commands](../ops/commands.md) explains what each command is for. An option takes precedence over its "
        "environment variable.",
        "## Exit codes",
        table(("code", "meaning"), _exit_codes()),
        "## Options of every command",
        "They stand before the command: `signalmesh --nats-creds FILE status`.",
        _options(root().params, typing.get_type_hints(app.registered_callback.callback)),  # type: ignore[union-attr]
    ]
    for group, names in GROUPS.items():
        parts.append(f"## {group}")
        for name in names:
            parts += _command(name, commands[name])
    return page("Command line", *parts)


def _exit_codes() -> list[tuple[str, str]]:
    found = []
    for module in (errors, cli_main):
        found += [
            (str(int(getattr(module, name))), text)
            for name, text in constants_of(module).items()
            if name.startswith("EXIT_")
        ]
    return found


def _command(name: str, command: Any) -> list[str]:
    hints = typing.get_type_hints(command.callback)
    arguments = [item for item in command.params if item.param_type_name == "argument"]
    options = [item for item in command.params if item.param_type_name == "option"]
    names = [item.name.upper() if item.required else f"[{item.name.upper()}]" for item in arguments]
    usage = " ".join(["signalmesh", name, *names, "[OPTIONS]"])
    rows = [
        (code(item.name.upper()), _default(item.default), _choices(hints[item.name]) + sentence(item.help or ""))
        for item in arguments
    ]
    return [
        f"### {name}",
        *(" ".join(paragraph.split()) for paragraph in (command.help or "").split("\n\n")),
        f"```text\n{usage}\n```",
        table(("argument", "default", "meaning"), rows) if rows else "",
        _options(options, hints),
    ]


def _options(options: list[Any], hints: dict[str, Any]) -> str:
    rows = [
        (
            ", ".join(code(text) for text in (*item.opts, *item.secondary_opts)),
            "seconds" if item.metavar == "SECONDS" else _type(hints[item.name]),
            "" if item.is_flag and not item.default else _default(item.default),
            code(item.envvar or ""),
            sentence(item.help or ""),
        )
        for item in options
    ]
    return table(("option", "type", "default", "environment", "meaning"), rows)


def _plain(hint: Any) -> Any:
    """A type without `| None`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(item for item in typing.get_args(hint) if item is not type(None))
    return hint


def _type(hint: Any) -> str:
    plain = _plain(hint)
    return _WORDS.get(plain) or type_text(plain).replace('"', "")


def _choices(hint: Any) -> str:
    """The values that an argument may have, where they are listed."""
    plain = _plain(hint)
    return f"One of {_type(plain)}. " if typing.get_origin(plain) is typing.Literal else ""


def _default(value: Any) -> str:
    return "" if value is None else code(f"{value:g}" if isinstance(value, float) else str(value))
