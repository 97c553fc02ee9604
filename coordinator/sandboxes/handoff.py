"""What a launcher hands to the host that it has started: one line of JSON on standard input, and nothing elsewhere."""

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
    """The bus's address, which may hold credentials, and what else its server asks for; `endpoint` says where it is.

    `age_s` is how many seconds ago the place was made.
    """

    url: str = field(repr=False)
    credentials: Credentials = field(repr=False)
    endpoint: str
    age_s: float


def read_payload() -> BootstrapPayload:
    """Read and check it.

    Raises:
        UsageError: it is something else; the message does not show it.
    """
    try:
        payload = msgspec.json.decode(sys.stdin.buffer.readline(), type=BootstrapPayload)
    except msgspec.DecodeError:
        raise UsageError(
            "--credentials-stdin: expected a line of JSON on standard input, with url, credentials, endpoint and age_s"
        ) from None
    check_url(payload.url)
    return payload
