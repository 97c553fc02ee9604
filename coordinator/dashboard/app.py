"""The web application: pages, static files, login and the event stream; the JSON is in api.py."""

from __future__ import annotations

import contextlib
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import jinja2
from sse_starlette import EventSourceResponse
from sse_starlette.sse import SendTimeoutError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from bus import __version__
from bus.errors import BusError, MeshError
from coordinator.dashboard.api import Dashboard, NotThere, agent_row, describe_message, routes, status_of_error
from coordinator.dashboard.guard import CRASHED, Access, Guard, cookie_value, error, same
from coordinator.dashboard.hub import Viewer
from coordinator.explain.selection import Selector

HERE = Path(__file__).parent
SEND_TIMEOUT_S = 20.0
"""A write to a viewer that takes longer ends its stream, even if its queue is not full yet."""
PING_S = 15
COOKIE_AGE_S = 30 * 24 * 3600
LARGEST_FORM = 4096

Drop = Callable[[tuple[str, int] | None], None]
Handler = Callable[[Request], Awaitable[Response]]


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


class _Events(EventSourceResponse):
    """An event stream; `on_stalled` is called when a write takes longer than SEND_TIMEOUT_S."""

    def __init__(self, chunks: AsyncIterator[bytes], on_stalled: Callable[[], None], headers: dict[str, str]) -> None:
        super().__init__(chunks, ping=PING_S, send_timeout=SEND_TIMEOUT_S, headers=headers)
        self._on_stalled = on_stalled

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            self._on_stalled()


class _Site:
    """The handlers of the pages, the login and the event stream."""

    def __init__(self, dashboard: Dashboard, access: Access, drop: Drop) -> None:
        self._dashboard, self._access, self._drop = dashboard, access, drop
        self._pages = Pages(dashboard, access)

    async def overview(self, request: Request) -> Response:
        token = request.query_params.get("token")
        if token is None:
            return self._pages.render("overview.html", request)
        if not same(token, self._access.token):
            return self._pages.render("login.html", request, 401, error=WRONG_TOKEN, next="/")
        rest = [(name, value) for name, value in request.query_params.multi_items() if name != "token"]
        return _logged_in(self._access, "/" + (f"?{urllib.parse.urlencode(rest)}" if rest else ""))

    async def login(self, request: Request) -> Response:
        if request.method != "POST":
            target = _own_page(request.query_params.get("next"))
            return self._pages.render("login.html", request, error="", next=target)
        form = await _form(request)
        target = _own_page(form.get("next"))
        if not same(form.get("token", "").strip(), self._access.token):
            return self._pages.render("login.html", request, 401, error=WRONG_TOKEN, next=target)
        return _logged_in(self._access, target)

    def page(self, template: str) -> Handler:
        """The handler of a page that reads its figures from /api/."""

        async def show(request: Request) -> Response:
            return self._pages.render(template, request)

        return show

    async def decision(self, request: Request) -> Response:
        """The page says by itself what is wrong with an id; here only the status follows from it."""
        wanted, code = request.path_params["id"], 200
        try:
            await self._dashboard.source.select(Selector(decision=wanted))
        except BusError:
            pass  # the page waits for the bus
        except MeshError as found:
            code = status_of_error(found)
        return self._pages.render("decision.html", request, code, id=wanted)

    async def agent(self, request: Request) -> Response:
        """As `decision`."""
        name, code = request.path_params["name"], 200
        try:
            if self._dashboard.source.status() is not None:
                agent_row(self._dashboard, name)
        except NotThere as found:
            code = found.status
        return self._pages.render("agent.html", request, code, name=name)

    async def message(self, request: Request) -> Response:
        sequence = request.path_params["sequence"]
        with contextlib.suppress(BusError):  # the page waits for the bus
            await describe_message(self._dashboard, sequence)
        return self._pages.render("message.html", request, sequence=sequence)

    async def events(self, request: Request) -> Response:
        hub, source, client = self._dashboard.hub, self._dashboard.source, request.scope.get("client")
        viewer = Viewer(lambda: self._drop(client))
        last_id = request.headers.get("last-event-id") or request.query_params.get("after") or None

        async def stream() -> AsyncIterator[bytes]:
            hub.join(viewer, last_id, source.connection())
            try:
                async for chunk in viewer.chunks():
                    yield chunk
            finally:
                hub.leave(viewer)

        headers = {"X-Accel-Buffering": "no"}  # a proxy in between must pass on each event at once
        return _Events(stream(), lambda: hub.drop(viewer), headers)

    async def on_http_error(self, request: Request, found: Exception) -> Response:
        assert isinstance(found, HTTPException)
        text = found.detail
        if found.status_code == 404:
            text = f"{request.url.path[:200]}: there is no such page; begin at /"
        elif found.status_code == 405:
            allowed = (found.headers or {}).get("Allow", "GET")
            text = f"{request.method[:20]} {request.url.path[:200]}: expected {allowed}"
        return self._pages.problem(request, found.status_code, text)

    async def on_crash(self, request: Request, _: Exception) -> Response:
        return self._pages.problem(request, 500, CRASHED)

    async def on_error(self, request: Request, found: Exception) -> Response:
        assert isinstance(found, (NotThere, MeshError))
        return self._pages.problem(request, status_of_error(found), str(found))


def make_app(dashboard: Dashboard, access: Access, drop: Drop) -> ASGIApp:
    """The application. `drop` ends the connection of a client's address at once."""
    site = _Site(dashboard, access, drop)
    app = Starlette(
        routes=[
            Route("/", site.overview),
            Route("/login", site.login, methods=["GET", "POST"]),
            Route("/timeline", site.page("timeline.html")),
            Route("/decisions/{id:text}", site.decision),
            Route("/agents/{name}", site.agent),
            Route("/mesh", site.page("mesh.html")),
            Route("/messages/{sequence}", site.message),
            Route("/events", site.events),
            *routes(dashboard),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ],
        exception_handlers={
            HTTPException: site.on_http_error, NotThere: site.on_error, MeshError: site.on_error,
            Exception: site.on_crash,  # Guard logs it
        },
    )  # fmt: skip
    return Guard(app, access)


WRONG_TOKEN = "token: not the one of this dashboard; `signalmesh dashboard --link` prints a link with it"  # noqa: S105 - no token


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
