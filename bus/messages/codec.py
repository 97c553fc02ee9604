"""Decodes, checks and encodes messages, and explains invalid ones.

`decode` validates (required fields, types, finite numbers, size, the topic) and raises `MessageError` for a poison
message; unknown fields are ignored. `encode` returns the only published byte form: fields in order of
definition, without None, timestamps UTC with a Z, floats rounded to 10 places.
"""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
import orjson

from bus.errors import MessageError
from bus.messages import headers as h
from bus.messages.payloads import (
    KINDS,
    LARGEST_PRICE,
    LARGEST_VOLUME,
    Child,
    Decision,
    Heartbeat,
    Lifecycle,
    MarketData,
    Message,
    SandboxAccount,
    SandboxUsage,
    Sentiment,
    Signal,
    VotingConfig,
)
from bus.messages.reporters import check_reporter
from bus.messages.subjects import RESERVED_NAMES, STANDBY, WATCHDOG, Address, escape_topic
from bus.utils.error_text import MAX_ERROR_TEXT, shorten
from bus.utils.json_text import parse_json

MAX_PAYLOAD_BYTES = 256 * 1024
"""Largest payload that is read or written; the embedded server's limit also."""
FLOAT_PLACES = 10
"""Published floats are rounded to this many decimal places; those in the units of a market may have more."""
SIGNIFICANT_DIGITS = 12
"""At least so many digits of a price, a volume or an indicator are published, whatever its magnitude."""
MAX_VALUE_CHARS = 100
"""Characters of an invalid value in an error message."""

_AT_FIELD = re.compile(r" - at `\$\.(\w+)")
_MISSING = re.compile(r"missing required field `(\w+)`")
_JSON = (str, bool, int, float, type(None))
_UNIT_FIELDS: dict[type, tuple[str, ...]] = {
    Sentiment: ("confidence", "p_up"),
    Signal: ("strength", "p_up"),
    Decision: ("position_size", "risk_score", "consensus_level"),
}
_HAS_SYMBOL = frozenset({"sentiment", "signal", "decision"})
_SIGNED = _HAS_SYMBOL | {"config", "alert"}
"""Kinds whose writer is the one in their subject, not `source`: a server can restrict write access to subjects."""


def _check_market(tick: MarketData) -> None:
    for name in ("price", "open", "high", "low"):
        price = getattr(tick, name)
        if price is not None and not 0 < price <= LARGEST_PRICE:
            raise ValueError(f"{name}: expected more than 0 and at most {LARGEST_PRICE:g}, not {price}")
    if not 0 <= tick.volume <= LARGEST_VOLUME:
        raise ValueError(f"volume: expected 0 to {LARGEST_VOLUME:g}, not {tick.volume}")
    if tick.low is not None and tick.high is not None and tick.low > tick.high:
        raise ValueError(f"low: expected at most high ({tick.high}), not {tick.low}")


def _check(value: Any, address: Address) -> None:
    """Check what the types do not express: ranges (the JSON parser already refuses infinities and NaN) and writers."""
    if isinstance(value, Lifecycle):
        check_reporter(value, address)
    if isinstance(value, Heartbeat):
        _check_sender(value, address.agent)
    for name in _UNIT_FIELDS.get(type(value), ()):
        number = getattr(value, name)
        if number is not None and not 0 <= number <= 1:
            raise ValueError(f"{name}: expected a number from 0 to 1, not {number}")
    if isinstance(value, MarketData):
        _check_market(value)
    if isinstance(value, VotingConfig):
        if any(weight < 0 for weight in value.voters.values()) or (value.voters and not sum(value.voters.values())):
            raise ValueError("voters: expected weights of 0 or more, not all 0")
        if not 0 <= value.sell_at <= value.buy_at <= 1 or not 0 <= value.quorum < 1:
            raise ValueError("expected 0 <= sell_at <= buy_at <= 1 and 0 <= quorum < 1")
        if value.vol_target <= 0 or value.drawdown_max <= 0 or value.cvar_max <= 0 or value.round_timeout_ms < 1:
            raise ValueError("vol_target, drawdown_max, cvar_max and round_timeout_ms: expected more than 0")


def _check_sender(heartbeat: Heartbeat, name: str) -> None:
    """The subject names who sends it, and a server restricts who publishes there: the payload may name nobody else."""
    if heartbeat.agent != name:
        raise ValueError(f"agent: {format_value(heartbeat.agent)} is not of this subject, expected {name!r}")
    role = heartbeat.role
    if role in ("agent", "sandbox"):
        expected = name not in RESERVED_NAMES
    else:
        expected = name == role or (role == WATCHDOG and name == STANDBY)
    if not expected:
        raise ValueError(f"role: {format_value(role)} is not that of {name!r}")
    if heartbeat.group is not None and not name.startswith(f"{heartbeat.group}-"):
        raise ValueError(f"group: {format_value(heartbeat.group)} does not begin the name {name!r} of its host")


def check_lifetime(address: Address, subject: str, headers: Mapping[str, str]) -> None:
    """Refuse a message that the stream forgets before others: nobody could compute later what has followed from it.

    Raises:
        MessageError: it has a lifetime of its own; claims and VotingConfigs alone may have one, `never`.
    """
    lifetime = headers.get(h.TTL)
    if lifetime is not None and not (lifetime == "never" and address.kind in ("epoch", "config")):
        raise MessageError(subject, f"{h.TTL} {format_value(lifetime)}: expected no lifetime of its own")


def decode(address: Address, subject: str, data: bytes) -> Message:
    """Decode `data`, which was received on `subject` (already parsed into `address`).

    Raises:
        MessageError: an unknown kind, malformed or too deeply nested JSON, a missing or mistyped field, a number that
            is not finite or is out of range, a symbol that is not the subject's topic, a report that its writer may not
            make, or more than MAX_PAYLOAD_BYTES.
    """
    cls = KINDS.get(address.kind)
    if cls is None:
        raise MessageError(subject, f"unknown kind {address.kind!r}, expected one of {', '.join(KINDS)}")
    if len(data) > MAX_PAYLOAD_BYTES:
        raise MessageError(subject, f"{len(data)} bytes, expected at most {MAX_PAYLOAD_BYTES}")
    try:
        raw = parse_json(data)
        if not isinstance(raw, dict):
            raise ValueError(f"expected a JSON object, not {type(raw).__name__}")
        if address.kind in _SIGNED and isinstance(raw.get("source"), str):
            raw["source"] = address.agent
        if address.topic is not None and (address.kind in _HAS_SYMBOL or address.kind == "market"):
            symbol = raw.get("symbol")
            if symbol is None and address.kind in _HAS_SYMBOL:
                raw["symbol"] = address.topic
            elif isinstance(symbol, str) and symbol != address.topic:
                own = format_value(escape_topic(symbol)) if symbol else "missing"
                raise ValueError(
                    f"symbol: {format_value(symbol)} does not belong under this subject, expected {address.topic!r} "
                    f"here (its own topic is {own})"
                )
        value = msgspec.convert(raw, cls)
        _check(value, address)
        stamp = getattr(value, "timestamp", None)
        if stamp is not None and stamp.utcoffset() != _ZERO:
            value = dataclasses.replace(value, timestamp=_utc(stamp))  # type: ignore[arg-type]
    except (ValueError, msgspec.ValidationError, RecursionError, OverflowError) as error:
        raise MessageError(subject, shorten(str(error), MAX_ERROR_TEXT)) from None
    return value


_ZERO = datetime.now(UTC).utcoffset()


def _utc(stamp: datetime) -> datetime:
    return stamp.replace(tzinfo=UTC) if stamp.tzinfo is None else stamp.astimezone(UTC)


def _round_relative(value: float) -> float:
    if value == 0.0 or not math.isfinite(value):
        return value
    return round(value, max(FLOAT_PLACES, SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(abs(value)))))


def _plain(value: Any, rounded: Callable[[float], float] = lambda value: round(value, FLOAT_PLACES)) -> Any:
    if isinstance(value, datetime):
        return value if value.tzinfo is UTC else _utc(value)
    if isinstance(value, (Child, SandboxUsage, SandboxAccount)):
        fields = ((name, getattr(value, name)) for name in value.__slots__)
        return {name: _plain(item) for name, item in fields if item is not None}
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("expected finite numbers only")
        return rounded(value)
    if isinstance(value, dict):
        return {key: _plain(item, rounded) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, rounded) for item in value]
    return value


_IN_MARKET_UNITS = {"price", "volume", "indicators"}
_FIELDS = {cls: tuple(f.name for f in dataclasses.fields(cls)) for cls in KINDS.values()}


def encode(message: Message) -> bytes:
    """The published bytes of a message.

    Raises:
        ValueError: it contains a number that is not finite, or a value that JSON cannot represent.
    """
    fields = {}
    for name in _FIELDS[type(message)]:
        value = getattr(message, name)
        if value is not None:
            if isinstance(value, (str, int)):
                fields[name] = value
            else:
                fields[name] = _plain(value, _round_relative) if name in _IN_MARKET_UNITS else _plain(value)
    try:
        return orjson.dumps(fields, option=orjson.OPT_UTC_Z)
    except orjson.JSONEncodeError as error:
        raise ValueError(str(error)) from None


def explain(cls: type, fields: dict[str, Any], error: Exception) -> str:
    """Why a message of `cls` with these fields is invalid; `error` is from creating or decoding it."""
    problem = error.problem if isinstance(error, MessageError) else str(error)
    for path, value in _leaves(fields):
        if isinstance(value, float) and not math.isfinite(value):
            return f"{path}: expected a finite number, not {value}"
        if not isinstance(value, (*_JSON, datetime)):
            return f"{path}: expected a JSON value, not {format_value(value)} ({type(value).__name__})"
    if found := _MISSING.search(problem):
        return f"{found[1]}: missing, expected {_expected(cls, found[1])}"
    if found := _AT_FIELD.search(problem):
        name = found[1]
        return f"{name}: expected {_expected(cls, name)}, not {format_value(fields.get(name))}"
    return problem


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for at, item in enumerate(value):
            yield from _leaves(item, f"{path}[{at}]")
    else:
        yield path, value


def _expected(cls: type, name: str) -> str:
    """A field's type in words."""
    hint = typing.get_type_hints(cls).get(name)
    values = [item for part in (hint, *typing.get_args(hint)) for item in typing.get_args(part)]
    if values and all(isinstance(value, str) for value in values):
        return f"one of {', '.join(values)}"
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def format_value(value: Any) -> str:
    """A value for an error message."""
    text = repr(value)
    return text if len(text) <= MAX_VALUE_CHARS else text[:MAX_VALUE_CHARS] + "…"
