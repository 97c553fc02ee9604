"""The generated pages of docs/reference/."""

from __future__ import annotations

from collections.abc import Callable

from docs.generate import cli, configuration, events, metrics
from docs.generate.source import ROOT

DIRECTORY = ROOT / "docs" / "reference"
PAGES: dict[str, Callable[[], str]] = {
    "cli.md": cli.text,
    "configuration.md": configuration.text,
    "events.md": events.text,
    "metrics.md": metrics.text,
}


def write() -> None:
    """Write every page, and remove those that are not generated any more."""
    DIRECTORY.mkdir(exist_ok=True)
    texts = {name: text() for name, text in PAGES.items()}
    for stale in {path.name for path in DIRECTORY.glob("*.md")} - set(texts):
        (DIRECTORY / stale).unlink()
    for name, content in texts.items():
        (DIRECTORY / name).write_text(content, "utf-8")
