"""JetStream over one connection: acknowledged publishing, requests to its API, its error codes, consumers.

Requests are written as JSON, the server's public API: nats-py's wrappers wait for each answer, and pipelining must
not.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable
from typing import Any

import orjson
import structlog

from bus.errors import (
    BusError,
    BusTimeout,
    LimitReached,
    MeshError,
    NoResponders,
    PermissionDenied,
    Refused,
    WrongSequence,
)
from bus.interface import Ack, Done, Headers
from bus.messages import MAX_PAYLOAD_BYTES
from bus.nats.account_limits import LIMIT_CODES, explain_limit
from bus.nats.client import STATUS, parse_headers
from bus.nats.connection import RANDOM_TOKEN, Connection, Denial, too_large
from bus.nats.credentials import answers_of

WRONG_LAST_SEQUENCE = 10071
"""The error code for a lost compare-and-set."""
FORBIDDEN = 403
"""The code of a publish that the server has denied."""
IN_PROCESS = 10164
"""The error code while a cluster cannot decide: an earlier message with the same expectation is not stored yet."""
NO_MESSAGE = 10037
"""The error code for a subject without stored messages."""
STREAM_NOT_FOUND = 10059
NO_LEADER = frozenset({10008, 10009})
"""The error codes while a cluster elects a leader, some seconds."""
NO_RESPONDERS = 503
"""The status of the server's empty answer for a subject without subscribers."""
API_TIMEOUT_S = 5.0
LIMITS_S = 1.0
"""How long an answer about the account's limits is waited for, and used for the messages that are refused next."""
IDLE_HEARTBEAT_S = 0.5
"""A consumer reports this often if there is nothing to deliver."""
INACTIVE_THRESHOLD_S = 5.0
"""The server removes a consumer without subscriber after this long."""
TOKEN_BYTES = 8
"""Of the random end of a reply subject."""
NANOSECOND = 1_000_000_000
"""Nanoseconds in a second: the unit of durations in the API."""

log = structlog.get_logger("signalmesh.bus")


class JetStream:
    """Publishing, requests and consumers over `connection`. Call `open` once.

    One inbox is for the answers of the server, another one for those of processes, whose subjects name the process.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._acks: dict[str, tuple[str, Done]] = {}
        self._requests: dict[str, tuple[str, asyncio.Future[tuple[bytes, Headers]]]] = {}
        """Reply subject -> subject of the request, and its answer."""
        self._api = connection.api
        self._inbox = connection.client.new_inbox() + "."
        """The prefix of reply subjects; the token after it identifies the request."""
        self._inboxes, _, self._answers = connection.client.new_inbox().rpartition(".")
        """The prefix of all inboxes, and the token before the one that identifies a request to a process."""
        self._account: tuple[float, dict[str, Any], str] | None = None
        """When the account was last requested, JetStream's answer about it, and its name."""
        self._requesting = asyncio.Lock()
        self._explaining: set[asyncio.Task[None]] = set()
        connection.watch(self._fail_pending, _nothing)
        self._deaf: Denial | None = None
        """Set while the server denies the inbox: no answer can arrive."""
        connection.answer_denied = self._answer_denied
        connection.watch_denials(self._on_denied)

    async def open(self) -> None:
        """Subscribe to the inboxes.

        Raises:
            Disconnected: the connection has been closed.
        """
        await self.connection.subscribe_directly(self._inbox + "*", self._on_server_answer)
        await self.connection.subscribe_directly(self._reply_subject("*", "*"), self._on_answer)

    def send(self, subject: str, data: bytes, headers: Headers, done: Done) -> str:
        """Publish without waiting; `done` is called with the answer. Returns the token that `forget` takes.

        Raises:
            Disconnected: the connection is down; nothing was sent, and `done` is not called.
        """
        token = self._token()
        self._acks[token] = (subject, done)
        try:
            if len(data) > MAX_PAYLOAD_BYTES:
                raise too_large(subject, len(data), MAX_PAYLOAD_BYTES)
            if self._deaf is not None:
                raise Refused(subject, FORBIDDEN, self._deaf.problem)
            self.connection.write(subject, data, self._inbox + token, headers)
        except Refused as error:
            self._acks.pop(token, None)
            asyncio.get_running_loop().call_soon(done, error)
        except BaseException:
            self._acks.pop(token, None)
            raise
        return token

    def forget(self, token: str) -> None:
        """Ignore the answer to what was sent under `token`."""
        self._acks.pop(token, None)

    def _token(self) -> str:
        # Random: the server's monitoring shows the inbox, and the server sends an acknowledgement to any subject.
        return secrets.token_hex(TOKEN_BYTES)

    def _reply_subject(self, by: str, token: str) -> str:
        """Where the process `by` answers; the server, if that is empty."""
        return f"{answers_of(self._inboxes, by)}.{self._answers}.{token}" if by else self._inbox + token

    def _on_server_answer(self, inbox: str, reply: str, data: bytes, headers: bytes) -> None:
        token = inbox[len(self._inbox) :]
        try:
            if token in self._acks:
                answer = _read_reply(data)
                if not data or _is_ack(answer) or "error" in answer:  # anything else is no answer of a stream
                    subject, done = self._acks.pop(token)
                    result = _ack_of(answer, subject)
                    if isinstance(result, Refused) and result.code in LIMIT_CODES:
                        self._explain_to(done, result)
                    else:
                        done(result)
                return
        except Exception:  # an exception here would end the connection
            log.exception("ack_callback_failed")
        self._on_answer(inbox, reply, data, headers)

    def _on_answer(self, inbox: str, _: str, data: bytes, headers: bytes) -> None:
        try:
            subject, answer = self._requests.get(inbox, ("", None))
            if answer is not None and not answer.done() and (subject.startswith("$") or not _is_ack(_read_reply(data))):
                answer.set_result((data, parse_headers(headers)))
        except Exception:
            log.exception("answer_unreadable")

    def _answer_denied(self, denied: str, problem: str) -> bool:
        """Answer what was sent to a subject that this user may not publish to, as the server does not."""
        return self._deny(problem, lambda subject: subject == denied)

    def _on_denied(self, denial: Denial) -> None:
        inboxes = (RANDOM_TOKEN.sub("*", self._reply_subject(by, "*")) for by in ("", "*"))
        if denial.operation == "subscribe" and denial.subject in inboxes:
            self._deaf = denial
            self._deny(denial.problem, lambda _: True)

    def _deny(self, problem: str, is_denied: Callable[[str], bool]) -> bool:
        """Fail what waits for an answer from subjects of which `is_denied` is true; whether there was anything."""
        acks = [(token, subject, done) for token, (subject, done) in self._acks.items() if is_denied(subject)]
        for token, subject, done in acks:
            del self._acks[token]
            done(Refused(subject, FORBIDDEN, problem))
        answers = [answer for subject, answer in self._requests.values() if is_denied(subject) and not answer.done()]
        for answer in answers:
            answer.set_exception(PermissionDenied(problem))
        return bool(acks or answers)

    def _fail_pending(self) -> None:
        self._deaf = None  # the next connection subscribes again
        pending, self._acks = self._acks, {}
        for _, done in pending.values():
            done(BusTimeout("the connection broke before the answer came"))
        for _, answer in self._requests.values():
            if not answer.done():
                answer.set_exception(BusTimeout("the connection broke before the answer came"))

    def _explain_to(self, done: Done, error: Refused) -> None:
        """Call `done` with what is known about the limit, once it is known."""

        async def explain() -> None:
            explained: Refused = error
            try:
                explained = await self._explained(error, {}, LIMITS_S)
            finally:
                try:
                    done(explained)
                except Exception:
                    log.exception("ack_callback_failed")

        task = asyncio.create_task(explain(), name="explain-limit")
        self._explaining.add(task)
        task.add_done_callback(self._explaining.discard)

    async def _explained(self, error: Refused, wanted: dict[str, Any], max_age_s: float) -> LimitReached:
        oldest = time.monotonic() - max_age_s
        async with self._requesting:  # many messages may be refused at once
            if self._account is None or self._account[0] < oldest:
                info: dict[str, Any] = {}
                name = ""
                with contextlib.suppress(MeshError, ValueError, LookupError):  # not every user may request it
                    info = await self.api("INFO", timeout_s=LIMITS_S)
                    user = orjson.loads(await self.request("$SYS.REQ.USER.INFO", b"", LIMITS_S))
                    name = str(user["data"]["account"])
                self._account = time.monotonic(), info, name
            _, info, name = self._account
        limit = explain_limit(error.code, wanted, info, name)
        return LimitReached(error.subject, error.code, error.description, limit)

    async def api(self, command: str, body: object = None, timeout_s: float = API_TIMEOUT_S) -> dict[str, Any]:
        """One request to JetStream's API, `$JS.API.{command}`, or to what stands in for it.

        Raises:
            Refused: with JetStream's error code.
            LimitReached: a limit of the account or of the server, with its value and key.
            BusTimeout: no answer, or the cluster is about to elect a leader.
        """
        data = b"" if body is None else orjson.dumps(body)
        host = self.connection.api_host
        reply = orjson.loads(await self.request(f"{self._api}.{command}", data, timeout_s, host))
        if error := reply.get("error"):
            code = error.get("err_code", error.get("code", 0))
            if code in NO_LEADER:
                raise BusTimeout(f"{command}: {error.get('description', '')}")
            refused = Refused(command, code, error.get("description", ""))
            wanted = body if isinstance(body, dict) else {}
            raise await self._explained(refused, wanted, 0.0) if code in LIMIT_CODES else refused
        answer: dict[str, Any] = reply
        return answer

    async def request(self, subject: str, data: bytes, timeout_s: float = 2.0, by: str = "") -> bytes:
        """Core request, to be answered by the process that is named `by`; by the server, if that is empty.

        Raises:
            BusTimeout: no answer within `timeout_s` seconds.
            NoResponders: nothing is subscribed to `subject`.
            PermissionDenied: this user may not publish to `subject`, or not receive answers.
        """
        return (await self._send_request(subject, data, timeout_s, by))[0]

    async def _send_request(self, subject: str, data: bytes, timeout_s: float, by: str) -> tuple[bytes, Headers]:
        if self._deaf is not None:
            raise PermissionDenied(self._deaf.problem)
        reply = self._reply_subject(by, self._token())
        answer: asyncio.Future[tuple[bytes, Headers]] = asyncio.get_running_loop().create_future()
        self._requests[reply] = (subject, answer)
        try:
            self.connection.write(subject, data, reply)
            async with asyncio.timeout(timeout_s):
                data, headers = await answer
        except TimeoutError:
            raise BusTimeout(f"{subject}: no answer within {timeout_s} s") from None
        finally:
            del self._requests[reply]
        if not data and headers.get(STATUS) == str(NO_RESPONDERS):
            raise NoResponders(subject)
        return data, headers

    async def create_consumer(
        self, stream: str, name: str, filters: tuple[str, ...], first: int, deliver: str, *, newest: bool = False
    ) -> int:
        """Create an ephemeral, unacknowledged, flow-controlled push consumer; returns its number of pending messages.

        `first` is the sequence to begin at; `newest` delivers only the last message of each subject. In a secured swarm
        only a trusted role calls this: a consumer's deliver subject bypasses subscribe permissions.
        """
        policy: dict[str, Any] = {"deliver_policy": "all"}
        if newest:
            policy = {"deliver_policy": "last_per_subject"}
        elif first > 1:
            policy = {"deliver_policy": "by_start_sequence", "opt_start_seq": first}
        config = {
            "name": name,
            "description": self.connection.name,  # `nats consumer info` shows whose it is
            **policy,
            "filter_subjects": list(filters),
            "deliver_subject": deliver,
            "ack_policy": "none",
            "max_deliver": 1,
            "replay_policy": "instant",
            "flow_control": True,
            "idle_heartbeat": int(IDLE_HEARTBEAT_S * NANOSECOND),
            "inactive_threshold": int(INACTIVE_THRESHOLD_S * NANOSECOND),
            "mem_storage": True,
            "num_replicas": 1,
        }
        info = await self.api(f"CONSUMER.CREATE.{stream}.{name}", {"stream_name": stream, "config": config})
        pending: int = info["num_pending"]
        return pending

    def delete_consumer(self, stream: str, name: str) -> None:
        """Remove a consumer; the server would remove it after INACTIVE_THRESHOLD_S."""
        with contextlib.suppress(BusError):
            self.connection.write(f"{self._api}.CONSUMER.DELETE.{stream}.{name}", b"")


async def _nothing() -> None:
    """The client renews subscriptions itself."""


def _read_reply(data: bytes) -> dict[str, Any]:
    """The JSON object of an answer; empty if it is none."""
    try:
        reply = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return reply if isinstance(reply, dict) else {}


def _is_ack(reply: dict[str, Any]) -> bool:
    """Whether an answer is that of a stream: somebody may store a space of subjects in which requests are sent too."""
    return "stream" in reply and ("seq" in reply or "error" in reply)


def _ack_of(reply: dict[str, Any], subject: str) -> Ack | BusError:
    if not reply:
        return Refused(subject, NO_RESPONDERS, "no stream takes this subject now")
    if error := reply.get("error"):
        code = error.get("err_code", error.get("code", 0))
        if code == WRONG_LAST_SEQUENCE:
            return WrongSequence(subject, error.get("description", ""))
        return Refused(subject, code, error.get("description", ""))
    return Ack(reply["seq"], bool(reply.get("duplicate")))
