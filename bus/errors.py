"""Every error that this project raises on purpose, as one tree.

MeshError                 root; the message names what was expected and what to do
├── UsageError            a person's mistake: a flag, a name, a file (exit 2)
│   ├── ConfigError       swarm.toml: carries the file and the key
│   ├── DataError         a data file: carries the file, the line and the column
│   └── MirrorUnusable    the mirror's file is missing, in use, of another kind, version or swarm
├── MessageError          a poison message: carries the subject and the reason; never retried
├── OtherHistory          a stream is not the one that the mirror's file mirrors: never mixed
├── MirrorDamaged         the mirror's file is broken: it is renamed, and a new file is filled from the bus
├── MirrorFailing         the mirror's file cannot be written now (full, locked): retried
├── CacheDamaged          (agents/feeds/candle_cache.py) it was removed; its agent is started again and reads the source
├── CommandFailed         (agents/builtin/command.py) a program died over an event; its agent is started again
└── BusError              the bus: the class determines the cause and whether to retry
    ├── BusUnreachable    no server answers at that address (exit 3); retry after it is up
    │   ├── NotAdmitted   a server answers, but refuses these credentials
    │   └── TlsFault      a server answers, but no TLS connection is possible
    ├── Disconnected      the connection is down right now; retried by the outbox
    ├── BusTimeout        no answer in time: the write may still have landed, so read back
    ├── PermissionDenied  the server denies a subject to this user; also a UsageError (exit 2)
    ├── WrongSequence     compare-and-set lost: another process wrote; never retried blindly
    │   └── Fenced        a successor has claimed this agent: this process must end
    └── Refused           the server refused for another reason; carries its code
        └── LimitReached  a limit of the account or of the server; carries which one, and what to raise
"""

from __future__ import annotations

EXIT_DONE = 0
"""Done."""
EXIT_FAILED = 1
"""A check failed, or the command did not succeed."""
EXIT_USAGE = 2
"""A usage mistake: an option, a name or a file."""
EXIT_UNREACHABLE = 3
"""No bus answers, or no such swarm is on it."""


class MeshError(Exception):
    """Root of all errors raised on purpose; `exit_code` is the exit code of the command."""

    exit_code: int = EXIT_FAILED


class UsageError(MeshError):
    """A person's mistake. The message names the flag, file or key, what was expected and what to do."""

    exit_code = EXIT_USAGE


class ConfigError(UsageError):
    """A mistake in swarm.toml."""

    def __init__(self, file: str, key: str, problem: str) -> None:
        self.file, self.key, self.problem = file, key, problem
        super().__init__(f"{file}: {key}: {problem}" if key else f"{file}: {problem}")


class DataError(UsageError):
    """A mistake in a data file; `line` counts from 1 and `column` is the column's name or number."""

    def __init__(self, file: str, line: int | None, column: str | None, problem: str) -> None:
        self.file, self.line, self.column, self.problem = file, line, column, problem
        where = file + (f", line {line}" if line is not None else "") + (f", column {column}" if column else "")
        super().__init__(f"{where}: {problem}")


class MirrorUnusable(UsageError):
    """A mirror's file that cannot be used as it is; the message contains the remedy."""

    def __init__(self, file: str, problem: str) -> None:
        self.file, self.problem = file, problem
        super().__init__(f"mirror {file}: {problem}")


class OtherHistory(MeshError):
    """A stream that is not the one a mirror's file mirrors, or that has lost what the file holds."""


class MirrorDamaged(MeshError):
    """A mirror's file with broken content."""

    def __init__(self, file: str, problem: str) -> None:
        self.file, self.problem = file, problem
        super().__init__(
            f"mirror {file}: it is damaged ({problem}); `signalmesh mirror` renames such a file "
            "and fills a new one from the bus"
        )


class MirrorFailing(MeshError):
    """A mirror's file that cannot be written now."""

    def __init__(self, file: str, problem: str) -> None:
        self.file, self.problem = file, problem
        super().__init__(
            f"mirror {file}: cannot be written now ({problem}); free disk space, or end the process that locks it"
        )


class MessageError(MeshError):
    """A poison message: malformed, mistyped, non-finite, oversized or under a wrong subject."""

    def __init__(self, subject: str, problem: str) -> None:
        self.subject, self.problem = subject, problem
        super().__init__(f"{subject}: {problem}")


class BusError(MeshError):
    """Root of the errors of the bus."""


class NoSwarmThere(BusError):
    """No swarm runs in that state directory."""

    exit_code = EXIT_UNREACHABLE

    def __init__(self, directory: str) -> None:
        super().__init__(
            f"--state-dir {directory}: no swarm runs there; start it with `signalmesh up --state-dir {directory}`, "
            "or name a bus with --nats URL"
        )


class NoSuchSwarm(BusError):
    """A NATS server answers, but a stream or bucket of that swarm is not there."""

    exit_code = EXIT_UNREACHABLE

    def __init__(self, url: str, swarm: str, missing: str) -> None:
        super().__init__(
            f"the NATS server at {url} has no {missing}: no swarm named {swarm!r} was started there, or its "
            "data was deleted; `signalmesh doctor` reports which; --swarm names another swarm, --nats another server"
        )


class BusUnreachable(BusError):
    """No NATS server answers at that address."""

    exit_code = EXIT_UNREACHABLE

    def __init__(self, url: str, reason: str) -> None:
        self.url, self.reason = url, reason
        super().__init__(
            f"no NATS server answers at {url} ({reason}); start the swarm with `signalmesh up`, "
            "or name another server with --nats URL"
        )


class NotAdmitted(BusUnreachable):
    """A NATS server answers, and refuses these credentials."""

    def __init__(self, url: str, reason: str, public_key: str = "") -> None:
        """`public_key` is that of the nkey that was refused."""
        super().__init__(url, reason)
        others = "--nats-creds (SIGNALMESH_NATS_CREDS), --nats-nkey (SIGNALMESH_NATS_NKEY)"
        why = ""
        if public_key:
            why = f": the key {public_key} is of another swarm, or was replaced or revoked (`signalmesh keys list`)"
        text = f"the NATS server at {url} answers, but does not take these credentials ({reason}){why}; name others"
        self.args = (f"{text}: {others}, or a user and password in the URL, better in SIGNALMESH_NATS than in --nats",)


class TlsFault(BusUnreachable):
    """A NATS server answers, and no TLS connection to it is possible: `problem` is why, `remedy` what to do."""

    def __init__(self, url: str, reason: str, problem: str, remedy: str) -> None:
        super().__init__(url, reason)
        self.args = (f"no TLS connection to the NATS server at {url}: {problem} ({reason}): {remedy}",)


class PermissionDenied(UsageError, BusError):
    """The server does not let this user publish or subscribe to a subject; the message names both.

    A person has to correct it. What retries errors of the bus goes on as soon as that is done.
    """


class Disconnected(BusError):
    """The connection is down; nothing was sent."""

    exit_code = EXIT_UNREACHABLE


class BusTimeout(BusError):
    """No answer in time. A write may still have landed: read back before repeating it."""

    exit_code = EXIT_UNREACHABLE


class NoResponders(BusTimeout):
    """A request to a subject without subscribers."""

    def __init__(self, subject: str) -> None:
        self.subject = subject
        super().__init__(f"{subject}: no process serves it")


MESSAGE_TOO_LARGE = 10054
"""JetStream's code for a message that the stream never takes; also used for messages refused on this side."""


class Refused(BusError):
    """The server refused a request; `code` is JetStream's error code."""

    def __init__(self, subject: str, code: int, description: str) -> None:
        self.subject, self.code, self.description = subject, code, description
        super().__init__(f"{subject}: the server refused it: {description} (error {code})")


class LimitReached(Refused):
    """A limit of JetStream's is reached. `limit` is which one with its value and usage, and what to raise."""

    def __init__(self, subject: str, code: int, description: str, limit: str) -> None:
        super().__init__(subject, code, f"{description}: {limit}")
        self.limit = limit


class WrongSequence(BusError):
    """A compare-and-set found another last sequence than the expected one."""

    def __init__(self, subject: str, description: str) -> None:
        self.subject, self.description = subject, description
        super().__init__(f"{subject}: another process wrote first: {description}")


class Fenced(WrongSequence):
    """The claim of this process is not the newest stored one: nothing more of this process is stored."""

    def __init__(self, subject: str, description: str) -> None:
        super().__init__(subject, description)
        self.args = (f"{subject}: fenced: {description}",)
