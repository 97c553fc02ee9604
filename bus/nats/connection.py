"""One NATS connection that never stops receiving and never reorders messages.

Known traps of nats-py and their remedies here: a late PONG after a timed-out flush ends the read loop (tolerated);
a callback that raises does the same (these never raise); it reports CONNECTED before the resubscription callback has
run (a separate `is_ready` flag); unflushed bytes of a disconnect are sent after the reconnect, out of order (dropped:
the outbox resends); a frozen server goes unnoticed for minutes (short pings).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import ParseResult, unquote

import nats.errors
import orjson
import structlog
from nats.aio.msg import Msg

from bus.errors import (
    MESSAGE_TOO_LARGE,
    BusTimeout,
    BusUnreachable,
    Disconnected,
    NotAdmitted,
    Refused,
    UsageError,
)
from bus.messages.guard import without_guard
from bus.nats.certificates import tls_fault
from bus.nats.client import FastClient
from bus.nats.credentials import INBOXES, Credentials, credentials_from, public_key_of
from bus.nats.key_files import INCARNATIONS, KEYS_VARIABLE, owner_of
from bus.nats.tls_faults import CLIENT_CERTIFICATE, NO_TLS
from bus.nats.urls import check_url, is_loopback, is_websocket, redacted_url, urls_of
from bus.nats.wire_parser import OnDirect
from bus.utils.aio import end_tasks, is_cancelled

PING_INTERVAL_S = 0.5
"""With MAX_OUTSTANDING_PINGS unanswered a server counts as gone: noticed after 1.0 to 1.5 s."""
MAX_OUTSTANDING_PINGS = 2
CONNECT_TIMEOUT_S = 2.0
"""For each step of a connection to one server."""
RECONNECT_WAIT_S = 0.05
RETRY_UP_S = 0.2
"""Pause before a failed reconnect callback is tried again."""
BAD_REQUEST = 400
PERMISSIONS_ERR = "permissions violation"
NOT_ADMITTED = re.compile("authorization violation|authentication (expired|revoked)", re.IGNORECASE)
"""The server's errors for unknown or expired credentials."""
DENIED = re.compile(
    'permissions violation for (?P<operation>publish|subscription) to "?(?P<subject>[^" ]+)', re.IGNORECASE
)
MAX_DENIED = 100
"""Denied subjects that are logged."""
MAX_NAMED = 12
"""Denied subjects that one text names."""
RANDOM_TOKEN = re.compile(r"(?<=[.-])[0-9A-Za-z]{22}(?=\.|$)")
"""What nats-py names inboxes by, and this project the ends of consumers' names."""
LOG_AFTER_S = 5.0
"""A process that waits for the bus without a limit logs it after this time."""


NOBODY = "a client without a key"
OPERATORS = ("operator", "operator-")
"""How the names of key files of operators begin."""
ALLOW = "allow it in the server's configuration"
OTHER_KEY = "a command expects an operator's key, such as DIR/keys/operator.nk of the state directory DIR"
WITHOUT_KEY = (
    "if that is a swarm with keys, name its state directory (--state-dir DIR), or its operator's key before the "
    "command (signalmesh --nats-nkey DIR/keys/operator.nk ...); else " + ALLOW
)
log = structlog.get_logger("signalmesh.bus")


@dataclass(frozen=True, slots=True)
class Denial:
    """What the server does not let this user do; `subject` has `*` in place of random parts."""

    operation: Literal["publish", "subscribe"]
    subject: str
    server: str
    account: str
    remedy: str = ALLOW
    awaited: bool = False
    """Whether a request waited for an answer, which it got: the denial is its error."""

    @property
    def problem(self) -> str:
        return describe_denials([self])


def describe_denials(denials: Sequence[Denial]) -> str:
    """One text about `denials` of one connection, at least one of them."""
    parts = []
    for operation in ("publish", "subscribe"):
        subjects = list(dict.fromkeys(denial.subject for denial in denials if denial.operation == operation))
        if len(subjects) > MAX_NAMED:
            subjects[MAX_NAMED:] = [f"{len(subjects) - MAX_NAMED} more subjects"]
        if subjects:
            parts.append(f"{operation} to {', '.join(subjects)}")
    return (
        f"permission denied: the NATS server at {denials[0].server} does not let {denials[0].account} "
        f"{' or '.join(parts)}; {denials[0].remedy}"
    )


def describe_key(credentials: Credentials) -> tuple[str, str]:
    """Whose key the file of these credentials has, by the key files that this process knows, and what to do if the
    server denies something to it.
    """
    file, public_key = Path(credentials.nkey_file), public_key_of(credentials.nkey_seed)
    directories = {file.parent, Path(os.environ.get(KEYS_VARIABLE) or file.parent)}
    owner = next(filter(None, (owner_of(public_key, directory, file) for directory in directories)), "")
    account = f"the key in {file}, which is that of {owner}," if owner else f"the key {public_key} in {file}"
    if owner and file.with_name(INCARNATIONS).is_dir():
        return account, f"expected there the key of {file.stem}: `signalmesh keys rotate {file.stem}` makes one"
    name = owner or file.stem
    return account, ALLOW if name == OPERATORS[0] or name.startswith(OPERATORS[1]) else f"{OTHER_KEY}; else {ALLOW}"


def too_large(subject: str, size: int, limit: int) -> Refused:
    """The error for a message of `size` bytes where at most `limit` are allowed."""
    return Refused(subject, MESSAGE_TOO_LARGE, f"message size exceeds maximum allowed: {size} bytes, {limit} at most")


def _text_of(error: Exception) -> str:
    """The error's own text; of aiohttp's errors that of the system, without the objects that theirs shows."""
    return str(getattr(error, "os_error", None) or error) or type(error).__name__


class _Client(FastClient):
    has_certificate = False
    """Whether it presents a client's certificate."""

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():  # its request timed out: this answer belongs to no other request
            self._pongs.pop(0)
            self._pongs_received += 1
            self._pings_outstanding = 0
        else:
            await super()._process_pong()

    async def _process_err(self, err_msg: str) -> None:
        if PERMISSIONS_ERR in err_msg:
            # nats-py gives the text in lower case. The parser's buffer still has it, with the subject as it is.
            text = bytes(self._ps.buf).partition(b"\r\n")[0].decode(errors="replace").removeprefix("-ERR ")
            self._err = nats.errors.Error(f"nats: {text.strip()}")
            await self._error_cb(self._err)
            return
        # nats-py would close permanently without a callback; a new connection is worth trying in any case
        error = nats.errors.Error(f"nats: {err_msg}")
        self._err = error
        await self._error_cb(error)
        await self._process_op_err(error)

    def _connect_command(self) -> bytes:
        """Called when the connection is as secure as it gets: nats-py would send a password in clear, or as quoted."""
        server = self._current_server
        info = self._server_info
        if info.get("tls_required") and info.get("tls_verify") and not self.has_certificate:
            raise nats.errors.Error(f"nats: {CLIENT_CERTIFICATE}")  # without one it would only cut the connection
        # Whoever is between could have taken TLS out of the server's first line: then nothing is sent.
        if (
            server is not None
            and self._demands_tls(server.uri)
            and not (info.get("tls_required") or self.options["tls_handshake_first"])
        ):
            raise nats.errors.Error(f"nats: {NO_TLS}")
        command: bytes = super()._connect_command()
        if server is None or self.options["user"] is not None or self.options["token"] is not None:
            return command
        operation, _, text = command.partition(b" ")
        fields = orjson.loads(text)
        # A server that the cluster advertises has no user in its address: that of the given addresses is meant.
        named = next((one.uri for one in (server, *self._server_pool) if one.uri.username is not None), None)
        if named is None:
            return command
        if named.password is None:
            fields["auth_token"] = unquote(named.username or "")
        else:
            fields |= {"user": unquote(named.username or ""), "pass": unquote(named.password)}
        return operation + b" " + orjson.dumps(fields) + b"\r\n"

    def _demands_tls(self, address: ParseResult) -> bool:
        """Whether nothing may be sent to this server without TLS: of this machine, an address may ask for none."""
        if address.scheme in ("tls", "wss") or "tls" not in self.options:
            return address.scheme == "tls"  # a WebSocket's TLS has begun before
        return address.scheme == "ws" or not is_loopback(address.hostname or "")

    def forget_unsent(self) -> None:
        """Drop unflushed messages when the connection breaks: sent later, they would overtake the resend."""
        self._pending = []
        self._pending_data_size = 0


class Connection:
    """A hardened client with callbacks for down and up. `is_ready` is true between them."""

    def __init__(self, url: str, name: str, credentials: Credentials | None = None) -> None:
        """`credentials` None: the environment's.

        Raises:
            UsageError: `url` is not a NATS address, or is a WebSocket address while aiohttp is not installed.
        """
        self.url = check_url(url)
        # nats-py's own ImportError would be retried without end: its connect loop takes it for an unreachable server.
        if is_websocket(url) and importlib.util.find_spec("aiohttp") is None:
            raise UsageError(
                f"--nats {redacted_url(url)}: a WebSocket address (ws, wss) needs the package aiohttp; "
                "install it: pip install 'signalmesh[wss]'"
            )
        self._credentials = credentials_from() if credentials is None else credentials
        self.name = name
        self.client = _Client()
        self.client.has_certificate = self._credentials.certificate is not None
        self._ready = asyncio.Event()
        self.generation = 0
        self._down: list[Callable[[], None]] = []
        self._up: list[Callable[[], Awaitable[None]]] = []
        self._raising: asyncio.Task[None] | None = None
        self._closed = False
        self._last_error = ""
        self.answer_denied: Callable[[str, str], bool] | None = None
        """Called with a subject that this user may not publish to and with the problem; returns whether requests waited
        for an answer from there, which have ended.
        """
        self._on_denied: list[Callable[[Denial], None]] = []
        self.on_refused: Callable[[], None] | None = None
        """Called when the server does not admit this user any more, after it did."""
        self._expected = 0
        """Watchers that expect denials."""
        self._denied: set[Denial] = set()
        self._whose: tuple[str, str] | None = None
        """Of the key, once it was looked up: what `_account` returns."""

    @property
    def api(self) -> str:
        """The prefix of the subjects of JetStream's API."""
        return self._credentials.api

    @property
    def api_host(self) -> str:
        """The host that passes requests to JetStream's API on; empty: none does."""
        return self._credentials.api_host

    def may_answer(self, reply: str) -> bool:
        """Whether a request with this reply subject may be answered. With keys, whoever asks could otherwise name
        any subject, and have us refused there in its place.
        """
        return not self._credentials.nkey_seed or reply.startswith(INBOXES)

    @property
    def is_ready(self) -> bool:
        """Whether it is up, and all callbacks of a reconnect have ended."""
        return self._ready.is_set()

    async def wait_connected(self) -> None:
        await self._ready.wait()

    def watch(self, down: Callable[[], None], up: Callable[[], Awaitable[None]]) -> None:
        self._down.append(down)
        self._up.append(up)

    def unwatch(self, down: Callable[[], None], up: Callable[[], Awaitable[None]]) -> None:
        with contextlib.suppress(ValueError):
            self._down.remove(down)
            self._up.remove(up)

    async def open(self, wait_s: float | None) -> None:
        """Connect, retrying for `wait_s` seconds (None: without limit).

        Raises:
            BusUnreachable: no server answered in that time.
            NotAdmitted: a server answered and refused the credentials.
        """
        connecting = asyncio.create_task(self._connect(), name="nats-connect")
        try:
            await asyncio.wait({connecting}, timeout=LOG_AFTER_S if wait_s is None else wait_s)
            if not connecting.done() and wait_s is None:
                log.warning(
                    "waiting_for_nats", nats=redacted_url(self.url), problem=str(await self._unreachable(self._why()))
                )
                await asyncio.wait({connecting})
            if not connecting.done():
                raise await self._unreachable(self._why())
            connecting.result()
        except BaseException as error:
            # `end_tasks` cancels repeatedly: a single cancellation that arrives together with an answer would be lost
            # inside, and connecting would never end if that answer is a refusal.
            await end_tasks([connecting])
            self._closed = True
            with contextlib.suppress(Exception):
                await self.client.close()
            if isinstance(error, (OSError, nats.errors.Error)):
                raise await self._unreachable(_text_of(error)) from None
            raise
        self.generation += 1
        self._ready.set()

    def _why(self) -> str:
        """Why no server has answered so far."""
        if self._last_error or not self.client.accepted:
            return self._last_error or "no answer"
        if self._credentials.tls_first:
            expected = "leave out --nats-tls-first (SIGNALMESH_NATS_TLS_FIRST) unless it begins with TLS"
        else:
            expected = "if it begins with TLS, add --nats-tls-first (SIGNALMESH_NATS_TLS_FIRST)"
        return f"it accepts the connection and does not answer; {expected}"

    async def _unreachable(self, reason: str) -> BusUnreachable:
        if (fault := await tls_fault(self.url, reason, self._credentials)) is not None:
            return fault
        if not NOT_ADMITTED.search(reason):
            return BusUnreachable(redacted_url(self.url), reason)
        seed = self._credentials.nkey_seed
        return NotAdmitted(redacted_url(self.url), reason, public_key_of(seed) if seed else "")

    async def _connect(self) -> None:
        await self.client.connect(
            urls_of(self.url),
            name=self.name,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_reconnected,
            connect_timeout=cast(int, CONNECT_TIMEOUT_S),
            reconnect_time_wait=cast(int, RECONNECT_WAIT_S),
            max_reconnect_attempts=-1,
            ping_interval=cast(int, PING_INTERVAL_S),
            max_outstanding_pings=MAX_OUTSTANDING_PINGS,
            pending_size=0,
            drain_timeout=2,
            **self._credentials.options(self.url),
        )

    async def _on_error(self, error: Exception) -> None:
        text = _text_of(error)
        if not NOT_ADMITTED.search(self._last_error):  # a later attempt may only report a closed connection
            self._last_error = text
        log.debug("nats_error", error=text, connection=self.name)
        if (denied := DENIED.search(text)) is not None:
            operation, subject = denied["operation"].lower(), denied["subject"]
            self._on_denial(operation, without_guard(subject) if operation == "publish" else subject)
        if self.generation and NOT_ADMITTED.search(text) and self.on_refused is not None:
            self.on_refused()

    def watch_denials(self, on_denied: Callable[[Denial], None], *, expected: bool = False) -> Callable[[], None]:
        """Call `on_denied` with whatever the server denies from now on; returns what ends that.

        With `expected` nothing is logged meanwhile.
        """
        self._on_denied.append(on_denied)
        self._expected += expected

        def end() -> None:
            self._on_denied.remove(on_denied)
            self._expected -= expected

        return end

    def _on_denial(self, operation: str, subject: str) -> None:
        """The server does not let this user publish or subscribe to `subject`."""
        account, remedy = self._account()
        denial = Denial(
            operation="publish" if operation == "publish" else "subscribe",
            subject=RANDOM_TOKEN.sub("*", subject),
            server=redacted_url(self.url),
            account=account,
            remedy=remedy,
        )
        if denial.operation == "publish" and self.answer_denied is not None:
            denial = replace(denial, awaited=self.answer_denied(subject, denial.problem))
        if not self._expected and denial not in self._denied and len(self._denied) < MAX_DENIED:
            self._denied.add(denial)
            log.warning("permission_denied", problem=denial.problem, connection=self.name)
        for on_denied in list(self._on_denied):
            on_denied(denial)

    def _account(self) -> tuple[str, str]:
        """Whom the server takes this process for, and what to do if it denies something to it."""
        server = self.client._current_server  # noqa: SLF001 - the client has no public name for it
        if server is not None and server.uri.password is not None:  # else the name is a token
            return f"user {unquote(server.uri.username or '')!r}", ALLOW
        if self._credentials.nkey_file:
            if self._whose is None:
                self._whose = describe_key(self._credentials)
            return self._whose
        if self._credentials.creds or self._credentials.nkey_seed or (server and server.uri.username):
            return "this user", ALLOW
        return NOBODY, WITHOUT_KEY

    async def _on_disconnected(self) -> None:
        self._ready.clear()
        with contextlib.suppress(UsageError, KeyError):  # it has no TLS, or another file is half-written: the old one
            self._credentials.load_certificate(self.client.options["tls"])
        self.client.forget_unsent()
        if self._raising is not None:
            self._raising.cancel()
        if self._closed:
            return
        log.debug("bus_down", connection=self.name)
        for down in list(self._down):
            try:
                down()
            except Exception:
                log.exception("down_callback_failed", connection=self.name)

    async def _on_reconnected(self) -> None:
        self.generation += 1
        self._raising = asyncio.create_task(self._raise_up(self.generation), name="bus-up")

    async def _raise_up(self, generation: int) -> None:
        for up in list(self._up):
            while generation == self.generation and not self._closed:
                try:
                    await up()
                    break
                except Exception as error:  # noqa: BLE001 - the connection must come up again after any error
                    log.debug("up_callback_retried", connection=self.name, error=repr(error))
                    await asyncio.sleep(RETRY_UP_S)
        if generation == self.generation and self.client.is_connected and not self._closed:
            self._ready.set()
            log.debug("bus_up", connection=self.name)

    def write(self, subject: str, data: bytes, reply: str = "", headers: Mapping[str, str] | None = None) -> None:
        """Send one message; all messages of one turn of the event loop are sent together.

        Raises:
            Disconnected: the connection is down; nothing was sent.
            Refused: the subject is malformed, or the message larger than the server allows; nothing was sent.
        """
        try:
            self.client.write(subject, data, reply, headers)
        except (nats.errors.OutboundBufferLimitError, nats.errors.ConnectionClosedError):
            raise Disconnected(f"{subject}: not connected to {redacted_url(self.url)}") from None
        except nats.errors.MaxPayloadError:
            raise too_large(subject, len(data), self.client.max_payload) from None
        except nats.errors.Error as error:
            raise Refused(subject, BAD_REQUEST, str(error)) from None

    async def flush(self, timeout_s: float = 2.0) -> None:
        """Return when the server has processed what was sent before.

        Raises:
            Disconnected: this connection has been closed, or is down.
            BusTimeout: no answer in `timeout_s`.
        """
        if not self.client.is_connected:
            raise Disconnected(f"not connected to {redacted_url(self.url)}")
        try:
            await self.client.flush(timeout_s)  # type: ignore[arg-type]  # it takes any number
        except nats.errors.FlushTimeoutError:
            raise BusTimeout(
                f"the server at {redacted_url(self.url)} has not answered within {timeout_s:g} s"
            ) from None
        except nats.errors.ConnectionClosedError:
            raise Disconnected(f"not connected to {redacted_url(self.url)}") from None

    async def subscribe(self, subject: str, on_msg: Callable[[Msg], Awaitable[None]]) -> Any:
        """Subscribe with a callback that is called serially; limits are large, as a dropped message is a gap.

        Raises:
            Disconnected: this connection has been closed.
        """
        try:
            return await self.client.subscribe(
                subject, cb=on_msg, pending_msgs_limit=1_000_000, pending_bytes_limit=512 * 1024 * 1024
            )
        except nats.errors.ConnectionClosedError:
            raise Disconnected(f"{subject}: not connected to {redacted_url(self.url)}") from None

    async def subscribe_directly(self, subject: str, on_direct: OnDirect) -> Any:
        """Subscribe with a function that is called while bytes are read.

        Raises:
            Disconnected: this connection has been closed.
        """
        try:
            return await self.client.subscribe_directly(subject, on_direct)
        except nats.errors.ConnectionClosedError:
            raise Disconnected(f"{subject}: not connected to {redacted_url(self.url)}") from None

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._ready.clear()
        if self._raising is not None:
            self._raising.cancel()
        with contextlib.suppress(Exception):
            if self.client.is_connected:
                async with asyncio.timeout(1.0):
                    await self.client.flush(timeout=1)
        with contextlib.suppress(Exception):
            try:
                await self.client.close()
            except asyncio.CancelledError:
                # nats-py awaits the socket's end by a future that it shares with tasks which it has itself cancelled.
                if is_cancelled():
                    raise
