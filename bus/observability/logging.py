"""Logging by structlog: event names with fields; pretty on a terminal, one JSON object a line elsewhere.

The only place that configures it. Tracebacks never show local variables: they could hold credentials.
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
"""A seed of an nkey: S, the kind of its owner, and base 32."""
HIDDEN = "***"
TRACE_ID: ContextVar[str] = ContextVar("signalmesh_trace_id", default="")
"""The trace that is being worked for; each line that is logged meanwhile names it."""
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def is_secret(name: str) -> bool:
    """Whether a field, key or setting of this name holds a secret."""
    return SECRET_KEY.search(name) is not None


def _redacted(name: str, value: Any) -> Any:
    if isinstance(value, str):
        if is_secret(name):
            return HIDDEN
        text = USERINFO.sub(rf"\1{HIDDEN}@", value) if "@" in value else value
        return SEED.sub(HIDDEN, text)
    if isinstance(value, dict):
        return {key: _redacted(str(key), item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redacted(name, item) for item in value]
    if isinstance(value, BaseException):
        return _redacted(name, f"{type(value).__name__}: {value}")
    return value


def trace(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Name the active trace, if there is one."""
    if trace_id := TRACE_ID.get():
        event.setdefault("trace_id", trace_id)
    return event


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Blank out fields named like secrets, users and passwords in URLs, and seeds of nkeys, however deep they are."""
    for key, value in event.items():
        event[key] = _redacted(key, value)
    return event


def sanitize(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Make every text harmless for a terminal; other values are shown by `repr`, which escapes already."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = escape_control(value)
    return event


def _as_json(event: Any, **_: Any) -> str:
    try:
        return orjson.dumps(event, default=str).decode()
    except TypeError:  # it takes no half of a character, as a file's name may hold one
        return json.dumps(event, default=str)


class _TolerantStream:
    """A stream that bears a full disk: what cannot be written is left out, as no log is worth a process.

    Each text, a line with its end, is one write of the system's: agents share a file with their host, and nothing of
    another process may come between a line and its end.
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
            self._stream.flush()  # what others have printed there comes before it
            data = text.encode(errors="backslashreplace")
            while data:  # once, but for a disk or a pipe that takes a part only
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
            redact,
            structlog.processors.JSONRenderer(_as_json),
        ]
    else:
        shared += [
            sanitize,
            structlog.processors.format_exc_info,
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
    logging.getLogger("nats").setLevel(
        logging.CRITICAL
    )  # its read-loop noise is ours to report, in bus/nats/connection.py
