"""What the SDK raises, and what is to be done about it: one table. Imports the SDK."""

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

__all__ = ["GivenUp", "Gone", "Verdict", "is_illness", "shown", "verdict_on"]

Verdict = Literal["retry", "replace", "give up"]
VERDICTS: tuple[tuple[type[BaseException], Verdict], ...] = (
    # AuthenticationException and ServiceBusyException are no SandboxExceptions, an unreachable API is httpx's own.
    (AuthenticationException, "give up"),
    (SandboxNotFoundException, "replace"),
    (SandboxNotRunningException, "replace"),
    (SandboxUnreachableException, "retry"),
    (TimeoutException, "retry"),
    (RateLimitException, "retry"),
    (ServiceBusyException, "retry"),
    (NotEnoughSpaceException, "replace"),
    (TemplateException, "give up"),
    (InvalidArgumentException, "give up"),
    (httpx.UnsupportedProtocol, "give up"),
    (httpx.InvalidURL, "give up"),
    (UnicodeError, "give up"),
    (httpx.TransportError, "retry"),
    (CircuitBreakerError, "retry"),
    (OSError, "retry"),
)
"""The first that fits; subclasses stand before their bases."""
LASTING = frozenset({400, 402, 403, 404, 405, 409, 413, 415, 422})
"""Statuses of the API that the same request would get again."""


class Gone(MeshError):
    """A sandbox is no more, or no use: another one is to be made."""


class GivenUp(MeshError):
    """What no repetition mends: a person must act."""


def verdict_on(error: BaseException) -> Verdict:
    """`replace`: that sandbox is lost. `give up`: the same again would fail again. All else is worth a repetition."""
    for kind, verdict in VERDICTS:
        if isinstance(error, kind):
            return verdict
    if isinstance(error, SandboxException) and error.status_code in LASTING:
        return "give up"
    return "retry"


def is_illness(kind: type[BaseException], error: BaseException) -> bool:
    """Whether it says that the service itself is not well; a full quota does not."""
    return verdict_on(error) == "retry" and not issubclass(kind, (RateLimitException, SandboxUnreachableException))


def shown(error: BaseException, secret: str = "") -> str:
    """In one line, and without the `secret` that it was asked with."""
    text = " ".join(str(error).split())
    if secret:
        text = text.replace(secret, "[secret]")
    return text or type(error).__name__
