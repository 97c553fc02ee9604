"""The server: the tools, resources and prompts as the MCP SDK serves them, over either transport."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeAlias, TypeVar

import anyio
import mcp_types as types
import orjson
import structlog
from mcp import MCPError
from mcp.server import Server
from mcp.server.context import ServerRequestContext
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ResourceUpdated

from bus import __version__
from bus.errors import MeshError
from bus.utils.aio import end_tasks
from bus.utils.terminal import escape_control
from coordinator.mcp.answers import ToolFailed
from coordinator.mcp.consent import ask
from coordinator.mcp.control import CONTROL
from coordinator.mcp.resources import PROMPTS, RESOURCES, STATUS, TEMPLATES, prompt_text, read_resource
from coordinator.mcp.swarm import ServedSwarm
from coordinator.mcp.tools import READ_ONLY, parse_call
from coordinator.mcp.updates import StatusUpdates

Context: TypeAlias = ServerRequestContext[Any, Any]
T = TypeVar("T")
GONE = "signalmesh.gone"
"""Key of a request's scope: an event that is set when its client has closed the connection."""
FAILED = "it failed; the log of the server (its standard error) says why"
INSTRUCTIONS = (
    "Tools of a signalmesh swarm: agents as processes on a NATS bus, a coordinator that decides, a watchdog that "
    "restarts what dies. Every answer has `read` (where its figures were read, at which message of the stream, and "
    "when) and `result` (what the command line prints with --json). Begin with swarm_status. While no bus answers, the "
    "file of the mirror is read, and `read.note` says so."
)

CONTROL_NAMES = frozenset(tool.name for tool in CONTROL)

log = structlog.get_logger("signalmesh.mcp")


class SwarmServer:
    """One server of a swarm; it may have many clients."""

    def __init__(self, swarm: ServedSwarm) -> None:
        self._swarm = swarm
        self._tools = {tool.name: tool for tool in (*READ_ONLY, *(CONTROL if swarm.allow_control else ()))}
        self.updates = StatusUpdates(swarm)
        self._bus = InMemorySubscriptionBus()
        self._listen = ListenHandler(self._bus)
        self.sdk = Server(
            "signalmesh",
            version=__version__,
            title="signalmesh",
            instructions=INSTRUCTIONS,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            on_list_resources=self._list_resources,
            on_list_resource_templates=self._list_templates,
            on_read_resource=self._read_resource,
            on_subscribe_resource=self._subscribe,
            on_unsubscribe_resource=self._unsubscribe,
            on_subscriptions_listen=self._serve_listener,
            on_list_prompts=self._list_prompts,
            on_get_prompt=self._get_prompt,
        )

    # -- tools

    async def _list_tools(self, _: Context, __: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        return types.ListToolsResult(
            tools=[
                types.Tool(
                    name=tool.name,
                    title=tool.title,
                    description=tool.description,
                    input_schema=tool.input_schema(),
                    output_schema=tool.output_schema(),
                    annotations=types.ToolAnnotations(read_only_hint=not tool.question, open_world_hint=False),
                )
                for tool in self._tools.values()
            ]
        )

    async def _call_tool(
        self, context: Context, params: types.CallToolRequestParams
    ) -> types.CallToolResult | types.InputRequiredResult:
        async def progress(at: float, whole: float | None, text: str | None) -> None:
            await context.session.report_progress(at, whole, text)

        try:
            if params.name not in self._tools and params.name in CONTROL_NAMES:
                raise ToolFailed(
                    f"{params.name}: this server only reads; a person can start it as `signalmesh mcp --allow-control`"
                )
            tool, arguments = parse_call(self._tools, params.name, params.arguments)
            if tool.question and not arguments.confirm:
                question = await ask(context, params, tool, arguments)
                if question is not None:
                    return question
            answer = await _unless_gone(context, tool.run(self._swarm, arguments, progress))
        except MeshError as error:
            return _tool_error(str(error))
        except Exception:
            log.exception("tool_failed", tool=params.name)
            return _tool_error(f"{params.name}: {FAILED}")
        content = orjson.dumps(answer, option=orjson.OPT_UTC_Z)
        return types.CallToolResult(
            content=[types.TextContent(text=content.decode())], structured_content=orjson.loads(content)
        )

    # -- resources

    async def _list_resources(self, _: Context, __: types.PaginatedRequestParams | None) -> types.ListResourcesResult:
        return types.ListResourcesResult(
            resources=[
                types.Resource(uri=one.uri, name=one.name, description=one.description, mime_type=one.mime_type)
                for one in RESOURCES
            ]
        )

    async def _list_templates(
        self, _: Context, __: types.PaginatedRequestParams | None
    ) -> types.ListResourceTemplatesResult:
        return types.ListResourceTemplatesResult(
            resource_templates=[
                types.ResourceTemplate(
                    uri_template=one.uri, name=one.name, description=one.description, mime_type=one.mime_type
                )
                for one in TEMPLATES
            ]
        )

    async def _read_resource(
        self, context: Context, params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        uri = str(params.uri)
        try:
            text, mime_type = await _unless_gone(context, read_resource(self._swarm, uri))
        except MeshError as error:
            raise MCPError(types.INVALID_PARAMS, escape_control(str(error))) from None
        except Exception:
            log.exception("resource_failed", uri=uri)
            raise MCPError(types.INTERNAL_ERROR, f"{uri}: {FAILED}") from None
        return types.ReadResourceResult(contents=[types.TextResourceContents(uri=uri, mime_type=mime_type, text=text)])

    # -- subscriptions, as they were before and as they are since the protocol of 2026-07-28

    async def _subscribe(self, context: Context, params: types.SubscribeRequestParams) -> types.EmptyResult:
        _check_subscribable(str(params.uri))
        connection = context.session._connection  # noqa: SLF001 - the SDK's session does not show when it ends
        key = id(connection)
        connection.exit_stack.callback(self.updates.unsubscribe, key)
        self.updates.subscribe(key, lambda: connection.send_resource_updated(STATUS))
        return types.EmptyResult()

    async def _unsubscribe(self, context: Context, _: types.UnsubscribeRequestParams) -> types.EmptyResult:
        self.updates.unsubscribe(id(context.session._connection))  # noqa: SLF001 - as above
        return types.EmptyResult()

    async def _serve_listener(
        self, context: Context, params: types.SubscriptionsListenRequestParams
    ) -> types.SubscriptionsListenResult:
        uris = params.notifications.resource_subscriptions or ()
        for uri in uris:
            _check_subscribable(str(uri))
        if not uris:
            return await self._listen(context, params)
        key = object()
        self.updates.subscribe(key, lambda: self._bus.publish(ResourceUpdated(STATUS)))
        try:
            return await self._listen(context, params)
        finally:
            self.updates.unsubscribe(key)

    # -- prompts

    async def _list_prompts(self, _: Context, __: types.PaginatedRequestParams | None) -> types.ListPromptsResult:
        return types.ListPromptsResult(
            prompts=[
                types.Prompt(
                    name=prompt.name,
                    title=prompt.title,
                    description=prompt.description,
                    arguments=[
                        types.PromptArgument(name=name, description=text, required=False)
                        for name, text in prompt.arguments.items()
                    ],
                )
                for prompt in PROMPTS
            ]
        )

    async def _get_prompt(self, _: Context, params: types.GetPromptRequestParams) -> types.GetPromptResult:
        try:
            prompt, text = prompt_text(params.name, params.arguments)
        except MeshError as error:
            raise MCPError(types.INVALID_PARAMS, escape_control(str(error))) from None
        message = types.PromptMessage(role="user", content=types.TextContent(text=text))
        return types.GetPromptResult(description=prompt.description, messages=[message])

    async def close(self) -> None:
        """End what was started for subscribers."""
        self._listen.close()
        await self.updates.close()


def _check_subscribable(uri: str) -> None:
    if uri != STATUS:
        raise MCPError(
            types.INVALID_PARAMS,
            escape_control(f"{uri[:200]}: no updates are sent of it; expected {STATUS}, read others again"),
        )


def _tool_error(text: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(text=escape_control(text))], is_error=True)


async def _unless_gone(context: Context, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; it is cancelled once, and ends in order, if the call is cancelled or its client is gone.

    In a task of its own: the SDK cancels again at each await, so that nothing could be closed.
    """
    scope = getattr(context.request, "scope", {})
    working = asyncio.create_task(work, name="mcp-call")
    waits: set[asyncio.Task[Any]] = {working}
    if (gone := scope.get(GONE)) is not None:
        waits.add(asyncio.create_task(gone.wait(), name="mcp-gone"))
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ToolFailed("the client has closed the connection")
        return working.result()
    finally:
        with anyio.CancelScope(shield=True), contextlib.suppress(asyncio.CancelledError):
            await end_tasks(waits)
