"""envd, the service inside each sandbox, with the proxy in front of it that finds the sandbox: health and processes."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.e2b.standin import files
from tests.e2b.standin.connect import (
    STREAM_TYPE,
    RpcError,
    answer,
    deadline_s,
    end_frame,
    frame,
    frames,
    incoming,
    refusal,
)
from tests.e2b.standin.processes import Event, Process, resize
from tests.e2b.standin.sandboxes import Sandbox, Sandboxes

SIGNALS = {"SIGNAL_SIGKILL": signal.SIGKILL, "SIGNAL_SIGTERM": signal.SIGTERM, 9: signal.SIGKILL, 15: signal.SIGTERM}
USERS = ("user", "root")
UNAUTHORIZED = "unauthorized access, please provide a valid access token or method signing if supported"

Unary = Callable[[Sandbox, dict[str, Any]], Any]
"""The answer to a message, or an awaitable of it."""


def envd(sandboxes: Sandboxes) -> Starlette:
    def behind_the_proxy(
        handler: Callable[[Request, Sandbox], Awaitable[Response]], *, open_to_all: bool = False
    ) -> Callable[..., Any]:
        """Find the sandbox, check the token, and have the connection break when the sandbox does."""

        async def serve(request: Request) -> Response:
            name = request.headers.get("e2b-sandbox-id", "")
            sandbox = sandboxes.all.get(name)
            if sandbox is None or sandbox.state != "running":
                return unavailable(name, "The sandbox was not found")
            if not sandbox.port_open:
                return unavailable(name, "The sandbox is running but port is not open", port=49983)
            if not open_to_all and request.headers.get("x-access-token") != sandbox.access_token:
                return JSONResponse({"code": 401, "message": UNAUTHORIZED}, 401)
            return Attached(await handler(request, sandbox), sandbox, request.state.break_off)

        return serve

    def unary(method: Unary) -> Callable[..., Any]:
        async def call(request: Request, sandbox: Sandbox) -> Response:
            try:
                checked_user(request)
                reply = method(sandbox, json.loads(await request.body() or b"{}"))
                return answer(reply if isinstance(reply, dict) else await reply)
            except RpcError as error:
                return refusal(error, stream=False)

        return behind_the_proxy(call)

    async def health(request: Request, sandbox: Sandbox) -> Response:
        return Response(status_code=204)

    unimplemented = behind_the_proxy(not_here)
    return Starlette(
        routes=[
            Route("/health", behind_the_proxy(health, open_to_all=True), methods=["GET"]),
            Route("/files", behind_the_proxy(files.download), methods=["GET"]),
            Route("/files", behind_the_proxy(files.upload), methods=["POST"]),
            *(
                Route(f"/process.Process/{name}", unary(method), methods=["POST"])
                for name, method in {
                    "List": listed,
                    "SendSignal": send_signal,
                    "SendInput": send_input,
                    "CloseStdin": close_stdin,
                    "Update": update,
                }.items()
            ),
            *(
                Route(f"/filesystem.Filesystem/{name}", unary(method), methods=["POST"])
                for name, method in files.METHODS.items()
            ),
            Route("/process.Process/Start", behind_the_proxy(start), methods=["POST"]),
            Route("/process.Process/Connect", behind_the_proxy(connect), methods=["POST"]),
            Route("/process.Process/StreamInput", behind_the_proxy(stream_input), methods=["POST"]),
            Route("/filesystem.Filesystem/{name}", unimplemented, methods=["POST"]),
        ]
    )


class Attached(Response):
    """An answer during which its connection is known to the sandbox, so that it breaks with it."""

    def __init__(self, inner: Response, sandbox: Sandbox, break_off: Callable[[], None]) -> None:
        self._inner = inner
        self._sandbox = sandbox
        self._break_off = break_off

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._sandbox.streams.add(self._break_off)
        try:
            await self._inner(scope, receive, send)
        finally:
            self._sandbox.streams.discard(self._break_off)


def unavailable(name: str, message: str, **more: Any) -> Response:
    return JSONResponse({"sandboxId": name, "message": message, "code": 502, **more}, 502)


def checked_user(request: Request) -> str:
    header = request.headers.get("authorization", "")
    if not header.startswith("Basic "):
        return USERS[0]
    name = base64.b64decode(header.removeprefix("Basic ")).decode().partition(":")[0]
    if name not in USERS:
        raise RpcError("unauthenticated", f"invalid username: '{name}'")
    return name


async def not_here(request: Request, sandbox: Sandbox) -> Response:
    return refusal(RpcError("unimplemented", f"the stand-in has no {request.url.path}"), stream=False)


def listed(sandbox: Sandbox, _: dict[str, Any]) -> dict[str, Any]:
    return {
        "processes": [
            {"pid": process.pid, "config": process.config, **({} if process.tag is None else {"tag": process.tag})}
            for process in sandbox.processes.running.values()
        ]
    }


def send_signal(sandbox: Sandbox, requested: dict[str, Any]) -> dict[str, Any]:
    process = sandbox.processes.find(requested.get("process", {}))
    number = SIGNALS.get(requested.get("signal", 0))
    if number is None:
        raise RpcError("unimplemented", f"invalid signal: {requested.get('signal')}")
    sandbox.processes.signal(process, number)
    return {}


async def send_input(sandbox: Sandbox, requested: dict[str, Any]) -> dict[str, Any]:
    await put_in(sandbox.processes.find(requested.get("process", {})), requested.get("input", {}))
    return {}


async def put_in(process: Process, given: dict[str, str]) -> None:
    for kind, data in given.items():
        await process.write(base64.b64decode(data), pty=kind == "pty")


def close_stdin(sandbox: Sandbox, requested: dict[str, Any]) -> dict[str, Any]:
    sandbox.processes.find(requested.get("process", {})).close_stdin()
    return {}


def update(sandbox: Sandbox, requested: dict[str, Any]) -> dict[str, Any]:
    process = sandbox.processes.find(requested.get("process", {}))
    if "pty" in requested:
        if "pty" not in process.outputs:
            raise RpcError("internal", "error resizing tty: tty not assigned to process")
        resize(process.outputs["pty"], requested["pty"].get("size", {}))
    return {}


async def stream_input(request: Request, sandbox: Sandbox) -> Response:
    process = None
    try:
        async for message in incoming(request):
            request.state.log.write("stream_input", sandbox=sandbox.id, unlogged=message)
            if "start" in message:
                process = sandbox.processes.find(message["start"].get("process", {}))
            elif "data" in message:
                if process is None:
                    raise RpcError("invalid_argument", "data before the message that names the process")
                await put_in(process, message["data"].get("input", {}))
    except RpcError as error:
        return refusal(error, stream=True)
    return Response(frame({}) + end_frame(), media_type=STREAM_TYPE)


async def start(request: Request, sandbox: Sandbox) -> Response:
    try:
        user, seconds = checked_user(request), deadline_s(request)
        [requested] = frames(await request.body())
        config = requested.get("process", {})
        home = sandbox.home
        cwd = files.resolved(home, config.get("cwd", ""))
        if not cwd.is_dir():
            raise RpcError("invalid_argument", f"cwd '{cwd}' does not exist")
        environment = {
            "PATH": sandbox.processes.path,
            "HOME": str(home),
            "USER": user,
            "LOGNAME": user,
            "E2B_SANDBOX": "true",
            "E2B_SANDBOX_ID": sandbox.id,
            "E2B_TEMPLATE_ID": sandbox.template,
        }
        process = await sandbox.processes.start(
            config,
            environment | sandbox.environment | config.get("envs", {}),
            cwd,
            stdin=requested.get("stdin", True),
            tag=requested.get("tag"),
            size=requested["pty"].get("size", {}) if "pty" in requested else None,
        )
    except RpcError as error:
        return refusal(error, stream=True)
    if seconds is not None:
        asyncio.get_running_loop().call_later(seconds, overdue, sandbox, process)
    return streamed(request, process, seconds, own=True)


def overdue(sandbox: Sandbox, process: Process) -> None:
    """The deadline of the call that started it kills a process, with or without listeners."""
    if sandbox.processes.running.get(process.pid) is process:
        process.overdue = True
        sandbox.processes.signal(process, signal.SIGKILL)


async def connect(request: Request, sandbox: Sandbox) -> Response:
    try:
        seconds = deadline_s(request)
        [requested] = frames(await request.body())
        process = sandbox.processes.find(requested.get("process", {}), ended=True)
    except RpcError as error:
        return refusal(error, stream=True)
    return streamed(request, process, seconds, own=False)


def streamed(request: Request, process: Process, seconds: float | None, *, own: bool) -> Response:
    """`own` is the stream of the call that started it, and had its deadline: it alone is notified."""
    queue = process.listen()  # before anything else runs, so that nothing of a new process is missed
    interval = float(request.headers.get("keepalive-ping-interval") or 90)
    return StreamingResponse(events(process, queue, seconds, interval, own=own), media_type=STREAM_TYPE)


async def events(
    process: Process, queue: asyncio.Queue[Event], seconds: float | None, interval_s: float, *, own: bool
) -> AsyncIterator[bytes]:
    try:
        async with asyncio.timeout(seconds):
            yield frame({"event": {"start": {"pid": process.pid}}})
            while True:
                if process.end is not None and queue.empty():
                    event = process.end
                else:
                    event = await next_event(queue, interval_s)
                if "end" in event and process.overdue and own:
                    raise TimeoutError
                yield frame({"event": event})
                if "end" in event:
                    yield end_frame()
                    return
    except TimeoutError:
        yield end_frame(RpcError("deadline_exceeded", "context deadline exceeded"))
    finally:
        process.listeners.discard(queue)


async def next_event(queue: asyncio.Queue[Event], interval_s: float) -> Event:
    try:
        return await asyncio.wait_for(queue.get(), interval_s)
    except TimeoutError:
        return {"keepalive": {}}
