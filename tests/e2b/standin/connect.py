"""Connect RPC over HTTP/1.1 with the JSON codec and no compression, as far as envd speaks it.

Written from the protocol's description, so that what the SDK sends is read by other code than its own. Owns no method.
"""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

END_OF_STREAM = 2
STREAM_TYPE = "application/connect+json"
HTTP_STATUS = {
    "canceled": 499,
    "invalid_argument": 400,
    "deadline_exceeded": 504,
    "not_found": 404,
    "already_exists": 409,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "unimplemented": 501,
    "internal": 500,
    "unavailable": 503,
    "unauthenticated": 401,
    "unknown": 500,
}
"""Of unary errors, as the protocol lists them; an error in a stream travels in its last message, its status is 200."""


class RpcError(Exception):
    """A method's refusal: `code` is one of the protocol's names."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def body(self) -> dict[str, str]:
        return {"code": self.code, "message": self.message}


def frame(message: dict[str, Any], flags: int = 0) -> bytes:
    data = json.dumps(message, separators=(",", ":")).encode()
    return struct.pack(">BI", flags, len(data)) + data


def end_frame(error: RpcError | None = None) -> bytes:
    return frame({} if error is None else {"error": error.body}, END_OF_STREAM)


def frames(data: bytes) -> list[dict[str, Any]]:
    """The messages of a whole body; raises RpcError where it is cut or compressed."""
    messages, rest = _take(data)
    if rest:
        raise RpcError("invalid_argument", f"the body ends within a message, {len(rest)} bytes into it")
    return messages


async def incoming(request: Request) -> AsyncIterator[dict[str, Any]]:
    """The messages of a client stream, each as soon as it is whole."""
    rest = b""
    async for chunk in request.stream():
        messages, rest = _take(rest + chunk)
        for message in messages:
            yield message
    if rest:
        raise RpcError("unknown", "the stream ended within a message")


def _take(data: bytes) -> tuple[list[dict[str, Any]], bytes]:
    messages = []
    while len(data) >= 5:
        flags, length = struct.unpack(">BI", data[:5])
        if flags & 1:
            raise RpcError("unimplemented", "compressed messages are not understood")
        if len(data) < 5 + length:
            break
        if not flags & END_OF_STREAM:
            messages.append(json.loads(data[5 : 5 + length] or b"{}"))
        data = data[5 + length :]
    return messages, data


def deadline_s(request: Request) -> float | None:
    """The caller's deadline in seconds from now; None where it set none."""
    text = request.headers.get("connect-timeout-ms")
    if not text:
        return None
    try:
        return int(text) / 1000
    except ValueError:
        raise RpcError("invalid_argument", f"Connect-Timeout-Ms: {text!r} is no number of milliseconds") from None


def answer(message: dict[str, Any]) -> Response:
    return JSONResponse(message)


def refusal(error: RpcError, *, stream: bool) -> Response:
    if stream:
        return Response(end_frame(error), media_type=STREAM_TYPE)
    return JSONResponse(error.body, HTTP_STATUS[error.code])
