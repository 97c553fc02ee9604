"""Which requests the dashboard answers: checks of Host, Origin and token before any route, headers on every answer.

A page of another site can make a browser send requests here, or have its own name resolve to this address (DNS
rebinding). The Host and Origin checks refuse both.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import quote, urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bus.nats.urls import is_loopback
from bus.utils.terminal import escape_control

log = structlog.get_logger("signalmesh.dashboard")

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
OPEN_PATHS = ("/login", "/static/")
"""Answered without a token on any address: they show nothing of the swarm."""
CRASHED = "the dashboard failed; its log says why (logs/dashboard.log of the state directory)"
SAFE_METHODS = ("GET", "HEAD")


def cookie_value(token: str) -> str:
    """What the cookie of a browser holds that has shown the token: it proves the token, and is not the token."""
    return hmac.new(token.encode(), b"signalmesh dashboard cookie", hashlib.sha256).hexdigest()


def same(one: str, other: str) -> bool:
    """Whether two secrets are equal, in a time that does not depend on where they differ."""
    return hmac.compare_digest(one.encode(), other.encode())


@dataclass(frozen=True, slots=True)
class Access:
    """Who may do what: the token, whether reading needs it too, and by which names this server may be called."""

    token: str
    port: int
    read_needs_token: bool = False
    host_names: frozenset[str] = frozenset({"localhost"})
    any_address: bool = False
    """Whether a Host header may be any IP address; for a server that listens on every interface."""

    @classmethod
    def of(cls, host: str, port: int, token: str, name: str = "") -> Access:
        """Access to a server that listens on the address `host` and `port`; `name` is the host as it was configured."""
        names = {"localhost", host.lower(), name.lower()} - {""}
        if is_loopback(host):
            return cls(token, port, host_names=frozenset(names))
        names.add(socket.gethostname().lower())
        return cls(token, port, read_needs_token=True, host_names=frozenset(names), any_address=True)

    @property
    def cookie_name(self) -> str:
        """Browsers share cookies between the ports of a host, so each dashboard has a name of its own."""
        return f"signalmesh_{self.port}"

    def knows_host(self, header: str) -> bool:
        """Whether `header` (Host, or that part of an Origin) names this server. Any port: it may be published."""
        try:
            name = urlsplit(f"//{header}").hostname or ""
        except ValueError:
            return False
        if name in self.host_names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.any_address or address.is_loopback

    def has_bearer(self, headers: Headers) -> bool:
        scheme, _, value = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and same(value.strip(), self.token)

    def has_cookie(self, headers: Headers) -> bool:
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(self.cookie_name)
        except CookieError:
            return False
        return morsel is not None and same(morsel.value, cookie_value(self.token))

    def is_authorized(self, headers: Headers) -> bool:
        """Whether the request carries the token: as a bearer's, or as the cookie that the login sets."""
        return self.has_bearer(headers) or self.has_cookie(headers)

    def is_same_origin(self, headers: Headers) -> bool:
        """Whether a page of this very server sent the request, or a program that has the token itself."""
        origin = headers.get("origin")
        if origin is None:
            return headers.get("sec-fetch-site") == "same-origin" or self.has_bearer(headers)
        try:
            return urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
        except ValueError:  # no address at all, such as http://[
            return False


class Guard:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            started = True
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers[name] = value
                if not scope["path"].startswith("/static/"):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refusal = self._refusal(scope)
        try:
            await (refusal or self._app)(scope, receive, send_with_headers)
        except ClientDisconnect:
            log.debug("request_broken_off", path=scope["path"])
        except Exception:
            log.exception("request_failed", path=scope["path"])  # not the query, which may have the token
            if not started:
                await error(500, CRASHED)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that no route may see."""
        headers, access = Headers(scope=scope), self._access
        method, path = scope["method"], scope["path"]
        if not access.knows_host(headers.get("host", "")):
            names = ", ".join(_readable(access))
            return error(400, f"Host: expected {names}; open the address that `signalmesh dashboard` has printed")
        origin = headers.get("origin")
        if origin is not None and not access.is_same_origin(headers):
            return error(403, "Origin: expected a page of this dashboard; open it, and act there")
        if method in SAFE_METHODS:
            site = headers.get("sec-fetch-site", "none")
            if site in ("cross-site", "same-site") and headers.get("sec-fetch-mode") != "navigate":
                return error(403, "Sec-Fetch-Site: expected a page of this dashboard, not one of another site")
            if access.read_needs_token and not path.startswith(OPEN_PATHS) and not access.is_authorized(headers):
                return self._ask_for_token(scope, path)
            return None
        if not access.is_same_origin(headers):
            return error(403, "Origin: expected a page of this dashboard, or Authorization: Bearer with its token")
        if path != "/login" and not access.is_authorized(headers):
            return error(
                401, "token: expected the dashboard's; open the link that `signalmesh dashboard --link` prints"
            )
        return None

    def _ask_for_token(self, scope: Scope, path: str) -> Response | None:
        if path == "/" and "token" in Request(scope).query_params:
            return None  # the overview checks it
        if path.startswith(("/api/", "/events")):
            return error(
                401, "token: expected Authorization: Bearer, or the cookie of /login; `signalmesh dashboard --link`"
            )
        # As it was asked for: what is escaped in it would mean something else if it were not.
        asked = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        return RedirectResponse(f"/login?next={quote(asked, safe='')}", status_code=303)


def _readable(access: Access) -> Iterable[str]:
    yield from sorted(access.host_names)
    yield "an IP address" if access.any_address else "a loopback address"


def error(status: int, text: str) -> JSONResponse:
    """One line, whatever it repeats of a request: what was expected, and what to do."""
    return JSONResponse({"error": escape_control(text)}, status_code=status)
