"""What every tool answers: a result, and where its figures were read. Also the types that no command prints."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, Literal, TypeVar

from bus.errors import MeshError
from coordinator.monitor.history import HistoryEntry
from coordinator.monitor.models import AgentStatus, ProviderStatus, SandboxStatus

T = TypeVar("T")


class ToolFailed(MeshError):
    """The call cannot be answered; the text says what was expected and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Where the figures of `result` were read, and when.

    `source`: bus, the running swarm; mirror, the file of its mirror; machine, this machine. `stream_sequence` is the
    newest message of the stream, or of the file, when the reading began; `at` is when it ended. `command` prints the
    same result. `note` says why the mirror was read.
    """

    source: Literal["bus", "mirror", "machine"]
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    nats: str | None = None
    file: str | None = None
    stream_sequence: int | None = None
    command: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Generic[T]):
    """The structured content of every tool."""

    read: Reading
    result: T


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionList:
    """Stored decisions as `history decision --json` shows them, oldest first."""

    entries: list[HistoryEntry]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEntry:
    """The last output of an agent under its memory key, exactly as published.

    `malformed` is the text of a value that is not JSON. The bus does not report `stored_at`.
    """

    key: str
    revision: int
    value: Any = None
    malformed: str | None = None
    stored_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryList:
    """The entries of the memory bucket, by key. The bus forgets one `ttl_s` seconds after it was written."""

    bucket: str
    ttl_s: int
    entries: list[MemoryEntry]


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxList:
    """The sandboxes of `status --json`, and the provider of those that run elsewhere."""

    sandboxes: list[SandboxStatus]
    provider: ProviderStatus | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentReport:
    """One agent of `status --json`, and its memory."""

    agent: AgentStatus
    memory: list[MemoryEntry]
