"""What every request passes before it is served: it is written down, and a fault that waits for it befalls it.

A fault is `{"path": pattern, "method", "contains", "times": 1}` with one or more of
`delay_s` (the request waits first), `status` with `message`, `headers` and `retry_after` (it is refused instead of
being served), `drop: "before"` (its connection is broken instead) or `"after"` (it is served, and the connection broken
instead of the answer), and `reset_after: n` (broken after n pieces of the answer's body). `path` is a pattern as of a
shell's file names; `contains` a text in the request's body; `times: null` lasts until the faults are cleared.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, MutableMapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.e2b.standin.connect import RpcError, frames
from tests.e2b.standin.log import Log, formatted

STREAM_INPUT = "/process.Process/StreamInput"


@dataclass(kw_only=True)
class Fault:
    path: str
    method: str | None = None
    contains: str = ""
    times: int | None = 1
    delay_s: float = 0.0
    status: int | None = None
    message: str = "a fault that a test asked for"
    headers: dict[str, str] = field(default_factory=dict)
    retry_after: int | None = None
    drop: str | None = None
    reset_after: int | None = None
    used: int = 0

    def __post_init__(self) -> None:
        if self.drop not in (None, "before", "after"):
            raise ValueError(f"drop: before or after, not {self.drop!r}")


class Faults:
    def __init__(self) -> None:
        self._waiting: list[Fault] = []

    def add(self, requested: dict[str, Any]) -> None:
        """Raises TypeError or ValueError where it is none."""
        self._waiting.append(Fault(**requested))

    def clear(self) -> None:
        self._waiting.clear()

    def listed(self) -> list[dict[str, Any]]:
        return [asdict(fault) for fault in self._waiting]

    def befalling(self, method: str, path: str, body: bytes) -> Fault | None:
        for fault in self._waiting:
            if (
                (fault.times is None or fault.used < fault.times)
                and fnmatchcase(path, fault.path)
                and fault.method in (None, method)
                and fault.contains.encode() in body
            ):
                fault.used += 1
                return fault
        return None


class Passage:
    """The ASGI application around the API or envd. `break_off(scope)` breaks the connection of a request."""

    def __init__(self, app: ASGIApp, faults: Faults, log: Log, break_off: Callable[[Scope], None]) -> None:
        self._app = app
        self._faults = faults
        self._log = log
        self._break_off = break_off

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        streamed = scope["path"] == STREAM_INPUT
        body = b"" if streamed else await whole(receive)
        scope["state"] = {"break_off": lambda: self._break_off(scope), "log": self._log}
        request = described(scope, body)
        fault = self._faults.befalling(scope["method"], scope["path"], body)
        written = False

        def write(status: int | None) -> None:
            nonlocal written
            if not written:
                written = True
                self._log.write("request", **request, status=status, fault=fault is not None)

        if fault is not None:
            await asyncio.sleep(fault.delay_s)
            if fault.drop == "before":
                write(None)
                self._break_off(scope)
                return
            if fault.status is not None:
                write(fault.status)
                await refused(fault)(scope, receive, send)
                return
        pieces = 0

        async def sending(message: Message) -> None:
            nonlocal pieces
            if fault is not None and fault.drop == "after":
                write(None)
                self._break_off(scope)
                return
            if message["type"] == "http.response.start":
                write(message["status"])
            elif message.get("body") and fault is not None and fault.reset_after is not None:
                if pieces >= fault.reset_after:
                    self._break_off(scope)
                    return
                pieces += 1
            await send(message)

        try:
            await self._app(scope, receive if streamed else replayed(body, receive), sending)
        finally:
            write(None)


async def whole(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b"".join(parts)
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def replayed(body: bytes, receive: Receive) -> Receive:
    delivered = False

    async def again() -> Message:
        nonlocal delivered
        if delivered:
            return await receive()
        delivered = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def refused(fault: Fault) -> JSONResponse:
    assert fault.status is not None
    headers = fault.headers | ({} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)})
    return JSONResponse({"code": fault.status, "message": fault.message}, fault.status, headers)


def described(scope: MutableMapping[str, Any], body: bytes) -> dict[str, Any]:
    headers = formatted(scope["headers"])
    line = {
        "method": scope["method"],
        "path": scope["path"],
        "query": scope["query_string"].decode(),
        "headers": headers,
        "sandbox": headers.get("e2b-sandbox-id"),
        "body": None,
    }
    if scope["path"] == "/files":
        return line | {"unlogged": text(body)}
    if headers.get("content-type", "").startswith("application/connect+json"):
        try:
            return line | {"body": frames(body)}
        except (RpcError, ValueError) as error:
            return line | {"body": f"unreadable: {error}"}
    try:
        return line | {"body": json.loads(body) if body else None}
    except ValueError:
        return line | {"body": text(body)}


def text(data: bytes) -> str:
    """As it is where it is UTF-8, else base64 of it."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return base64.b64encode(data).decode()
