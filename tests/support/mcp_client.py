"""The MCP SDK's own client, connected to `signalmesh mcp` over either transport, by either protocol."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, TextContent, TextResourceContents

from bus.utils.processes import die_with_parent

GUARD_S = 60.0
"""A wait that takes so long has failed."""
TRANSPORTS = ("stdio", "http")
MODES = ("auto", "legacy")
"""Protocols: that of 2026-07-28, and the one before."""


@contextlib.asynccontextmanager
async def http_server(
    program: Path, directory: Path, *options: str, environment: dict[str, str] | None = None
) -> AsyncIterator[tuple[str, str, asyncio.subprocess.Process]]:
    """`signalmesh mcp --listen` in `directory`: its address, its token, its process."""
    process = await asyncio.create_subprocess_exec(
        str(program), "mcp", "--listen", "127.0.0.1:0", *options,
        cwd=directory, env=environment, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        preexec_fn=functools.partial(die_with_parent, os.getpid()),
    )  # fmt: skip
    try:
        assert process.stderr is not None
        async with asyncio.timeout(GUARD_S):
            line = (await process.stderr.readline()).decode()
        token_file = directory / ".signalmesh" / "mcp.token"
        assert line.startswith("mcp: http://127.0.0.1:"), line
        yield line.split()[1], token_file.read_text().strip(), process
        if process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(GUARD_S):
            errors = (await process.stderr.read()).decode()
            assert await process.wait() == 0, errors
        assert errors == ""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@contextlib.asynccontextmanager
async def connect(
    program: Path,
    directory: Path,
    transport: str,
    environment: dict[str, str],
    mode: str = "auto",
    flags: tuple[str, ...] = (),
    **options: Any,
) -> AsyncIterator[Client]:
    """A client of a server of its own with these flags, for the swarm in `directory`."""
    if transport == "stdio":
        errors = directory / "mcp.err"
        parameters = StdioServerParameters(command=str(program), args=["mcp", *flags], env=environment, cwd=directory)
        with errors.open("w") as file:
            async with Client(stdio_client(parameters, errlog=file), mode=mode, **options) as client:
                yield client
        assert errors.read_text() == ""
        return
    async with (
        http_server(program, directory, *flags, environment=environment) as (url, token, _),
        httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=GUARD_S) as http,
        Client(streamable_http_client(url, http_client=http), mode=mode, **options) as client,
    ):
        yield client


async def answer(client: Client, tool: str, **arguments: Any) -> Any:
    """The structured content of a tool that answers; the client has checked it against the tool's schema."""
    found = await client.call_tool(tool, arguments)
    assert not found.is_error, text_of(found)
    return found.structured_content


def text_of(found: CallToolResult) -> str:
    """The text of a tool's answer."""
    [content] = found.content
    assert isinstance(content, TextContent)
    return str(content.text)


async def resource(client: Client, uri: str) -> str:
    """The text of a resource."""
    [content] = (await client.read_resource(uri)).contents
    assert isinstance(content, TextResourceContents)
    return str(content.text)


def commands_below(parent: int, word: str) -> Iterator[psutil.Process]:
    """The processes below `parent` that run this command."""
    for process in psutil.Process(parent).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if word in process.cmdline():
                yield process
