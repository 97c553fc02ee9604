"""What nats-server has refused to clients, read from its log. Nobody else but the refused client learns of it.

`up` reads that of its own server. For another one, whoever is given the file does.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from bus.durable.events import EventPublisher
from bus.errors import MessageError, UsageError
from bus.messages import Alert
from bus.messages.guard import without_guard
from bus.nats.bus import NatsBus
from bus.nats.credentials import INBOXES
from bus.server.log_tail import LogTail
from bus.utils.attempt_counts import AttemptCounts

__all__ = [
    "CONNECT",
    "Violation",
    "ViolationLog",
    "ViolationReports",
    "ViolationWatch",
    "check_log",
    "reported_through",
]

_BEGIN = rb"\[(?P<pid>\d+)\] [\d/]+ [\d:.]+ \[ERR\] (?P<address>\S+) - cid:(?P<connection>\d+) - "
"""Of a line of the server: a client's text, such as its name, may look like the rest of one."""
_KEY = rb"(?P<key>U[A-Z2-7]{55})"
_DENIED = re.compile(
    _BEGIN + rb'(?:"(?:[^"\\]|\\.)*" - )?(?:"[^"/]*/nkey:' + _KEY + rb'" - )?'
    rb'(?P<verb>Publish|Subscription) Violation - .*?(?P<of>Subject|Reply) "(?P<subject>[^"]*)"'
)
_REFUSED = re.compile(
    _BEGIN
    + rb'(?:"(?:[^"\\]|\\.)*" - )?authentication error(?: - (?:Nkey "'
    + _KEY
    + rb'"$|(?P<named>Nkey|User|Token) ))?'
)
_NAMED = {b"Nkey": "with what is no public key", b"User": "with a user name", b"Token": "with a token"}
"""What a client has named in place of its key. It is not repeated: it may be any text, or a secret."""
_HANDSHAKE = re.compile(_BEGIN + rb"TLS handshake error: (?P<reason>.*)")
WITHOUT_TLS = "without TLS"
_REASONS = {
    b"first record does not look like a TLS handshake": WITHOUT_TLS,
    b"client offered only unsupported versions": "with TLS older than 1.2",
    b"unsupported SSLv2 handshake": "with TLS older than 1.2",
    b"no cipher suite supported": "with TLS without a safe cipher",
    b"client didn't provide a certificate": "without a client certificate",
    b"failed to verify certificate": "with a certificate of another authority",
}
"""Why a handshake failed, if a client is to blame: others have ended it, or have refused the server's certificate."""
MAX_EXPLAINED = 4096
"""Failed handshakes of which the reason was read, to be told from those without."""
PLACE = ("log_file", "log_position")
"""How an alert names a place: the inode, which a file keeps when the server renames it, and bytes."""
Place = tuple[int, int]
_VERBS = {b"Publish": "publish to", b"Subscription": "subscribe to"}
CONNECT = "connect"

log = structlog.get_logger("signalmesh.up")


@dataclass(frozen=True, slots=True)
class Violation:
    """A refused attempt. `attempt` is "publish to", "publish with the reply subject", "subscribe to" or "connect"."""

    address: str
    key: str
    """The client's public key; empty if it has named none."""
    attempt: str
    subject: str = ""
    """Of "connect" what is wrong with its TLS or with what it has named, if that is why."""


class ViolationLog:
    """Reads the log of a nats-server, also after the server has begun another file."""

    def __init__(self, file: Path, since: Place | None = None) -> None:
        """Begin at its present end, or at `since`."""
        self._tail = LogTail(file, since)
        self._explained: dict[tuple[int, int], None] = {}

    @property
    def place(self) -> Place:
        """Where the next read begins."""
        return self._tail.place

    def read(self, failed: Mapping[tuple[int, int], str]) -> list[Violation]:
        """What was refused since the last call. Blocks for a read of the file.

        `failed` are the connections whose TLS handshake has failed, as `connections.HandshakeWatch` finds them: the log
        has the reason, unless the client began without TLS.
        """
        found = []
        for line in self._tail.lines():
            if (handshake := _HANDSHAKE.match(line)) is not None:
                self._explained[int(handshake["pid"]), int(handshake["connection"])] = None
            if (violation := _parse(line)) is not None:
                found.append(violation)
        while len(self._explained) > MAX_EXPLAINED:
            del self._explained[next(iter(self._explained))]
        if not self._tail.skipped:
            plain = (address for connection, address in failed.items() if connection not in self._explained)
            found += [Violation(address, "", CONNECT, WITHOUT_TLS) for address in plain]
        return found


def _parse(line: bytes) -> Violation | None:
    if (found := _DENIED.match(line)) is not None:
        verb = "publish with the reply subject" if found["of"] == b"Reply" else _VERBS[found["verb"]]
        subject = without_guard(_text(found["subject"]))
        return Violation(_text(found["address"]), _text(found["key"]), verb, subject)
    if (found := _REFUSED.match(line)) is not None:
        named = _NAMED.get(found["named"], "")
        return Violation(_text(found["address"]), _text(found["key"]), CONNECT, named)
    if (found := _HANDSHAKE.match(line)) is not None:
        reasons = (what for reason, what in _REASONS.items() if reason in found["reason"])
        if (what := next(reasons, None)) is not None:
            return Violation(_text(found["address"]), "", CONNECT, what)
    return None


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")


class ViolationReports:
    """Reports each attempt when it is first seen, and once a minute how often it was repeated."""

    def __init__(self, who: Callable[[str], str | None], clock: Callable[[], float] = time.monotonic) -> None:
        """`who` names the owner of a public key, which is empty where there is none; None: not to be reported."""
        self._who = who
        self._counts: AttemptCounts[tuple[str, str, str]] = AttemptCounts(clock)

    def add(self, violation: Violation) -> None:
        """Count an attempt."""
        owner = self._who(violation.key)
        if owner is None or violation.subject.startswith(INBOXES):  # clients ask for an inbox before they need one
            return
        who = f"{owner} at {violation.address.rpartition(':')[0]}"
        # A client can make keys, and come from addresses, without end.
        named = "unknown keys" if owner.startswith("unknown key") else owner
        others = f"{named} at several addresses", violation.attempt, ""
        self._counts.add((who, violation.attempt, violation.subject), others)

    def due(self) -> Iterator[tuple[str, str, int]]:
        """The reports that are due now: who, what was attempted, and how often since the last report."""
        for (who, verb, subject), count in self._counts.due():
            yield who, f"{verb} {subject}".strip(), count

    def publish(self, events: EventPublisher, places: tuple[Place, Place] | None = None) -> None:
        """Alert about what is due. `places`: where that begins and ends in the log, to be named in the alerts."""
        due = list(self.due())
        for number, (who, attempt, count) in enumerate(due, 1):
            place: dict[str, Any] = {} if places is None else dict(zip(PLACE, places[number == len(due)], strict=True))
            log.warning("client_refused", who=who, attempt=attempt, count=count)
            times = "once" if count == 1 else f"{count} times"
            events.alert(
                "warning",
                "client_refused",
                f"the server has refused {times} to {who}: {attempt}; none of our processes does that",
                who=who,
                attempt=attempt,
                count=count,
                **place,
            )


class ViolationWatch:
    """Alerts about what a server has refused, by its log."""

    def __init__(
        self,
        server_log: ViolationLog,
        who: Callable[[str], str | None],
        *,
        admits: Callable[[str], bool] | None = None,
        resumes: bool = False,
    ) -> None:
        """`who` is that of ViolationReports. `admits`: whether the server has this key by now, so that what it has
        refused before is not reported. With `resumes` alerts say how far the log was read, for `reported_through`.
        """
        self._log, self._reports = server_log, ViolationReports(who)
        self._admits, self._resumes = admits, resumes

    async def look(self, events: EventPublisher, failed: Mapping[tuple[int, int], str] | None = None) -> None:
        """Read the log and report. `failed` is that of `ViolationLog.read`."""
        begin = self._log.place
        for violation in await asyncio.to_thread(self._log.read, failed or {}):
            if violation.attempt != CONNECT or self._admits is None or not self._admits(violation.key):
                self._reports.add(violation)
        self._reports.publish(events, (begin, self._log.place) if self._resumes else None)


def check_log(file: Path, option: str) -> None:
    """Refuse a log that cannot be read. One that is missing may come: a server makes it when it starts.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        file.open("rb").close()
    except FileNotFoundError:
        log.warning("server_log_missing", file=str(file))
    except OSError as error:
        raise UsageError(
            f"{option} {file}: cannot be read: {error.strerror}; expected the file that log_file in the server's "
            "configuration names, readable for the user who runs this"
        ) from None


async def reported_through(bus: NatsBus, writer: str) -> Place | None:
    """How far a log was read of which this writer has reported what is refused; None: it may have reported before.

    Raises:
        BusError: the bus does not answer.
    """
    for stored in reversed(await bus.read_back((bus.subjects.alert("*", writer),), 1)):
        with contextlib.suppress(MessageError):
            alert = stored.decode(bus.subjects)
            if isinstance(alert, Alert) and alert.code == "client_refused":
                inode, position = (alert.detail.get(name) for name in PLACE)
                if isinstance(inode, int) and isinstance(position, int) and position >= 0:
                    return inode, position
    return (0, 0) if (await bus.bounds()).first <= 1 else None
