"""The control API: sandboxes are made, found, prolonged, paused, measured and killed over HTTP."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl, unquote

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.e2b.standin.sandboxes import Refused, Sandbox, Sandboxes, checked_lifetime

PAGE = 100
"""Sandboxes a page of the list has at most, and where the caller names no limit."""


def control_api(sandboxes: Sandboxes, api_key: str) -> Starlette:
    async def create(request: Request, requested: dict[str, Any]) -> Response:
        new_ones = await sandboxes.create(requested, request.headers.get("idempotency-key"))
        return JSONResponse(new_ones.created(), 201)

    async def listed(request: Request, _: dict[str, Any]) -> Response:
        found, token = page(list(sandboxes.all.values()), dict(request.query_params))
        headers = {} if token is None else {"x-next-token": token}
        return JSONResponse([sandbox.listed() for sandbox in found], headers=headers)

    async def info(request: Request, _: dict[str, Any]) -> Response:
        return JSONResponse(found(request).detail())

    async def kill(request: Request, _: dict[str, Any]) -> Response:
        await sandboxes.end(found(request))
        return Response(status_code=204)

    async def connect(request: Request, requested: dict[str, Any]) -> Response:
        sandbox = found(request)
        resumed = sandboxes.connect(sandbox, checked_lifetime(requested))
        return JSONResponse(sandbox.created(), 201 if resumed else 200)

    async def set_timeout(request: Request, requested: dict[str, Any]) -> Response:
        sandbox = found(request)
        if sandbox.state == "paused":
            raise Refused(404, f"sandbox {sandbox.id!r} is not running")
        sandboxes.prolong(sandbox, checked_lifetime(requested))
        return Response(status_code=204)

    async def pause(request: Request, _: dict[str, Any]) -> Response:
        sandboxes.pause(found(request))
        return Response(status_code=204)

    async def network(request: Request, requested: dict[str, Any]) -> Response:
        found(request).requested["network"] = requested
        return Response(status_code=204)

    async def metrics(request: Request, _: dict[str, Any]) -> Response:
        sandbox = found(request)
        sandbox.measure()
        start, end = (request.query_params.get(name) for name in ("start", "end"))
        return JSONResponse(
            [
                sample
                for sample in sandbox.samples
                if (start is None or sample["timestampUnix"] >= int(start))
                and (end is None or sample["timestampUnix"] <= int(end))
            ]
        )

    def found(request: Request) -> Sandbox:
        return sandboxes.find(request.path_params["name"])

    def served(handler: Callable[[Request, dict[str, Any]], Awaitable[Response]]) -> Callable[..., Any]:
        async def serve(request: Request) -> Response:
            try:
                if request.headers.get("x-api-key") != api_key:
                    raise Refused(401, "Invalid API key, please visit the API keys page of your dashboard")
                return await handler(request, await body_of(request))
            except Refused as refused:
                return JSONResponse({"code": refused.status, "message": str(refused)}, refused.status, refused.headers)

        return serve

    one = "/sandboxes/{name}"
    return Starlette(
        routes=[
            Route("/v2/sandboxes", served(create), methods=["POST"]),
            Route("/v2/sandboxes", served(listed), methods=["GET"]),
            Route(one, served(info), methods=["GET"]),
            Route(one, served(kill), methods=["DELETE"]),
            Route("/v2" + one + "/connect", served(connect), methods=["POST"]),
            Route(one + "/timeout", served(set_timeout), methods=["POST"]),
            Route(one + "/pause", served(pause), methods=["POST"]),
            Route(one + "/network", served(network), methods=["PUT"]),
            Route(one + "/metrics", served(metrics), methods=["GET"]),
        ]
    )


async def body_of(request: Request) -> dict[str, Any]:
    data = await request.body()
    try:
        body = json.loads(data) if data else {}
    except ValueError as error:
        raise Refused(400, f"Error when parsing request: {error}") from None
    if not isinstance(body, dict):
        raise Refused(400, "Error when parsing request: expected an object")
    return body


def page(everything: list[Sandbox], requested: dict[str, str]) -> tuple[list[Sandbox], str | None]:
    """The sandboxes of a query, the newest first by default, and the token of the next page.

    Metadata are a query of their own in which names and values are quoted once more.
    """
    wanted = {unquote(name): unquote(value) for name, value in parse_qsl(requested.get("metadata", ""))}
    states = requested["state"].split(",") if requested.get("state") else ["running", "paused"]
    after = datetime.fromisoformat(requested["startedAfter"]) if "startedAfter" in requested else None
    chosen = [
        sandbox
        for sandbox in everything
        if sandbox.state in states
        and wanted.items() <= sandbox.metadata.items()
        and (after is None or sandbox.started_at > after)
        and requested.get("template") in (None, sandbox.template)
    ]
    ascending = requested.get("order") == "asc"

    def key(sandbox: Sandbox) -> tuple[str, str]:
        return sandbox.started_at.isoformat(), sandbox.id

    chosen.sort(key=key, reverse=not ascending)
    if "nextToken" in requested:
        last = tuple(json.loads(base64.urlsafe_b64decode(requested["nextToken"])))
        chosen = [sandbox for sandbox in chosen if (key(sandbox) > last if ascending else key(sandbox) < last)]
    limit = min(int(requested.get("limit", PAGE)), PAGE)
    if len(chosen) <= limit:
        return chosen, None
    token = base64.urlsafe_b64encode(json.dumps(key(chosen[limit - 1])).encode()).decode()
    return chosen[:limit], token
