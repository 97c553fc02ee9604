"""The tables [secrets.NAME]: where a secret comes from. It is read when it is needed, and no error or log shows it.

The credentials of the bus are given to the children of a process as the name of a file in memory. No disk has them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from bus.errors import ConfigError
from bus.nats.credentials import CREDS_VARIABLE, SEED_VARIABLE, public_key_of
from bus.observability.logging import hide
from bus.utils.processes import die_with_parent
from coordinator.config.convert import convert, similar

__all__ = [
    "MAX_SECRET_BYTES",
    "SecretSettings",
    "SecretSource",
    "export_secret",
    "offer_bus_credentials",
    "parse_secrets",
    "read_secret",
]

MAX_SECRET_BYTES = 64 * 1024
WAYS = ("file", "env", "stdin", "command")
EXPECTED = 'expected one of file = "…", env = "…", stdin = true and command = […]'
_OTHERS = stat.S_IRWXO


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretSource:
    """Exactly one of the four ways. Relative paths start at the directory of swarm.toml."""

    file: str | None = None
    """File with the secret. Other users of the machine must have no access to it: mode 0600, or 0640 for a group."""
    env: str | None = None
    """Environment variable with the secret. It is removed from the environment once it is read."""
    stdin: bool = False
    """Standard input has the secret, up to its end. Only one secret may."""
    command: tuple[str, ...] | None = None
    """Program and arguments. It prints the secret and ends. It runs without a shell, a terminal or an input."""
    timeout_s: Annotated[float, Meta(gt=0, le=600)] = 10.0
    """Seconds that the command, or the standard input, may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretSettings:
    """A source for each secret, None where swarm.toml has none."""

    e2b_api_key: SecretSource | None = None
    """The key of E2B. `E2B_API_KEY` takes precedence."""
    webhook: SecretSource | None = None
    """The URL that alerts are posted to. `SIGNALMESH_WEBHOOK` takes precedence."""
    nats_creds: SecretSource | None = None
    """A NATS user's JWT and seed, the contents of a .creds file. `--nats-creds` and `--nats-nkey` take precedence."""
    nats_nkey: SecretSource | None = None
    """A NATS user's nkey seed, instead of `nats_creds`."""


def parse_secrets(raw: Mapping[str, Any], file: str) -> SecretSettings:
    """Check the table [secrets].

    Raises:
        ConfigError: something is wrong in it; the message shows no value, which may be the secret itself.
    """
    known = [item.name for item in fields(SecretSettings)]
    found: dict[str, SecretSource] = {}
    for name, table in raw.items():
        key = f"secrets.{name}"
        if name not in known:
            raise ConfigError(file, key, f"unknown secret{similar(name, known)}; expected one of: {', '.join(known)}")
        found[name] = _source(table, file, key)
    if found.keys() >= {"nats_creds", "nats_nkey"}:
        raise ConfigError(file, "secrets.nats_nkey", "expected either this or secrets.nats_creds; remove one of them")
    if len(reading := [name for name, source in found.items() if source.stdin]) > 1:
        raise ConfigError(
            file, f"secrets.{reading[1]}.stdin", f"secrets.{reading[0]} already reads standard input; use another way"
        )
    return SecretSettings(**found)


def _source(raw: Any, file: str, key: str) -> SecretSource:
    if not isinstance(raw, dict):
        raise ConfigError(file, key, f"expected a table [{key}]; the value is not shown, it may be the secret itself")
    command = raw.get("command")
    if command is not None and not (isinstance(command, list) and all(isinstance(word, str) for word in command)):
        raise ConfigError(file, f"{key}.command", 'expected a list of texts, such as ["pass", "show", "signalmesh"]')
    source = convert(raw, SecretSource, file, key)
    given = [way for way in WAYS if way in raw]
    if len(given) != 1:
        raise ConfigError(file, key, f"{EXPECTED}, not {' and '.join(given) or 'none of them'}")
    if not raw[given[0]] or (source.command and not source.command[0]):
        raise ConfigError(file, f"{key}.{given[0]}", f"is empty; {EXPECTED}")
    return source


def read_secret(source: SecretSource, file: str, key: str, *, lines: bool = False) -> str:
    """Read a secret; `file` is the swarm.toml and `key` the table that names `source`.

    Blocks for up to `timeout_s`. A secret is one line without spaces around it, or with `lines` several.

    Raises:
        ConfigError: there is no secret, or more than one line.
    """
    directory = Path(file).resolve().parent
    if source.file is not None:
        data = _from_file(directory / source.file, file, f"{key}.file")
    elif source.env is not None:
        data = os.environ.pop(source.env, "").encode(errors="surrogateescape")
        if not data.strip():
            raise ConfigError(file, f"{key}.env", f"the variable {source.env} is not set, or empty; set it")
    elif source.command is not None:
        data = _from_command(source.command, directory, source.timeout_s, file, f"{key}.command")
    else:
        data = _from_stdin(source.timeout_s, file, f"{key}.stdin")
    return _checked(data, file, key, lines=lines)


def _checked(data: bytes, file: str, key: str, *, lines: bool) -> str:
    if len(data) > MAX_SECRET_BYTES:
        raise ConfigError(file, key, f"expected at most {MAX_SECRET_BYTES} bytes, there are more")
    try:
        text = data.decode().strip()
    except UnicodeDecodeError:
        raise ConfigError(file, key, "expected UTF-8 text; the content is not shown") from None
    if not text:
        raise ConfigError(file, key, "is empty, expected the secret; see what writes it")
    count = len(text.splitlines())
    if count > 1 and not lines:
        raise ConfigError(file, key, f"has {count} lines, expected one with nothing but the secret")
    hide(text)
    return text


def _from_file(path: Path, file: str, key: str) -> bytes:
    try:
        # Not blocking, because a pipe without a writer would hang; what is not a file is refused below.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ConfigError(file, key, f"{path}: there is no such file; create it with mode 0600") from None
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else "not a path"
        raise ConfigError(file, key, f"{path}: cannot be read ({problem}); make it readable for this user") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise ConfigError(file, key, f"{path}: expected a file, not a directory, a pipe or a device")
        if mode & _OTHERS:
            raise ConfigError(
                file,
                key,
                f"{path}: every user of this machine has access to it (mode {stat.S_IMODE(mode):04o}), expected none: "
                f"chmod o= {path}",
            )
        return os.read(descriptor, MAX_SECRET_BYTES + 1)
    finally:
        os.close(descriptor)


def _from_stdin(timeout_s: float, file: str, key: str) -> bytes:
    if sys.stdin is None or sys.stdin.isatty():
        raise ConfigError(file, key, "standard input is a terminal, expected a pipe or a file: COMMAND | signalmesh up")
    try:
        return _read(sys.stdin.fileno(), time.monotonic() + timeout_s)
    except (OSError, ValueError):  # TimeoutError is an OSError
        raise ConfigError(
            file, key, f"standard input did not come to its end within {timeout_s:g} s; close it after the secret"
        ) from None


def _from_command(command: tuple[str, ...], directory: Path, timeout_s: float, file: str, key: str) -> bytes:
    """Its output. Errors name the program alone: an argument may be a secret too, and so may what it prints."""
    program = str(directory / command[0]) if "/" in command[0] else shutil.which(command[0])
    if program is None:
        raise ConfigError(
            file, key, f"there is no program {command[0]!r} on the PATH; install it, or write its whole path"
        )
    until = time.monotonic() + timeout_s
    try:
        process = subprocess.Popen(
            [program, *command[1:]],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=functools.partial(die_with_parent, os.getpid()),  # noqa: PLW1509 - one system call
        )
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else "an argument has a null character"
        raise ConfigError(file, key, f"{command[0]!r} cannot be run: {problem}") from None
    assert process.stdout is not None
    with process.stdout:
        try:
            data = _read(process.stdout.fileno(), until)
            if len(data) > MAX_SECRET_BYTES:
                raise ConfigError(file, key, f"{command[0]!r} prints more than {MAX_SECRET_BYTES} bytes")
            code = process.wait(max(0.0, until - time.monotonic()))
        except (TimeoutError, subprocess.TimeoutExpired):
            raise ConfigError(
                file,
                key,
                f"{command[0]!r} did not end within {timeout_s:g} s; it must not ask a person, or leave a process "
                "that holds its output; raise timeout_s if it needs longer",
            ) from None
        finally:
            if process.returncode is None:  # not reaped, so the number of the group is still its own
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if code != 0:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise ConfigError(
            file, key, f"{command[0]!r} ended with {how}, expected 0; run the command by hand to see what it prints"
        )
    if not data.strip():
        raise ConfigError(file, key, f"{command[0]!r} printed nothing, expected the secret")
    return data


def _read(descriptor: int, until: float) -> bytes:
    """Everything to the end, or the first byte too many.

    Raises:
        TimeoutError: there was no end by `until`, seconds of the monotonic clock.
    """
    data = b""
    while len(data) <= MAX_SECRET_BYTES:
        if not select.select([descriptor], [], [], max(0.0, until - time.monotonic()))[0]:
            raise TimeoutError
        if not (piece := os.read(descriptor, MAX_SECRET_BYTES + 1 - len(data))):
            break
        data += piece
    return data


def export_secret(source: SecretSource | None, file: str, key: str, variable: str) -> None:
    """Set `variable` of this process's environment from `source`, unless it is set.

    Raises:
        ConfigError: the secret cannot be read.
    """
    if source is not None and not os.environ.get(variable):
        os.environ[variable] = read_secret(source, file, key)


# -- credentials of the bus


def offer_bus_credentials(config_file: Path | None) -> None:
    """Have this process and its children connect with the credentials that swarm.toml names, if the user names none.

    `config_file` is --config. Commands without that option read ./swarm.toml. A file without such a table costs
    nothing but its reading: every command comes here.

    Raises:
        ConfigError: they cannot be read.
    """
    if os.environ.get(CREDS_VARIABLE) or os.environ.get(SEED_VARIABLE):
        return
    path = config_file or Path("swarm.toml")
    try:
        data = path.read_bytes() if path.is_file() else b""
    except OSError:
        return  # the command that needs the file reports it
    if b"secrets" not in data:
        return
    try:
        raw = tomllib.loads(data.decode("utf-8-sig")).get("secrets", {})
    except (ValueError, RecursionError):
        return
    secrets = parse_secrets(raw if isinstance(raw, dict) else {}, str(path))
    for source, name, variable in (
        (secrets.nats_creds, "nats_creds", CREDS_VARIABLE),
        (secrets.nats_nkey, "nats_nkey", SEED_VARIABLE),
    ):
        if source is not None:
            key = f"secrets.{name}"
            text = read_secret(source, str(path), key, lines=name == "nats_creds")
            try:
                _check_creds(text) if source is secrets.nats_creds else public_key_of(text)
            except ValueError as error:
                expected = "the text of a .creds file" if source is secrets.nats_creds else "a user's nkey seed, SU…"
                raise ConfigError(str(path), key, f"expected {expected}, not {error}; it is not shown") from None
            os.environ[variable] = _file_in_memory(name, text)


def _check_creds(text: str) -> None:
    """Raises: ValueError: `text` is not what a .creds file has; it says what it is instead."""
    if "BEGIN NATS USER JWT" not in text:
        raise ValueError("other text")


def _file_in_memory(name: str, text: str) -> str:
    """The name of a file with `text`, which processes of this user can open while this process runs."""
    descriptor = os.memfd_create(name)
    os.fchmod(descriptor, 0o600)  # its own would be 0777, and key files of others are refused
    with os.fdopen(os.dup(descriptor), "w") as file:
        file.write(text)
    return f"/proc/{os.getpid()}/fd/{descriptor}"
