"""Tools: their schemas, and what they say about a wrong call."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest

from bus.errors import MeshError
from coordinator.mcp.control import CONTROL
from coordinator.mcp.swarm import ServedSwarm
from coordinator.mcp.tools import READ_ONLY, parse_call

TOOLS = {tool.name: tool for tool in (*READ_ONLY, *CONTROL)}


async def no_bus(_: object) -> None:
    raise AssertionError("a wrong call must not reach the bus")


SWARM = ServedSwarm(
    state_dir=Path("nowhere"),
    mirror=Path("nowhere/mirror.sqlite"),
    nats=None,
    swarm=None,
    config=None,
    on_bus=no_bus,  # type: ignore[arg-type]
    run=lambda: None,
)


async def no_progress(_: float, __: float | None, ___: str | None) -> None: ...


async def call(name: str, given: dict[str, object]) -> None:
    tool, arguments = parse_call(TOOLS, name, given)
    await tool.run(SWARM, arguments, no_progress)


@pytest.mark.parametrize("tool", [*READ_ONLY, *CONTROL], ids=lambda tool: tool.name)
def test_the_schemas_of_a_tool_are_objects_whose_arguments_are_described(tool):
    for schema in (tool.input_schema(), tool.output_schema()):
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["type"] == "object"
    assert set(tool.output_schema()["properties"]) == {"read", "result"}
    properties = tool.input_schema().get("properties", {})
    assert all("description" in str(about) for about in properties.values()), properties


@pytest.mark.parametrize(
    ("tool", "arguments", "expected"),
    [
        ("swarm_statu", {}, "swarm_statu: there is no such tool (did you mean 'swarm_status'?); expected one of "),
        ("audit", {"sorce": "bus"}, "audit: argument sorce: unknown argument (did you mean 'source'?); expected one"),
        ("audit", {"source": "moon"}, "audit: argument source: expected one of 'auto', 'bus', 'mirror'"),
        ("swarm_status", {"x": 1}, "swarm_status: argument x: unknown argument; there are none here; call "),
        ("decisions", {"limit": "many"}, "decisions: argument limit: expected a whole number, not 'many'; call "),
        ("decisions", {"limit": 0}, "decisions: argument limit: expected"),
        ("decisions", {"decision": "latest", "symbol": "X"}, "decisions: arguments decision, symbol: expected one of"),
        ("history", {}, "history: argument kind: expected a value; call history again with it"),
        ("history", {"kind": "signal"}, "history: there is no mirror's file at nowhere/mirror.sqlite; start "),
        ("explain", {}, "explain: argument decision: expected a decision_id, a sequence or latest, or both symbol "),
        ("explain", {"symbol": "X"}, "--symbol without --round: expected DECISION_ID, latest, or --round N --symbol"),
        ("agent_kill", {}, "agent_kill: argument agent: expected a value; call agent_kill again with it"),
        ("agent_kill", {"agent": "--all"}, "agent_kill: argument agent: expected"),
        ("agent_add", {"agent": "new", "kind": "--all"}, "agent_add: argument kind: expected"),
        ("agent_add", {"agent": "new", "clas": "a:B"}, "agent_add: argument clas: unknown argument"),
        ("agent_add", {"agent": "new", "kind": "x", "options": {"a_key": "x"}}, "agent_add new: --option a_key: looks"),
        ("swarm_scale", {"kind": "momentum", "count": -1}, "swarm_scale: argument count: expected"),
        ("sandbox_add", {"sandbox": "--provider"}, "sandbox_add: argument sandbox: expected"),
        ("swarm_up", {"port": 70000}, "swarm_up: argument port: expected"),
        ("swarm_up", {"speed": -1}, "swarm_up: argument speed: expected"),
        ("chaos", {"for_s": 0}, "chaos: argument for_s: expected"),
        ("replay", {"first": 7, "last": 3}, "replay: argument last: expected 7 (first) or more, not 3; call replay "),
    ],
)
async def test_a_wrong_call_names_the_argument_what_was_expected_and_what_to_do(tool, arguments, expected):
    with pytest.raises(MeshError) as raised:
        await call(tool, arguments)
    assert str(raised.value).startswith(expected)


def test_the_command_that_prints_the_same_is_about_the_same_swarm_and_holds_no_password():
    swarm = ServedSwarm(
        state_dir=Path("my state"),
        mirror=Path("m"),
        nats="nats://user:secret@host:4222",
        swarm="blue",
        config=None,
        on_bus=no_bus,  # type: ignore[arg-type]
        run=lambda: None,
    )
    assert swarm.command("status") == "signalmesh status --state-dir 'my state' --swarm blue --json"
    assert swarm.command("doctor", named_swarm=False) == "signalmesh doctor --state-dir 'my state' --json"
