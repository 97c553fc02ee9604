"""Logging by structlog: event names with fields; pretty on a terminal, one JSON object a line elsewhere.

The only place that configures it. Tracebacks never show local variables: they could hold credentials.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO, cast

import orjson
import structlog

from bus.plain import harmless

SECRET_KEY = re.compile(r"pass(word)?$|token|secret|seed|api_?key|creds|credential", re.IGNORECASE)
USERINFO = re.compile(r"(\w+://)[^/@\s]+@")
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Blank out fields named like secrets, and user names and passwords in URLs."""
    for key, value in event.items():
        if SECRET_KEY.search(key):
            event[key] = "***"
        elif isinstance(value, str) and "@" in value:
            event[key] = USERINFO.sub(r"\1***@", value)
    return event


def disarm(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Make every text harmless for a terminal; other values are shown by `repr`, which escapes already."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = harmless(value)
    return event


class _Bearing:
    """A stream that bears a full disk: what cannot be written is left out, as no log is worth a process."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            return self._stream.write(text)
        return 0

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def set_up_logs(level: str = "info", stream: TextIO | None = None, *, json: bool | None = None) -> None:
    """Configure logging for this process; `json` None: JSON unless `stream` (stderr) is a terminal."""
    stream = stream or sys.stderr
    if json is None:
        json = not stream.isatty()
    stream = cast(TextIO, _Bearing(stream))
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        redact,
    ]
    if json:
        shared += [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(lambda event, **_: orjson.dumps(event, default=str).decode()),
        ]
    else:
        shared += [disarm, structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    structlog.configure(
        processors=shared,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.ERROR, stream=stream, force=True)
    logging.getLogger("nats").setLevel(logging.CRITICAL)  # its read-loop noise is ours to report, in bus/connection.py
