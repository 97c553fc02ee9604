"""The web application: pages, static files, login and the event stream; the JSON is in api.py."""

from __future__ import annotations

import urllib.parse
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import jinja2
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from bus import __version__
from bus.errors import MeshError
from coordinator.dashboard.api import Dashboard, NotThere, describe_message, routes, status_of_error
from coordinator.dashboard.bus_source import BusSource
from coordinator.dashboard.guard import Access, Guard, error
from coordinator.dashboard.hub import Viewer
from coordinator.dashboard.token import cookie_value, same

HERE = Path(__file__).parent
SEND_TIMEOUT_S = 20.0
"""A single write to a viewer that takes longer ends its stream, even if its queue is not full yet."""
PING_S = 15
COOKIE_AGE_S = 30 * 24 * 3600
LARGEST_FORM = 4096

Drop = Callable[[tuple[str, int] | None], None]


class Pages:
    """Renders the templates; every value is escaped."""

    def __init__(self, dashboard: Dashboard, access: Access) -> None:
        loader = jinja2.FileSystemLoader(HERE / "templates")
        self._env = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
        self._dashboard, self._access = dashboard, access

    def render(self, template: str, request: Request, code: int = 200, **values: Any) -> Response:
        source = self._dashboard.source
        reason = self._reason_not_to_act(request)
        context = {
            "swarm": source.subjects.ns, "version": __version__, "source_kind": "bus" if source.is_live else "file",
            "can_act": not reason, "act_reason": reason, "jaeger_url": self._dashboard.jaeger_url, **values,
        }  # fmt: skip
        return HTMLResponse(self._env.get_template(template).render(context), code)

    def _reason_not_to_act(self, request: Request) -> str:
        """Why this viewer cannot act on agents, in one line; empty if it can."""
        if not self._dashboard.source.is_live:
            return "This page shows a file at rest."
        if not self._access.is_authorized(request.headers):
            return "Acting on agents needs the token: open the link that `signalmesh dashboard --link` prints."
        return ""

    def problem(self, request: Request, status: int, text: str) -> Response:
        """An error, as a page, or as JSON for a program."""
        programs = request.url.path.startswith(("/api/", "/events", "/static/"))
        if programs or "text/html" not in request.headers.get("accept", "text/html"):
            return error(status, text)
        return self.render("error.html", request, status, status=status, error=text)


def make_app(dashboard: Dashboard, access: Access, drop: Drop) -> ASGIApp:
    """The application. `drop` ends the connection of a client's address at once."""
    pages = Pages(dashboard, access)

    async def overview(request: Request) -> Response:
        token = request.query_params.get("token")
        if token is None:
            return pages.render("overview.html", request)
        if not same(token, access.token):
            return pages.render("login.html", request, 401, error=WRONG_TOKEN, next="/")
        rest = [(name, value) for name, value in request.query_params.multi_items() if name != "token"]
        return _logged_in(access, "/" + (f"?{urllib.parse.urlencode(rest)}" if rest else ""))

    async def login(request: Request) -> Response:
        if request.method != "POST":
            return pages.render("login.html", request, error="", next=_own_page(request.query_params.get("next")))
        form = await _form(request)
        target = _own_page(form.get("next"))
        if not same(form.get("token", "").strip(), access.token):
            return pages.render("login.html", request, 401, error=WRONG_TOKEN, next=target)
        return _logged_in(access, target)

    def page(template: str, *names: str) -> Any:
        async def show(request: Request) -> Response:
            return pages.render(template, request, **{name: request.path_params[name] for name in names})

        return show

    async def message(request: Request) -> Response:
        sequence = request.path_params["sequence"]
        await describe_message(dashboard, sequence)
        return pages.render("message.html", request, sequence=sequence)

    async def events(request: Request) -> Response:
        return _event_stream(dashboard, request, drop)

    async def on_http_error(request: Request, found: Exception) -> Response:
        assert isinstance(found, HTTPException)
        text = found.detail
        if found.status_code == 404:
            text = f"{request.url.path[:200]}: there is no such page; begin at /"
        return pages.problem(request, found.status_code, text)

    async def on_error(request: Request, found: Exception) -> Response:
        return pages.problem(request, status_of_error(found), str(found))

    app = Starlette(
        routes=[
            Route("/", overview),
            Route("/login", login, methods=["GET", "POST"]),
            Route("/timeline", page("timeline.html")),
            Route("/decisions/{id}", page("decision.html", "id")),
            Route("/agents/{name}", page("agent.html", "name")),
            Route("/mesh", page("mesh.html")),
            Route("/messages/{sequence}", message),
            Route("/events", events),
            *routes(dashboard),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ],
        exception_handlers={HTTPException: on_http_error, NotThere: on_error, MeshError: on_error},
    )
    return Guard(app, access)


WRONG_TOKEN = "token: not the one of this dashboard; `signalmesh dashboard --link` prints a link with it"


def _own_page(target: str | None) -> str:
    """A page of this server to go to after the login: `target`, unless that is an address elsewhere."""
    own = (
        target is not None and target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    )
    return target if target is not None and own else "/"


def _logged_in(access: Access, target: str) -> Response:
    response = RedirectResponse(target, status_code=303)
    response.set_cookie(
        access.cookie_name, cookie_value(access.token), max_age=COOKIE_AGE_S, httponly=True, samesite="strict"
    )
    return response


async def _form(request: Request) -> dict[str, str]:
    """The fields of a form, of which the login has two."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > LARGEST_FORM:
            raise HTTPException(413, f"form: expected at most {LARGEST_FORM} bytes")
    return dict(urllib.parse.parse_qsl(body.decode(errors="replace")))


def _event_stream(dashboard: Dashboard, request: Request, drop: Drop) -> Response:
    hub, source = dashboard.hub, dashboard.source
    viewer = Viewer(lambda: drop(request.scope.get("client")))
    last_id = request.headers.get("last-event-id") or request.query_params.get("after") or None

    async def stream() -> AsyncIterator[bytes]:
        first = source.connection() if isinstance(source, BusSource) else {"connected": False, **source.describe()}
        hub.join(viewer, last_id, first)
        try:
            async for chunk in viewer.chunks():
                yield chunk
        finally:
            hub.leave(viewer)

    return EventSourceResponse(stream(), ping=PING_S, send_timeout=SEND_TIMEOUT_S, headers={"X-Accel-Buffering": "no"})
