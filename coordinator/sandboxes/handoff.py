"""The bootstrap payload: one line of JSON that the provider writes to the standard input of a host it starts."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import msgspec

from bus.errors import UsageError
from bus.nats.credentials import Credentials
from bus.nats.urls import check_url
from bus.utils.json_text import parse_json

__all__ = ["BootstrapPayload", "parse_payload", "read_payload"]

MAX_PAYLOAD_BYTES = 1 << 20
"""Credentials with certificates have some kilobytes."""


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
    return parse_payload(sys.stdin.buffer.readline(MAX_PAYLOAD_BYTES))


def parse_payload(line: bytes) -> BootstrapPayload:
    """The payload in a line; raises as `read_payload`."""
    try:
        payload = msgspec.convert(parse_json(line), BootstrapPayload)
    except ValueError:
        raise UsageError(
            "--credentials-stdin: expected one line of JSON on standard input with url, credentials, endpoint and age_s"
        ) from None
    check_url(payload.url)
    return payload
