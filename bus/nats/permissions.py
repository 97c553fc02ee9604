"""Tries whether the server lets this user publish and subscribe to what every swarm needs, without any effect.

Messages to a stream expect another stream, so that they are refused. Requests to JetStream's API are empty.
The server reports what it denies before it answers the next PING.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bus.messages.guard import guarded
from bus.messages.subjects import WATCHDOG
from bus.nats.bus import NatsBus
from bus.nats.connection import Connection, Denial

__all__ = ["find_allowed", "find_denied", "is_guarded"]

NO_STREAM = {"Nats-Expected-Stream": "signalmesh_permission_check"}
"""No stream of that name stores anything."""
CONSUMER = "0" * 22
"""In place of a consumer's name, as long as those of nats-py."""


async def find_denied(
    bus: NatsBus, agents: Iterable[str], hosts: Iterable[str], writer: str, *, quiet: bool
) -> list[Denial]:
    """What this user is denied of that the `agents`, the `hosts` of sandboxes, the watchdog and `writer` need.

    With `quiet` nothing of this swarm runs: heartbeats and a request to a host are tried as well, which would otherwise
    be received as malformed ones. Topics of outputs are not tried: only the agents know them.

    Raises:
        Disconnected: the connection is down. BusTimeout: the server does not answer.
    """
    agents, hosts = tuple(agents), tuple(hosts)
    found: list[Denial] = []
    end = bus.connection.watch_denials(found.append)
    try:
        for subject, headers in _published(bus, agents, writer):
            bus.connection.write(subject, b"", headers=headers)
        await _subscribe(bus.connection, _subscribed(bus, agents))
        if quiet:
            for name in (*agents, *hosts, WATCHDOG):
                bus.connection.write(bus.subjects.heartbeat(name), b"")
            await bus.flush()
            for host in hosts:
                await _request(bus.connection, bus.subjects.control(host, "probe"))
    finally:
        end()
    return list(dict.fromkeys(found))


async def find_allowed(bus: NatsBus, published: Iterable[str], subscribed: Iterable[str]) -> list[str]:
    """What this user may publish to and subscribe to of these subjects, without any effect.

    Raises:
        Disconnected: the connection is down. BusTimeout: the server does not answer.
    """
    denied: list[Denial] = []
    published, subscribed = tuple(published), tuple(subscribed)
    end = bus.connection.watch_denials(denied.append, expected=True)
    try:
        for subject in published:
            bus.connection.write(subject, b"", headers=NO_STREAM)
        await _subscribe(bus.connection, subscribed)
    finally:
        end()
    found = {(denial.operation, denial.subject) for denial in denied}
    return [
        *(f"publish to {subject}" for subject in published if ("publish", subject) not in found),
        *(f"subscribe to {subject}" for subject in subscribed if ("subscribe", subject) not in found),
    ]


async def is_guarded(bus: NatsBus) -> bool:
    """Whether the server maps what streams take (bus/messages/guard.py), found by a message that no stream stores.

    Raises:
        Disconnected: the connection is down. BusTimeout: the server does not answer.
    """
    received: list[str] = []

    def on_received(subject: str, _: str, __: bytes, ___: bytes) -> None:
        received.append(subject)

    end = bus.connection.watch_denials(lambda _: None, expected=True)
    try:
        subscription = await bus.connection.subscribe_directly(guarded(bus.subjects.probe), on_received)
        bus.connection.write(bus.subjects.probe, b"", headers=NO_STREAM)
        await bus.flush()
        await subscription.unsubscribe()
    finally:
        end()
    return bool(received)


def _published(bus: NatsBus, agents: Iterable[str], writer: str) -> Iterable[tuple[str, Mapping[str, str]]]:
    subjects = bus.subjects
    buckets = (subjects.state_bucket, subjects.memory_bucket, subjects.registry_bucket)
    for stream in (subjects.stream, *(f"KV_{bucket}" for bucket in buckets)):
        for command in ("STREAM.INFO", "STREAM.MSG.GET"):
            yield f"$JS.API.{command}.{stream}", {}
        for command in ("CONSUMER.CREATE", "CONSUMER.DELETE"):
            yield f"$JS.API.{command}.{stream}.{CONSUMER}", {}
        yield f"$JS.FC.{stream}.{CONSUMER}.{CONSUMER}", {}
    reports = [subjects.config(WATCHDOG), subjects.epoch(WATCHDOG), subjects.alert(severity="warning", writer=WATCHDOG)]
    reports.append(subjects.alert(severity="warning", writer=writer))
    for agent in agents:
        reports += [subjects.epoch(agent), subjects.lifecycle(agent, WATCHDOG), subjects.lifecycle(agent, agent)]
        for bucket in (subjects.state_bucket, subjects.registry_bucket):
            yield f"$KV.{bucket}.{agent}", NO_STREAM
    for subject in reports:
        yield subjects.write(subject), NO_STREAM


def _subscribed(bus: NatsBus, agents: Iterable[str]) -> list[str]:
    subjects = bus.subjects
    kinds = [subjects.all_of(kind) for kind in ("decision", "config", "lifecycle", "alert")]
    epochs = [subjects.epoch(agent) for agent in (*agents, WATCHDOG)]
    return [f"{subjects.ns}.heartbeat.*", *kinds, *epochs, bus.connection.client.new_inbox()]


async def _subscribe(connection: Connection, subjects: Iterable[str]) -> None:
    """Subscribe until the server has judged everything that was sent."""
    subscriptions = [await connection.subscribe_directly(subject, _ignore) for subject in subjects]
    await connection.flush()
    for subscription in subscriptions:
        await subscription.unsubscribe()


async def _request(connection: Connection, subject: str) -> None:
    """Send a request to `subject` and answer it, as the host of a sandbox would."""
    inbox = connection.client.new_inbox()

    def answer(_: str, reply: str, __: bytes, ___: bytes) -> None:
        if reply == inbox:
            connection.write(reply, b"")

    end = [await connection.subscribe_directly(subject, answer), await connection.subscribe_directly(inbox, _ignore)]
    connection.write(subject, b"", inbox)
    await connection.flush()  # the request is back before this is answered, and its reply is written
    await connection.flush()
    for subscription in end:
        await subscription.unsubscribe()


def _ignore(_: str, __: str, ___: bytes, ____: bytes) -> None:
    """Nothing is expected here."""
