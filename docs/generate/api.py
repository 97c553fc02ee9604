"""api.md: the import paths that are a contract, documented by mkdocstrings, and the table of agent kinds."""

from __future__ import annotations

from typing import Any

from agents.agent import published_kinds
from agents.spec import AgentSpec, load_class
from coordinator.config.tables import ALL_KINDS
from docs.generate.markdown import code, page, sentence, table


def text() -> str:
    """The page."""
    rows = []
    for kind, path in sorted(ALL_KINDS.items()):
        cls: Any = load_class(AgentSpec(name=kind, kind=kind, class_path=path))
        first = sentence((cls.__doc__ or "").split("\n\n")[0])
        listens, publishes = (", ".join(map(code, kinds)) for kinds in (cls.listens, published_kinds(cls)))
        rows.append((code(kind), code(path), listens, publishes, first))
    return page(
        "Agent API",
        "[Write an agent](../guides/agents.md) is the guide. `agents.agent`, `bus.messages` and `bus.errors` are the "
        "import paths that do not change.",
        "## Agent kinds",
        "[swarm.toml](configuration.md) has the options of each kind.",
        table(("kind", "class", "listens", "publishes", "what it does"), rows),
        "## agents.agent",
        "::: agents.agent\n    options: { members: [Agent, published_kinds] }",
        "## bus.messages",
        "The payloads are described in [Message schemas](messages.md).",
        "::: bus.messages",
        "## bus.errors",
        "::: bus.errors",
    )
