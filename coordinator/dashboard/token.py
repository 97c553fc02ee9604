"""The token of the dashboard: the right to act on agents, in a file that only the owner of the state directory reads."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from bus.errors import UsageError

TOKEN_FILE = "dashboard.token"
"""Relative to the state directory."""
SHORTEST = 32
"""Characters of the shortest token that a file may hold: no person invents one that long."""


def load_token(state_dir: Path) -> str:
    """The token of the state directory, created on the first call.

    A file that others may read or that holds no token is replaced by a new one.

    Raises:
        UsageError: the file cannot be read or written.
    """
    path = state_dir / TOKEN_FILE
    try:
        return _read(path) or _create(path)
    except OSError as error:
        raise UsageError(
            f"{path}: expected a file for the dashboard's token, mode 0600 ({error.strerror}); run the command as the "
            "owner of the state directory, or name another one with --state-dir"
        ) from None


def _read(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                return None
            token = file.read(1024).decode("ascii", errors="replace").strip()
    except FileNotFoundError:
        return None
    return token if len(token) >= SHORTEST and token.isascii() and token.isprintable() else None


def _create(path: Path) -> str:
    token = secrets.token_urlsafe(32)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, f"{token}\n".encode())
        temporary.replace(path)
    finally:
        os.close(descriptor)
    return token


def cookie_value(token: str) -> str:
    """What the cookie of a browser holds that has shown the token: it proves the token, and is not the token."""
    return hmac.new(token.encode(), b"signalmesh dashboard cookie", hashlib.sha256).hexdigest()


def same(one: str, other: str) -> bool:
    """Whether two secrets are equal, in a time that does not depend on where they differ."""
    return hmac.compare_digest(one.encode(), other.encode())
