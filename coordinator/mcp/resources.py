"""The resources and prompts: what can be read by an address, and questions that a person picks from a list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import orjson

from coordinator.mcp.answers import ToolFailed
from coordinator.mcp.arguments import DecisionsArguments, NoArguments
from coordinator.mcp.readers import read_agent, read_decisions, read_status
from coordinator.mcp.report import markdown_report
from coordinator.mcp.swarm import ServedSwarm

STATUS = "swarm://status"
REPORT = "swarm://report"
DECISION = "swarm://decisions/"
AGENT = "swarm://agents/"
JSON = "application/json"
MARKDOWN = "text/markdown"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceSpec:
    """A resource, or, with `{…}` in its address, a template of some."""

    uri: str
    name: str
    description: str
    mime_type: str = JSON


RESOURCES = (
    ResourceSpec(
        uri=STATUS,
        name="status",
        description="What the tool swarm_status answers. An update is sent when a process, its state or its sandbox "
        "has changed; not when only counters and ages have.",
    ),
    ResourceSpec(
        uri=REPORT,
        name="report",
        description="The state, the newest decisions, and the alerts, deaths and recoveries of the last hour.",
        mime_type=MARKDOWN,
    ),
)
TEMPLATES = (
    ResourceSpec(
        uri=f"{DECISION}{{id}}",
        name="decision",
        description="One stored decision by its decision_id (percent-encoded), by the sequence of its message, or the "
        "latest.",
    ),
    ResourceSpec(
        uri=f"{AGENT}{{name}}", name="agent", description="One agent: its part of the status, and its memory."
    ),
)


async def read_resource(swarm: ServedSwarm, uri: str) -> tuple[str, str]:
    """The text of a resource, and its type.

    Raises:
        ToolFailed: there is no such resource.
        MeshError: it cannot be read.
    """
    if uri == REPORT:
        return await markdown_report(swarm), MARKDOWN
    answer: Any
    if uri == STATUS:
        answer = await read_status(swarm, NoArguments())
    elif uri.startswith(DECISION) and uri != DECISION:
        answer = await read_decisions(swarm, DecisionsArguments(decision=unquote(uri.removeprefix(DECISION))))
    elif uri.startswith(AGENT) and uri != AGENT:
        answer = await read_agent(swarm, unquote(uri.removeprefix(AGENT)))
    else:
        known = ", ".join(one.uri for one in (*RESOURCES, *TEMPLATES))
        raise ToolFailed(f"{uri[:200]}: there is no such resource; expected one of {known}")
    return orjson.dumps(answer, option=orjson.OPT_UTC_Z).decode(), JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSpec:
    """A question. `{decision}` in its text is the argument of that name."""

    name: str
    title: str
    description: str
    text: str
    arguments: Mapping[str, str]
    """Argument -> what it is; each is optional."""


RULES = (
    "Use only figures that the tools return. Name for each the message (stream sequence), file or bus that it was read "
    "from. Say what is not known."
)
PROMPTS = (
    PromptSpec(
        name="why_this_decision",
        title="Why this decision",
        description="Explains one decision of the swarm by what is stored.",
        arguments={"decision": "A decision_id, the sequence of its message, or latest (the default)."},
        text="Why did the swarm decide as it did in the decision {decision}? Call the tool `explain` with this "
        "decision. Then say: what was decided; who voted what, with which weight and probability; whether the quorum "
        "was reached and who was absent or late; how the pools lead to the action, and risk and caps to the size; "
        "which voter alone would have changed the action; and whether the recomputed decision has the published "
        "bytes (`same`). If an agent was absent, look for its death with `history` of kind lifecycle. " + RULES,
    ),
    PromptSpec(
        name="what_happened_in_the_last_hour",
        title="What happened in the last hour",
        description="An account of the last hour: decisions, deaths and recoveries, alerts.",
        arguments={},
        text="What happened in the swarm in the last hour? Call `swarm_status`, and `history` with since=1h for the "
        "kinds alert, lifecycle and decision (raise limit if it is reached). Then say: what runs now; how many "
        "decisions there were, on which symbols, and how many had absent voters; each death with its reason, its "
        "recovery and how long it took; each alert with its remedy; and what a person should do now, if anything. "
        + RULES,
    ),
)


def prompt_text(name: str, given: Mapping[str, str] | None) -> tuple[PromptSpec, str]:
    """The prompt of a name, and its text.

    Raises:
        ToolFailed: there is no such prompt, or an argument is unknown.
    """
    prompts = {prompt.name: prompt for prompt in PROMPTS}
    if name not in prompts:
        raise ToolFailed(f"{name[:100]}: there is no such prompt; expected one of {', '.join(prompts)}")
    prompt, given = prompts[name], given or {}
    if unknown := sorted(set(given) - set(prompt.arguments)):
        expected = f"expected only {', '.join(prompt.arguments)}" if prompt.arguments else "expected none"
        raise ToolFailed(f"{name}: argument {unknown[0][:100]}: there is no such argument; {expected}")
    return prompt, prompt.text.replace("{decision}", given.get("decision") or "latest")
