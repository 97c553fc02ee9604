"""What the swarm's own server tells of its clients: connections, what each key sends, failed handshakes, consumers.

A process has one connection and few consumers, a captured one may make thousands.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import structlog

from agents.runtime.output_rate import MAX_OUTPUTS_PER_S, UNIT_BYTES
from bus.durable.events import EventPublisher
from bus.errors import BusError, UsageError
from bus.messages.subjects import DASHBOARD, PROVIDER, WATCHDOG
from bus.nats.bus import NatsBus
from bus.server.config import HANDSHAKE_S
from bus.server.monitoring import listed, read_monitoring
from bus.server.supervisor import NatsServer
from bus.utils.attempt_counts import AttemptCounts

__all__ = [
    "MAX_CONNECTIONS",
    "ConnectionWatch",
    "ConsumerWatch",
    "FloodWatch",
    "HandshakeWatch",
    "count_connections",
    "most_inside",
]

MAX_CONNECTIONS = 64
"""Of one key. The operator's is used by commands, a subscriber's by a program with some processes."""
LISTED = 4096
LISTED_CLOSED = 1024
CLOSED_MEANWHILE = 64
"""Connections that may have ended between two requests."""
LOOK_S = 0.5
"""Between two looks at what each key sends: the stream's 1 GiB is full after some seconds of a flood."""
MARGIN = 3
"""The outbox of an agent lets it publish twice its rate in one second; its heartbeats and requests are beside that."""
LEAST_PER_S = MARGIN * MAX_OUTPUTS_PER_S
"""Of a process of the swarm. With 5 agents at full speed none of them sent more than 1,600 where it was measured."""
FAILED = "TLS Handshake Failure"
FULL = 0.75
"""Of the consumers that a stream may have: beyond, those are deleted that no process needs."""
KEPT = 16
"""Consumers of one process that are then left, the oldest; it has two at a time."""
DELETED_AT_ONCE = 256
AUDIT = "$JS.EVENT.ADVISORY.API"
CREATE = "$JS.API.CONSUMER.CREATE."
PROCESSES = ("up", WATCHDOG, "mirror", "metrics", "webhook", DASHBOARD, PROVIDER, "signalmesh", "doctor", "certify")
"""What the names of consumers begin with, beside those of agents and hosts; `signalmesh` are commands."""
_NAME = re.compile(r"(?P<owner>.+)-[0-9A-Za-z]{22}")
"""Of a consumer, as `bus.nats.consumer.Reader` makes it."""

log = structlog.get_logger("signalmesh.up")


async def count_connections(directory: Path, pid: int) -> Mapping[str, int]:
    """Public key -> its connections at the server `pid` of this directory; empty key: none was named."""
    url = await asyncio.to_thread(listed, directory, pid, "monitoring")
    found = None if url is None else await read_monitoring(url, "connz?limit=1")
    if url is None or found is None or found.get("total", 0) <= MAX_CONNECTIONS:
        return {}
    found = await read_monitoring(url, f"connz?auth=1&limit={LISTED}") or {}
    return Counter(
        str(each.get("authorized_user") or "") for each in found.get("connections") or () if isinstance(each, dict)
    )


class ConnectionWatch:
    """Alerts about keys with more than MAX_CONNECTIONS; `who` names the owner of a public key."""

    def __init__(self, who: Callable[[str], str | None]) -> None:
        self._who = who
        self._counts: AttemptCounts[str] = AttemptCounts()

    async def look(self, server: NatsServer, events: EventPublisher) -> None:
        """Count the connections of the server, and report."""
        if server.pid is not None:
            self.report(await count_connections(server.directory, server.pid), events)

    def report(self, counts: Mapping[str, int], events: EventPublisher) -> None:
        """Alert at once about each owner, and then once a minute while it has too many."""
        crowds = {self._who(key) or "unknown key": count for key, count in counts.items() if count > MAX_CONNECTIONS}
        for owner in crowds:
            self._counts.add(owner, "others")
        for owner, _ in self._counts.due():
            if owner not in crowds:
                continue
            count = crowds[owner]
            remedy = f"`signalmesh keys rotate {owner}` cuts them off"
            if " " in owner:  # no identity of ours
                remedy = "let fewer clients reach its port"
            log.warning("too_many_connections", who=owner, count=count)
            events.alert(
                "critical",
                "too_many_connections",
                f"{owner} has {count} connections, expected at most {MAX_CONNECTIONS}; the server has room for a few "
                f"thousands in all: {remedy}",
                who=owner,
                count=count,
            )


@dataclass(slots=True)
class _Sent:
    """What the connections of one key have sent since the last look."""

    messages: int = 0
    size: int = 0

    @property
    def units(self) -> float:
        return max(self.messages, self.size / UNIT_BYTES)


class SentCounts:
    """Counts what each key sends, over its connections at one server after the other."""

    def __init__(self) -> None:
        self._pid: int | None = None
        self._closed = 0
        """Connections that have ended, in all."""
        self._known: dict[int, tuple[int, int]] = {}
        """Connection -> messages and bytes that it had sent at the last look."""

    async def look(self, directory: Path, pid: int | None) -> dict[str, _Sent] | None:
        """Public key -> what it has sent since the last look; nothing at the first look at a server.

        None: the server does not answer, and the next look counts what is sent meanwhile.
        """
        url = None if pid is None else await asyncio.to_thread(listed, directory, pid, "monitoring")
        found = None if url is None else await read_monitoring(url, f"connz?auth=1&limit={LISTED}")
        ended = None if url is None else await read_monitoring(url, "connz?state=closed&limit=1")
        if url is None or found is None or ended is None:
            return None
        is_first, new = pid != self._pid, ended.get("total", 0) - self._closed
        self._pid, self._closed = pid, ended.get("total", 0)
        connections = found.get("connections") or []
        if is_first:
            self._known = {each["cid"]: (each["in_msgs"], each["in_bytes"]) for each in connections}
            return {}
        if new > 0:
            wanted = min(new, LISTED_CLOSED)
            ended = await read_monitoring(url, f"connz?state=closed&auth=1&sort=stop&limit={wanted}") or {}
            connections = [*(ended.get("connections") or ()), *connections]
        sent: dict[str, _Sent] = {}
        known: dict[int, tuple[int, int]] = {}
        for each in connections:
            messages, size = self._known.get(each["cid"], (0, 0))
            known[each["cid"]] = now = each["in_msgs"], each["in_bytes"]
            one = sent.setdefault(str(each.get("authorized_user") or ""), _Sent())
            one.messages += max(0, now[0] - messages)
            one.size += max(0, now[1] - size)
            self._known[each["cid"]] = now  # it may be in both lists
        self._known = known
        return sent


class FloodWatch:
    """Finds keys that publish more than they may, alerts, and cuts them off where the swarm does not need them."""

    def __init__(
        self, who: Callable[[str], str | None], suspend: Callable[[str, str], None], *, outsiders: int, inside: int
    ) -> None:
        """`outsiders` is how much a key outside the swarm may send a second, `inside` a key of one of its processes.

        `who` names the owner of a public key. `suspend` takes its permission to publish away, with the reason.
        """
        self._who, self._suspend = who, suspend
        self._outsiders, self._inside = outsiders, inside
        self._sent = SentCounts()
        self._left: dict[str, float] = {}
        """Owner -> how much it may publish at once; all of its limit, if it is not here."""
        self._counts: AttemptCounts[str] = AttemptCounts()

    async def run(self, server: NatsServer, bus: NatsBus, events: EventPublisher) -> None:
        """Look at intervals, until cancelled."""
        looked = time.monotonic()
        while True:
            await asyncio.sleep(LOOK_S)
            if (sent := await self._sent.look(server.directory, server.pid)) is None:
                continue
            before, looked = looked, time.monotonic()
            elapsed_s = looked - before
            floods = self._floods(sent, elapsed_s)
            for owner in floods:
                self._counts.add(owner, "others")
            done = {owner: await self._cut_off(owner, bus) for owner in floods}
            for owner, _ in self._counts.due():
                if owner in floods:
                    self._report(events, owner, floods[owner], elapsed_s, done[owner])

    def _limit(self, owner: str) -> int:
        return self._outsiders if _is_outside(owner) else self._inside

    def _floods(self, sent: Mapping[str, _Sent], elapsed_s: float) -> dict[str, _Sent]:
        """What those have sent that have sent more than they may."""
        found, left = {}, {}
        for key, one in sent.items():
            owner = self._who(key)
            if owner is None or " " in owner or owner.startswith("subscriber-"):  # the server refuses what they publish
                continue
            limit = self._limit(owner)
            room = self._left.get(owner, float(limit)) + elapsed_s * limit - one.units
            if room < 0:
                found[owner] = one
            if room < limit:
                left[owner] = max(room, 0.0)
        self._left = left
        return found

    async def _cut_off(self, owner: str, bus: NatsBus) -> str:
        """Stop what floods, and return what was done or is to be done."""
        role, _, name = owner.partition("-")
        if _is_outside(owner):
            try:
                self._suspend(owner, f"it published more than {self._outsiders} messages a second")
            except UsageError as error:
                return f"it could not be suspended: {error}"
            return (
                f"it may publish nothing until `signalmesh keys resume {owner}`, or until it has another key "
                f"(`signalmesh keys rotate {owner}`)"
            )
        if role == "agent":
            try:
                await bus.request(bus.subjects.control(WATCHDOG, "quarantine"), orjson.dumps({"agent": name}))
            except BusError as error:
                return f"the watchdog could not be asked to quarantine the agent ({error}): it is asked again"
            return f"the agent is quarantined: find out what runs there, then `signalmesh revive {name}`"
        return f"find out what runs with this key; `signalmesh keys rotate {owner}` replaces it"

    def _report(self, events: EventPublisher, owner: str, one: _Sent, elapsed_s: float, done: str) -> None:
        megabytes = one.size / elapsed_s / 1e6
        log.warning("client_floods", who=owner, messages=one.messages, size=one.size)
        events.alert(
            "critical",
            "client_floods",
            f"{owner} publishes {one.messages / elapsed_s:,.0f} messages and {megabytes:,.1f} MB a second, expected at "
            f"most {self._limit(owner):,} messages of up to {UNIT_BYTES} bytes: {done}",
            who=owner,
            messages=one.messages,
            size=one.size,
        )


def most_inside(max_outputs_per_s: int) -> int:
    """How much a process of the swarm may send a second, if the outbox of an agent lets so much pass."""
    return max(LEAST_PER_S, MARGIN * max_outputs_per_s)


def _is_outside(owner: str) -> bool:
    """Whether this is the key of a person or program outside the swarm that may publish."""
    return owner.startswith(("voter-", "operator-"))


class HandshakeWatch:
    """Finds the connections of a server that ended in their TLS handshake, before its time was over."""

    def __init__(self) -> None:
        self._pid: int | None = None
        self._closed = 0

    async def look(self, directory: Path, pid: int | None) -> dict[tuple[int, int], str]:
        """The server's process and the number of the connection -> its address, of those that are new."""
        url = None if pid is None else await asyncio.to_thread(listed, directory, pid, "monitoring")
        if url is None or pid is None:
            return {}
        if pid != self._pid:
            self._pid, self._closed = pid, 0
        found = await read_monitoring(url, "connz?state=closed&limit=1") or {}
        if (new := found.get("total", 0) - self._closed) <= 0:
            return {}
        wanted = min(new + CLOSED_MEANWHILE, LISTED_CLOSED)
        found = await read_monitoring(url, f"connz?state=closed&sort=stop&limit={wanted}") or {}
        new, self._closed = found.get("total", 0) - self._closed, found.get("total", self._closed)
        newest = (found.get("connections") or [])[:new]
        return {
            (pid, each["cid"]): f"{each['ip']}:{each['port']}"
            for each in newest
            if each["reason"] == FAILED
            and datetime.fromisoformat(each["stop"]) - datetime.fromisoformat(each["start"])
            < timedelta(seconds=HANDSHAKE_S)
        }


class ConsumerWatch:
    """Makes room in the stream's limit of consumers if somebody fills it: without, no agent that dies recovers.

    The server does not keep who has made a consumer. It reports requests to whoever listens; as that costs it some
    time, this listens only from the first time on that the limit is almost reached until nobody makes too many.
    """

    def __init__(self, who: Callable[[str], str | None], names: Callable[[], Iterable[str]]) -> None:
        """`who` names the owner of a public key, `names` are those of the connections of agents and hosts."""
        self._who, self._names = who, names
        self._counts: AttemptCounts[str] = AttemptCounts()
        self._makers: dict[str, str] = {}
        """Consumer -> public key of its maker."""
        self._audit: Any = None

    async def look(self, bus: NatsBus, events: EventPublisher) -> None:
        """Delete what is too much, and alert about it at once and then once a minute.

        Raises:
            BusTimeout, Disconnected, Refused: the server does not answer now, or there is no stream.
        """
        stream = bus.subjects.stream
        info = await bus.api(f"STREAM.INFO.{stream}")
        count, most = info["state"]["consumer_count"], info["config"]["max_consumers"]
        if self._audit is None and (most <= 0 or count < FULL * most):
            return
        if self._audit is None:
            self._audit = await bus.listen_directly(AUDIT, lambda received: self._note(received.data))
        surplus = surplus_of(await _consumers(bus), {*PROCESSES, *self._names()})
        makers = Counter(self._who(self._makers[name]) or "" if name in self._makers else "" for name in surplus)
        self._makers.clear()
        if not surplus:
            await self._audit.close()
            self._audit = None
        for at in range(0, len(surplus), DELETED_AT_ONCE):
            await asyncio.gather(*(_delete(bus, name) for name in surplus[at : at + DELETED_AT_ONCE]))
        for owner in makers.elements():
            self._counts.add(owner, "")
        for owner, number in self._counts.due():
            self._report(events, owner, number, most)

    def _note(self, data: bytes) -> None:
        report = orjson.loads(data)
        subject, client = str(report.get("subject", "")), report.get("client") or {}
        if subject.startswith(CREATE):
            self._makers[subject.removeprefix(CREATE).split(".")[1]] = str(client.get("user", ""))

    def _report(self, events: EventPublisher, owner: str, count: int, most: int) -> None:
        known = owner or "a client whose key is not known yet"
        remedy = f"`signalmesh keys rotate {owner}` cuts it off" if owner and " " not in owner else ""
        log.warning("too_many_consumers", who=owner, count=count)
        events.alert(
            "critical",
            "too_many_consumers",
            f"{known} has made {count} consumers that no process of the swarm needs; they were deleted, because the "
            f"stream can have {most}, and an agent needs one to recover" + (f": {remedy}" if remedy else ""),
            who=owner,
            count=count,
        )


def surplus_of(consumers: Iterable[Mapping[str, Any]], names: Collection[str]) -> list[str]:
    """The names of the consumers that no process needs: of unknown names, and of one process beyond the oldest."""
    kept: Counter[str] = Counter()
    surplus = []
    for consumer in sorted(consumers, key=lambda each: str(each["created"])):
        name = str(consumer["name"])
        made = _NAME.fullmatch(name)
        owner = made["owner"] if made is not None else name
        if owner in names and kept[owner] < KEPT:
            kept[owner] += 1
        else:
            surplus.append(name)
    return surplus


async def _consumers(bus: NatsBus) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        page = await bus.api(f"CONSUMER.LIST.{bus.subjects.stream}", {"offset": len(found)})
        found += page.get("consumers") or []
        if not page.get("consumers") or len(found) >= page["total"]:
            return found


async def _delete(bus: NatsBus, name: str) -> None:
    with contextlib.suppress(BusError):  # it has ended, or the next look deletes it
        await bus.api(f"CONSUMER.DELETE.{bus.subjects.stream}.{name}")
