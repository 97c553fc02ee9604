"""Maps each error of the E2B SDK to a verdict: retry, replace the sandbox, or fail. Imports the SDK."""

from __future__ import annotations

from typing import Literal

import httpx
from circuitbreaker import CircuitBreakerError
from e2b import (
    AuthenticationException,
    InvalidArgumentException,
    NotEnoughSpaceException,
    RateLimitException,
    SandboxException,
    TemplateException,
    TimeoutException,
)
from e2b.exceptions import (
    SandboxNotFoundException,
    SandboxNotRunningException,
    SandboxUnreachableException,
    ServiceBusyException,
)

from bus.errors import MeshError

__all__ = ["PermanentError", "SandboxGone", "Verdict", "error_text", "is_outage", "verdict_on"]

Verdict = Literal["retry", "replace", "fail"]
VERDICTS: tuple[tuple[type[BaseException], Verdict], ...] = (
    # AuthenticationException and ServiceBusyException are no SandboxExceptions, an unreachable API is httpx's own.
    (AuthenticationException, "fail"),
    (SandboxNotFoundException, "replace"),
    (SandboxNotRunningException, "replace"),
    (SandboxUnreachableException, "retry"),
    (TimeoutException, "retry"),
    (RateLimitException, "retry"),
    (ServiceBusyException, "retry"),
    (NotEnoughSpaceException, "replace"),
    (TemplateException, "fail"),
    (InvalidArgumentException, "fail"),
    (httpx.UnsupportedProtocol, "fail"),
    (httpx.InvalidURL, "fail"),
    (UnicodeError, "fail"),
    (httpx.TransportError, "retry"),
    (CircuitBreakerError, "retry"),
    (OSError, "retry"),
)
"""The first match counts; subclasses come before their bases."""
PERMANENT_STATUSES = frozenset({400, 402, 403, 404, 405, 409, 413, 415, 422})
"""Statuses that the API would return again for the same request."""


class SandboxGone(MeshError):
    """A sandbox no longer exists or is unusable; it has to be replaced."""


class PermanentError(MeshError):
    """A retry cannot succeed: an operator must act."""


def verdict_on(error: BaseException) -> Verdict:
    """`replace`: the sandbox is lost. `fail`: a retry would fail as well. All other errors are retried."""
    for kind, verdict in VERDICTS:
        if isinstance(error, kind):
            return verdict
    if isinstance(error, SandboxException) and error.status_code in PERMANENT_STATUSES:
        return "fail"
    return "retry"


def is_outage(kind: type[BaseException], error: BaseException) -> bool:
    """Whether the error means that the service itself is unhealthy; a full quota does not."""
    return verdict_on(error) == "retry" and not issubclass(kind, (RateLimitException, SandboxUnreachableException))


def error_text(error: BaseException, secret: str = "") -> str:
    """The message in one line, with `secret` redacted."""
    text = " ".join(str(error).split())
    if secret:
        text = text.replace(secret, "[secret]")
    return text or type(error).__name__
