"""Logging by structlog: event names with fields; coloured on a terminal, otherwise one JSON object a line.

Only this module configures logging. Tracebacks never show local variables: they could hold credentials.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any, TextIO, cast

import orjson
import structlog

from bus.utils.terminal import escape_control

SECRET_KEY = re.compile(
    r"pass(word|wd|phrase)?$|token$|secret|seed$|nkey|api_?key|creds|credential|authori[sz]ation|cookie|webhook|jwt$",
    re.IGNORECASE,
)
USERINFO = re.compile(r"(\w+://)[^/@\s]+@")
SEED = re.compile(r"\bS[ACNOUX][A-Z2-7]{56}\b")
"""The seed of an nkey: S, the kind of key, and base 32."""
HIDDEN = "***"
SHORTEST_HIDDEN = 8
"""Characters of the shortest text that `hide` hides: shorter ones occur in other words too."""
MAX_LOG_TEXT = 20_000
"""Characters of the longest value of a field."""
TRACE_ID: ContextVar[str] = ContextVar("signalmesh_trace_id", default="")
"""The trace of the current work; every log line of that work contains it."""
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


_hidden: set[str] = set()


def hide(secret: str) -> None:
    """Redact each line of `secret` in all further logs of this process, wherever it occurs."""
    _hidden.update(line for line in map(str.strip, secret.splitlines()) if len(line) >= SHORTEST_HIDDEN)


def is_secret(name: str) -> bool:
    """Whether a field, key or setting of this name holds a secret."""
    return SECRET_KEY.search(name) is not None


def _redacted(name: str, value: Any) -> Any:
    if isinstance(value, str):
        if is_secret(name):
            return HIDDEN
        text = USERINFO.sub(rf"\1{HIDDEN}@", value) if "@" in value else value
        for secret in _hidden:
            text = text.replace(secret, HIDDEN)
        return SEED.sub(HIDDEN, text)
    if isinstance(value, dict):
        return {key: _redacted(str(key), item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redacted(name, item) for item in value]
    if isinstance(value, BaseException):
        return _redacted(name, f"{type(value).__name__}: {value}")
    return value


def trace(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add the active trace, if there is one."""
    if trace_id := TRACE_ID.get():
        event.setdefault("trace_id", trace_id)
    return event


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Redact fields named like secrets, users and passwords in URLs, and seeds of nkeys, at any depth."""
    for key, value in event.items():
        event[key] = _redacted(key, value)
    return event


def sanitize(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape control characters in every text; other values are printed by `repr`, which escapes them."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = escape_control(value)
    return event


def bound(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Shorten long texts, of an exception for example: a line of megabytes takes a second."""
    for key, value in event.items():
        if isinstance(value, str) and len(value) > MAX_LOG_TEXT:
            left = len(value) - MAX_LOG_TEXT
            half = MAX_LOG_TEXT // 2
            event[key] = f"{value[:half]} … ({left} characters left out) … {value[-half:]}"
    return event


def _as_json(event: Any, **_: Any) -> str:
    try:
        return orjson.dumps(event, default=str).decode()
    except TypeError:  # orjson refuses surrogates, which the name of a file can contain
        return json.dumps(event, default=str)


class _TolerantStream:
    """A stream that ignores write errors: a full disk must not end a process.

    Each text, a line with its end, is one system call: agents share a file with their host, and the lines of two
    processes must not mix.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._descriptor: int | None = None
        with contextlib.suppress(OSError):  # io.UnsupportedOperation: it is in memory only
            self._descriptor = stream.fileno()

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            if self._descriptor is None:
                return self._stream.write(text)
            self._stream.flush()  # earlier prints come first
            data = text.encode(errors="backslashreplace")
            while data:  # more than once only if a disk or a pipe takes a part
                data = data[os.write(self._descriptor, data) :]
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def set_up_logs(level: str = "info", stream: TextIO | None = None, *, json: bool | None = None) -> None:
    """Configure logging for this process; `json` None: JSON unless `stream` (stderr) is a terminal."""
    stream = stream or sys.stderr
    if json is None:
        json = not stream.isatty()
    stream = cast(TextIO, _TolerantStream(stream))
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        trace,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if json:
        shared += [
            structlog.processors.format_exc_info,
            bound,
            redact,
            structlog.processors.JSONRenderer(_as_json),
        ]
    else:
        shared += [
            bound,
            sanitize,
            structlog.processors.format_exc_info,
            bound,
            redact,
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
        ]
    structlog.configure(
        processors=shared,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.ERROR, stream=stream, force=True)
    logging.getLogger("nats").setLevel(logging.CRITICAL)  # bus/nats/connection.py logs the errors of its read loop
