"""Names of the message headers (contract): the project's and the server's."""

from __future__ import annotations

from collections.abc import Mapping

MSG_ID = "Nats-Msg-Id"
"""`{agent}:{output}`. The server drops a duplicate within two minutes. With `:{random}` at its end if it was taken."""
OUTPUT = "Mesh-Output"
"""Number of this output of its agent, contiguous from 1."""
EPOCH = "Mesh-Epoch"
"""Stream sequence of the claim under which the message was published."""
CAUSE = "Mesh-Cause"
"""Stream sequence of the input that caused the message. Events of a source have none."""
EXPECTED_LAST_SUBJECT_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
"""The fence: the stream sequence of the agent's claim. The server refuses the message if there is a newer claim."""
EXPECTED_LAST_SUBJECT = "Nats-Expected-Last-Subject-Sequence-Subject"
"""The subject of that claim."""
SEQUENCE = "Nats-Sequence"
"""On the read side: the message's stream sequence."""
LAST_SEQUENCE = "Nats-Last-Sequence"
"""On the read side: sequence of the previous message of this subject, to detect gaps."""
STORED_AT = "Nats-Time-Stamp"
"""On single messages that are read back: when the server stored them (RFC 3339)."""
TTL = "Nats-TTL"
"""How long the server keeps the message, independent of its stream's age limit. Claims and Configs have `never`."""
KV_OPERATION = "KV-Operation"
"""In a bucket: the message deletes its key."""
TRACEPARENT = "traceparent"
"""With tracing: the span of this message, as W3C Trace Context defines it, if its trace is sampled. For a declared
death: the root of its recovery."""

_DIGITS = 18
"""Digits of the longest accepted number: enough for any stream sequence, without overflow."""


def number(headers: Mapping[str, str], name: str) -> int | None:
    """A header's whole number; None if it is missing or not a number."""
    value = headers.get(name)
    return int(value) if value and len(value) <= _DIGITS and value.isascii() and value.isdigit() else None
