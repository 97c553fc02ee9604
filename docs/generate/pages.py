"""The generated pages of docs/reference/."""

from __future__ import annotations

from collections.abc import Callable

from docs.generate import api, cli, configuration, environment, events, messages, metrics, permissions, protocol
from docs.generate.source import ROOT

DIRECTORY = ROOT / "docs" / "reference"
PAGES: dict[str, Callable[[], str]] = {
    "api.md": api.text,
    "cli.md": cli.text,
    "configuration.md": configuration.text,
    "environment.md": environment.text,
    "events.md": events.text,
    "messages.md": messages.text,
    "metrics.md": metrics.text,
    "permissions.md": permissions.text,
    "protocol.md": protocol.text,
}


def write() -> None:
    """Write every page, and remove those that are not generated any more."""
    DIRECTORY.mkdir(exist_ok=True)
    texts = {name: text() for name, text in PAGES.items()}
    for stale in {path.name for path in DIRECTORY.glob("*.md")} - set(texts):
        (DIRECTORY / stale).unlink()
    for name, content in texts.items():
        (DIRECTORY / name).write_text(content, "utf-8")
