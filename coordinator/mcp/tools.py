"""The tools: their names, what they are for, their schemas, and the functions that answer."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from coordinator.audit.models import Audit
from coordinator.config.convert import similar
from coordinator.explain.models import Explanation
from coordinator.mcp import commands, readers
from coordinator.mcp.answers import Answer, DecisionList, MemoryList, SandboxList, ToolFailed
from coordinator.mcp.arguments import (
    AuditArguments,
    DecisionsArguments,
    ExplainArguments,
    HistoryArguments,
    MemoryArguments,
    NoArguments,
    ReplayArguments,
    parse_arguments,
)
from coordinator.mcp.commands import Progress
from coordinator.mcp.swarm import ServedSwarm
from coordinator.monitor.history import History
from coordinator.monitor.models import Status
from coordinator.replay.models import Replay
from coordinator.reporting.findings import Diagnosis

Run = Callable[[ServedSwarm, Any, Progress], Coroutine[Any, Any, Answer[Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """One tool. `result` is the type of the result in its answer."""

    name: str
    title: str
    description: str
    arguments: type
    result: Any
    run: Run
    question: str = ""
    """What a person is asked before it acts; empty: it only reads."""

    def input_schema(self) -> dict[str, Any]:
        """The JSON Schema of the arguments."""
        return {**_schema(self.arguments), "additionalProperties": False}

    def output_schema(self) -> dict[str, Any]:
        """The JSON Schema of the structured content."""
        return _schema(Answer[self.result])  # type: ignore[name-defined]


def _schema(cls: Any) -> dict[str, Any]:
    """A schema whose root is the object itself: clients expect `type` there."""
    schema = msgspec.json.schema(cls)
    definitions = schema["$defs"]
    root = definitions.pop(schema["$ref"].rpartition("/")[2])
    return {**root, "$defs": definitions} if definitions else root


def _at_once(read: Callable[[ServedSwarm, Any], Coroutine[Any, Any, Answer[Any]]]) -> Run:
    return lambda swarm, arguments, _: read(swarm, arguments)


READ_ONLY = (
    ToolSpec(
        name="swarm_status",
        title="Status of the swarm",
        description="What runs: agents with state, epoch, pid, sandbox and lag; sandboxes, watchdogs, mirror, and how "
        "many decisions there are. Equal to `signalmesh status --json`.",
        arguments=NoArguments,
        result=Status,
        run=_at_once(readers.read_status),
    ),
    ToolSpec(
        name="decisions",
        title="Decisions",
        description="Stored decisions with sequence, headers and payload: the newest, the newest of a symbol, or one "
        "by id. Oldest first, as `signalmesh history decision --json` shows them.",
        arguments=DecisionsArguments,
        result=DecisionList,
        run=_at_once(readers.read_decisions),
    ),
    ToolSpec(
        name="explain",
        title="Why a decision was made",
        description="Computes one decision again from the stored messages: votes, weights, pools, quorum, risk, size, "
        "which voter alone would have flipped it, and whether the result has the published bytes. Equal to "
        "`signalmesh explain --json`.",
        arguments=ExplainArguments,
        result=Explanation,
        run=_at_once(readers.read_explanation),
    ),
    ToolSpec(
        name="history",
        title="Stored messages of a kind",
        description="Messages of one kind in the mirror's file, oldest first; works while the bus is down. Kind "
        "lifecycle has deaths and recoveries, alert what needs attention. Equal to `signalmesh history KIND --json`.",
        arguments=HistoryArguments,
        result=History,
        run=_at_once(readers.read_kind),
    ),
    ToolSpec(
        name="memory",
        title="Shared memory",
        description="The last output of each agent under its memory key (swarm/AGENT/KEY), exactly as published: one "
        "by key, or all that begin with a prefix.",
        arguments=MemoryArguments,
        result=MemoryList,
        run=_at_once(readers.read_memory),
    ),
    ToolSpec(
        name="audit",
        title="Audit of everything stored",
        description="Checks the whole stream: nothing lost, duplicated or out of order; snapshots, registry, rounds "
        "and mirror match. Reports progress, and can be cancelled. Equal to `signalmesh audit --json`.",
        arguments=AuditArguments,
        result=Audit,
        run=commands.audit,
    ),
    ToolSpec(
        name="replay",
        title="Replay of the recorded inputs",
        description="Runs the recorded inputs through the same agents again and compares every output with the "
        "recorded one. Reports progress, and can be cancelled. Equal to `signalmesh replay --json`.",
        arguments=ReplayArguments,
        result=Replay,
        run=commands.replay,
    ),
    ToolSpec(
        name="sandboxes",
        title="Sandboxes",
        description="Each sandbox with its host, its agents, uptime, memory, processes and cost, as far as they are "
        "measured. Equal to the sandboxes of `signalmesh status --json`.",
        arguments=NoArguments,
        result=SandboxList,
        run=_at_once(readers.read_sandboxes),
    ),
    ToolSpec(
        name="doctor",
        title="Checks, with remedies",
        description="Checks everything that a swarm needs, running or not, and names remedies. Changes nothing. Equal "
        "to `signalmesh doctor --json`.",
        arguments=NoArguments,
        result=Diagnosis,
        run=_at_once(readers.read_diagnosis),
    ),
)


def parse_call(tools: Mapping[str, ToolSpec], name: str, given: Mapping[str, Any] | None) -> tuple[ToolSpec, Any]:
    """The tool of a call, and its arguments.

    Raises:
        ToolFailed: there is no such tool, or an argument is wrong.
    """
    if name not in tools:
        hint = similar(name, tools)
        raise ToolFailed(f"{name[:100]}: there is no such tool{hint}; expected one of {', '.join(tools)}")
    return tools[name], parse_arguments(name, given, tools[name].arguments)
