"""The arguments of the tools, and their check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, TypeVar

from msgspec import Meta

from bus.errors import ConfigError
from coordinator.config.convert import convert
from coordinator.mcp.answers import ToolFailed
from coordinator.mcp.swarm import Source

A = TypeVar("A")
MOST_ENTRIES = 500
"""Messages in one answer: an assistant reads all of it."""
Entries = Annotated[int, Meta(ge=1, le=MOST_ENTRIES, description="Maximum number of messages, the newest.")]
From = Annotated[
    Source, Meta(description="Where to read: auto is the bus, and the mirror's file while no bus answers.")
]
Symbol = Annotated[str, Meta(min_length=1, description="A symbol such as BTC/USD.")]
DecisionName = Annotated[
    str,
    Meta(
        min_length=1,
        description="A decision_id such as BTC/USD:research-1:42, the stream sequence of its message, or latest.",
    ),
]
Sequence = Annotated[int, Meta(ge=1, description="A stream sequence.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class NoArguments:
    """Nothing to choose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionsArguments:
    """The newest decisions, of one symbol if it is given; or the one that `decision` names."""

    decision: DecisionName | None = None
    symbol: Symbol | None = None
    limit: Entries = 20
    source: From = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainArguments:
    """Either `decision`, or `symbol` and `round`."""

    decision: DecisionName | None = None
    symbol: Symbol | None = None
    round: Annotated[int, Meta(description="The number of the round, with symbol.")] | None = None
    source: From = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryArguments:
    """Messages of one kind in the mirror's file."""

    kind: Annotated[
        str,
        Meta(
            description="market, headline, sentiment, signal, decision, timer, epoch, config, lifecycle, alert, "
            "or snapshot."
        ),
    ]
    since: (
        Annotated[
            str, Meta(description="A duration before now such as 10m or 2h, or a time such as 2026-07-12T04:00:00Z.")
        ]
        | None
    ) = None
    limit: Entries = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryArguments:
    """One entry by `key`, or all whose key begins with `prefix`."""

    key: Annotated[str, Meta(min_length=1, description="A key such as swarm/coordinator/decision.")] | None = None
    prefix: Annotated[str, Meta(description="The beginning of the keys to list; empty: all.")] = ""
    source: From = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditArguments:
    """The whole stream, or the whole file."""

    source: From = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayArguments:
    """The range of outputs to compare; the state is always built from the beginning."""

    first: Sequence = 1
    last: Sequence | None = None
    source: From = "auto"


def parse_arguments(tool: str, given: Mapping[str, Any] | None, cls: type[A]) -> A:
    """The arguments of a call.

    Raises:
        ToolFailed: an argument is unknown, of another type, or out of range.
    """
    given = given or {}
    for one in fields(cls):  # type: ignore[arg-type]
        if one.default is MISSING and one.default_factory is MISSING and one.name not in given:
            raise ToolFailed(f"{tool}: argument {one.name}: expected a value; call {tool} again with it")
    try:
        return convert(given, cls, tool, "")
    except ConfigError as error:
        problem = error.problem.replace("unknown key", "unknown argument")
        raise ToolFailed(
            f"{tool}: argument {error.key}: {problem}; call {tool} again as its input schema says"
        ) from None
