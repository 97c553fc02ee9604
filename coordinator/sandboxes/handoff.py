"""The bootstrap payload: one line of JSON that the provider writes to the standard input of a host it starts."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import msgspec

from bus.errors import UsageError
from bus.nats.credentials import Credentials
from bus.nats.urls import check_url

__all__ = ["BootstrapPayload", "read_payload"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BootstrapPayload:
    """Bus URL (may contain credentials), bus credentials, and the label of the provider's `endpoint`.

    `age_s` is the age of the sandbox in seconds.
    """

    url: str = field(repr=False)
    credentials: Credentials = field(repr=False)
    endpoint: str
    age_s: float


def read_payload() -> BootstrapPayload:
    """Read the payload from standard input and check it.

    Raises:
        UsageError: it is invalid; the message does not contain it.
    """
    try:
        payload = msgspec.json.decode(sys.stdin.buffer.readline(), type=BootstrapPayload)
    except msgspec.DecodeError:
        raise UsageError(
            "--credentials-stdin: expected one line of JSON on standard input with url, credentials, endpoint and age_s"
        ) from None
    check_url(payload.url)
    return payload
