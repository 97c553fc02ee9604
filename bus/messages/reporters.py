"""Who may report what: each lifecycle event has one kind of writer, and the subject names the writer.

With keys the server lets each process publish under its own name alone, so that a payload proves nothing and a subject
does. Which host runs an agent only the watchdog knows: whoever acts on the end of a process compares the host too.
"""

from __future__ import annotations

from bus.messages.payloads import Lifecycle
from bus.messages.subjects import PROVIDER, RESERVED_NAMES, WATCHDOG, Address

HOST_KEEPERS = ("up", PROVIDER)
"""Who starts hosts, and reports their ends."""
RESTORERS = ("up", "mirror")
"""Who restores a stream from a mirror's file, and reports it about `swarm`."""
_OF_ITSELF = frozenset({"restored", "ready", "skipped", "drained"})
_BY_HOSTS = frozenset({"spawned", "exited"})


def check_reporter(event: Lifecycle, address: Address) -> None:
    """Check that the writer of `event`, which was received under `address`, may report it.

    Raises:
        ValueError: it may not, or the payload names another agent or another writer than the subject.
    """
    writer = address.agent
    if event.agent != address.topic:
        raise ValueError(f"agent: expected {address.topic!r}, which the subject names, not {event.agent!r}")
    if event.source != writer:
        raise ValueError(f"source: expected {writer!r}, which the subject names, not {event.source!r}")
    if event.event in _OF_ITSELF:
        expected, may = "the agent itself", writer == event.agent
    elif event.event == "rebuilt":
        expected, may = f"{' or '.join(RESTORERS)}, about swarm", writer in RESTORERS and event.agent == "swarm"
    elif event.event in _BY_HOSTS:
        is_host = writer.lower() not in RESERVED_NAMES and writer != event.agent
        expected, may = "a host", is_host or (event.event == "exited" and writer in HOST_KEEPERS)
    else:
        expected, may = WATCHDOG, writer == WATCHDOG
    if not may:
        raise ValueError(f"{event.event}: {writer!r} may not report it, expected {expected}")
