"""Who may report what: each lifecycle event has one kind of writer, and the subject names the writer.

With keys the server lets each process publish under its own name alone, so that a payload proves nothing and a subject
does. Which host runs an incarnation of an agent is in its claim: `ClaimedHosts` tells the reports of that host from
those of others.
"""

from __future__ import annotations

from collections import OrderedDict

from bus.messages.payloads import Lifecycle
from bus.messages.subjects import PROVIDER, RESERVED_NAMES, WATCHDOG, Address

HOST_KEEPERS = ("up", PROVIDER)
"""Who starts hosts, and reports their ends."""
RESTORERS = ("up", "mirror")
"""Who restores a stream from a mirror's file, and reports it about `swarm`."""
MAX_CLAIMS, MAX_AGENTS = 64, 4096
"""That `ClaimedHosts` knows: claims of one agent, and agents."""
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


class ClaimedHosts:
    """Which host runs each incarnation of an agent, by the claims in the stream."""

    def __init__(self) -> None:
        self._hosts: OrderedDict[str, dict[int, str]] = OrderedDict()
        """Agent -> epoch -> host, of the newest of both."""

    def claimed(self, agent: str, epoch: int, host: str) -> None:
        """The claim `epoch` of the agent names this host."""
        claims = self._hosts.setdefault(agent, {})
        claims[epoch] = host
        self._hosts.move_to_end(agent)
        if len(claims) > MAX_CLAIMS:
            del claims[min(claims)]
        if len(self._hosts) > MAX_AGENTS:
            self._hosts.popitem(last=False)

    def host_of(self, agent: str, epoch: int | None) -> str | None:
        """The host that this claim names; None if it is not known."""
        return None if epoch is None else self._hosts.get(agent, {}).get(epoch)

    def may_report(self, event: str, agent: str, epoch: int | None, writer: str) -> bool:
        """Whether this report of a start or an end is of the host that runs the agent, or about a host and of its
        keeper; True for all other events. Of a claim that is older than all known ones every host may report.
        """
        if event not in _BY_HOSTS:
            return True
        if epoch is None:
            return writer in HOST_KEEPERS
        claims = self._hosts.get(agent, {})
        if epoch in claims:
            return claims[epoch] == writer
        return not claims or epoch < min(claims)
