"""`python -m docs.generate.transcript`: runs a swarm, and writes what the MCP SDK's client asks and gets as a page."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

from mcp import Client, StdioServerParameters
from mcp_types import TextContent

from docs.generate.source import ROOT
from signalmesh import python_command

PAGE = ROOT / "docs" / "ops" / "mcp-transcript.md"
START: tuple[str, dict[str, Any]] = ("swarm_up", {"port": 0, "confirm": True})
END: tuple[str, dict[str, Any]] = ("swarm_down", {"confirm": True})
STEPS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("decisions", {"limit": 1}),
    ("explain", {"decision": "latest"}),
    ("memory", {"key": "swarm/strategy-momentum/signal"}),
    ("agent_kill", {"agent": "strategy-momentum", "confirm": True}),
    ("history", {"kind": "lifecycle", "limit": 2}),
    ("audit", {}),
    ("replay", {}),
    ("history", {"kind": "decisons"}),
)
AFTERWARDS: tuple[tuple[str, dict[str, Any]], ...] = (("swarm_status", {}), ("decisions", {"limit": 1}))
"""Once the swarm is down."""
LONGEST_LIST = 1
LONGEST_TABLE = 30
FIRST_DECISION_S = 60.0


def shorten(value: Any) -> Any:
    """`value` with the beginning of each list; a text says how much is left out."""
    if isinstance(value, dict):
        kept = {name: shorten(one) for name, one in list(value.items())[:LONGEST_TABLE]}
        left = len(value) - LONGEST_TABLE
        return kept if left <= 0 else {**kept, "…": f"{left} more"}
    if isinstance(value, list) and len(value) > LONGEST_LIST and not all(isinstance(one, str) for one in value):
        return [*map(shorten, value[:LONGEST_LIST]), f"… {len(value) - LONGEST_LIST} more"]
    return [shorten(one) for one in value] if isinstance(value, list) else value


def block(value: Any) -> str:
    return f"```json\n{json.dumps(value, indent=1, ensure_ascii=False)}\n```"


async def ask(client: Client, tool: str, arguments: dict[str, Any]) -> str:
    """One call with its answer, as Markdown."""
    steps: list[str] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:  # noqa: ARG001 - the SDK's names
        steps.append(f"{progress:g} of {total:g}" if total is not None else f"{progress:g}")

    found = await client.call_tool(tool, arguments, progress_callback=note)
    parts = [f"### `{tool}`", f"Arguments: `{json.dumps(arguments)}`"]
    if steps:
        parts.append(f"Progress: {', '.join(steps)}.")
    if found.is_error:
        parts += [f"Error: {one.text}" for one in found.content if isinstance(one, TextContent)]
    else:
        parts.append(block(shorten(found.structured_content)))
    return "\n\n".join(parts)


async def first_decision(client: Client) -> None:
    """Wait for it: what is asked next is about one."""
    async with asyncio.timeout(FIRST_DECISION_S):
        while True:
            found = await client.call_tool("memory", {"key": "swarm/coordinator/decision"})
            if not found.is_error:
                return


async def transcript(directory: Path) -> str:
    """Start the default swarm in `directory`, ask, and end it."""
    command, *arguments = python_command("mcp", "--allow-control")
    parameters = StdioServerParameters(command=command, args=arguments, cwd=directory)
    async with Client(parameters) as client:
        tools = (await client.list_tools()).tools
        parts = [
            "# Transcript of MCP",
            "`python -m docs.generate.transcript` has run the default swarm and written this page. Lists are cut: "
            "`… n more`. [Assistants (MCP)](mcp.md) describes the tools.",
            f"Protocol {client.protocol_version}; tools: {', '.join(f'`{tool.name}`' for tool in tools)}.",
        ]
        try:
            parts += ["## A running swarm", await ask(client, *START)]
            await first_decision(client)
            parts += [await ask(client, *step) for step in STEPS]
        finally:
            end = await ask(client, *END)
        parts += [end, "## The same swarm once it has ended"]
        parts += [await ask(client, *step) for step in AFTERWARDS]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Write the page."""
    with tempfile.TemporaryDirectory(prefix="signalmesh-transcript-") as directory:
        PAGE.write_text(asyncio.run(transcript(Path(directory))), "utf-8")


if __name__ == "__main__":
    main()
