"""JetStream's limits of an account and of a server: which one a refusal is about, its value, its usage, its key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["LIMIT_CODES", "explain_limit"]

ACCOUNT_EXCEEDED = 10002
SERVER_EXCEEDED = 10023
STORAGE_EXCEEDED = 10047
MEMORY_EXCEEDED = 10028
MAX_STREAM_BYTES = 10122


@dataclass(frozen=True, slots=True)
class _Limit:
    """One limit: its field in the answer of $JS.API.INFO, its key in the server's configuration, and what uses it."""

    field: str
    key: str
    used: tuple[tuple[str, str], ...] = ()
    """Fields of the answer with a word for each."""
    in_bytes: bool = False
    storage: str = "file"


_STORE = _Limit("max_storage", "max_store", (("storage", "used"), ("reserved_storage", "reserved")), in_bytes=True)
_MEMORY = _Limit("max_memory", "max_memory", (("memory", "used"), ("reserved_memory", "reserved")), in_bytes=True)
_LIMITS: dict[int, tuple[_Limit, ...]] = {
    ACCOUNT_EXCEEDED: (_STORE, _MEMORY),
    SERVER_EXCEEDED: (),
    10026: (_Limit("max_consumers", "max_consumers", (("consumers", "used"),)),),
    10027: (_Limit("max_streams", "max_streams", (("streams", "used"),)),),
    MEMORY_EXCEEDED: (_MEMORY,),
    STORAGE_EXCEEDED: (_STORE,),
    10113: (_Limit("max_bytes_required", "max_bytes_required"),),
    10121: (_Limit("max_ack_pending", "max_ack_pending"),),
    MAX_STREAM_BYTES: (
        _Limit("storage_max_stream_bytes", "disk_max_stream_bytes", in_bytes=True),
        _Limit("memory_max_stream_bytes", "memory_max_stream_bytes", in_bytes=True, storage="memory"),
    ),
}
"""JetStream's error code -> the limits of an account that it may be about."""
LIMIT_CODES = frozenset(_LIMITS)
"""JetStream's error codes for a limit of the account, or of the server."""
_SERVER_KEYS = {
    SERVER_EXCEEDED: "jetstream.max_file_store or max_memory_store",
    STORAGE_EXCEEDED: "jetstream.max_file_store",
    MEMORY_EXCEEDED: "jetstream.max_memory_store",
}
"""Those that may be about a limit of the server, and its key."""
JWT_ACCOUNT = re.compile("A[A-Z2-7]{55}")
"""Accounts of an operator are known by their public key."""


def explain_limit(code: int, wanted: Mapping[str, Any], info: Mapping[str, Any], account: str) -> str:
    """The limit that `code` of LIMIT_CODES is about, its value and usage, and what to raise.

    `wanted` is the refused configuration of a stream, {} for anything else. `info` is the answer of $JS.API.INFO, {} if
    there is none; `account` the account's name, "" if it is unknown.
    """
    found = [
        (usage, limit)
        for usage in _tiers(info, wanted.get("num_replicas"))
        for limit in _LIMITS[code]
        if _is_cause(code, limit, usage, wanted)
    ]
    if found:
        usage, limit = max(found, key=lambda each: _share(each[1], each[0]))
        value = usage["limits"][limit.field]
        if value is True:
            return f"{limit.key} is true; set {_key(account, limit.key)} to false{_where(account)}"
        used = "".join(f", {_amount(limit, usage.get(field, 0))} {word}" for field, word in limit.used)
        return f"{limit.key} is {_amount(limit, value)}{used}; raise {_key(account, limit.key)}{_where(account)}"
    if info and code in _SERVER_KEYS:
        return f"the server itself has no more; raise {_SERVER_KEYS[code]} in its configuration, or free space there"
    if info:
        return "a limit of the stream or the server, not of the account"
    keys = [_key(account, limit.key) for limit in _LIMITS[code]]
    keys += [_SERVER_KEYS[code]] if code in _SERVER_KEYS else []
    return f"a limit that this user may not read; raise {' or '.join(keys)}{_where(account)}"


def _tiers(info: Mapping[str, Any], replicas: int | None) -> list[Mapping[str, Any]]:
    """Usage with limits: of the account, or where an operator set them by number of replicas, of each such tier."""
    tiers: Mapping[str, Mapping[str, Any]] = info.get("tiers") or {}
    if f"R{replicas}" in tiers:
        return [tiers[f"R{replicas}"]]
    return [*tiers.values()] or [info]


def _is_cause(code: int, limit: _Limit, usage: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    value: int = usage.get("limits", {}).get(limit.field, -1)
    if isinstance(value, bool) or value < 0:
        return value is True
    if code == MAX_STREAM_BYTES:
        return bool(wanted.get("storage", "file") == limit.storage)
    if code in _SERVER_KEYS:  # the server's own limit has the same code
        size = max(0, wanted.get("max_bytes") or 0) * (wanted.get("num_replicas") or 1)
        used: int = max(usage.get(field, 0) for field, _ in limit.used)
        return used + size >= value
    return True


def _share(limit: _Limit, usage: Mapping[str, Any]) -> float:
    """The part of the limit that is used."""
    used = max((usage.get(field, 0) for field, _ in limit.used), default=0)
    return float(used / max(1, usage["limits"][limit.field]))


def _amount(limit: _Limit, value: int) -> str:
    return f"{value:,} bytes" if limit.in_bytes else str(value)


def _key(account: str, key: str) -> str:
    return key if JWT_ACCOUNT.fullmatch(account) else f"accounts.{account or 'ACCOUNT'}.jetstream.{key}"


def _where(account: str) -> str:
    if JWT_ACCOUNT.fullmatch(account):
        return f" in the JWT of the account {account} (nsc edit account)"
    return " in the server's configuration"
