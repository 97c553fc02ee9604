"""Asks a person before a tool acts, if the client can ask (elicitation)."""

from __future__ import annotations

from typing import Any

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from coordinator.mcp.answers import ToolFailed
from coordinator.mcp.tools import ToolSpec

KEY = "confirm"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {KEY: {"type": "boolean", "title": "Do it", "default": False}},
    "required": [KEY],
}


async def ask(
    context: ServerRequestContext[Any, Any], params: types.CallToolRequestParams, tool: ToolSpec, arguments: Any
) -> types.InputRequiredResult | None:
    """None once the person has agreed; else, since the protocol of 2026-07-28, what the client must ask first.

    Raises:
        ToolFailed: the person has not agreed, or the client cannot ask.
    """
    capabilities = context.session.client_capabilities
    if capabilities is None or capabilities.elicitation is None:
        raise ToolFailed(
            f"{tool.name}: argument confirm: expected true, because this acts; ask the person, then call {tool.name} "
            "again with it"
        )
    message = tool.question.format(**{name: getattr(arguments, name) for name in arguments.__slots__})
    answer: Any
    if context.protocol_version in MODERN_PROTOCOL_VERSIONS:
        answer = (params.input_responses or {}).get(KEY)
        if answer is None:
            form = types.ElicitRequestFormParams(message=message, requested_schema=SCHEMA)
            return types.InputRequiredResult(input_requests={KEY: types.ElicitRequest(params=form)})
    else:
        answer = await context.session.elicit_form(message, SCHEMA, related_request_id=context.request_id)
    if getattr(answer, "action", "") != "accept" or (answer.content or {}).get(KEY) is not True:
        raise ToolFailed(f"{tool.name}: the person did not agree, so nothing was done")
    return None
