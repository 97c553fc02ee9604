"""The grammar of subjects: `{ns}.{kind}.{topic}.{agent}`. Only this module builds and parses them.

Programs publish to the write side, `in.{ns}.…`, and subscribe to the read side, `{ns}.…`; the stream is between them.
A topic is any text; `/` becomes `-` (BTC/USD -> BTC-USD), other characters outside [A-Za-z0-9_] become `=XX` of their
UTF-8 bytes, so that escaping is reversible and two topics never share a token.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bus.errors import MessageError, UsageError

STORED_KINDS = (
    "market",
    "headline",
    "sentiment",
    "signal",
    "decision",
    "timer",
    "epoch",
    "config",
    "lifecycle",
    "alert",
)
"""Message kinds that the stream stores."""
AGENT_KINDS = ("market", "headline", "sentiment", "signal", "decision")
"""Kinds that an agent's handlers may publish."""

WATCHDOG = "watchdog"
"""The only writer of a VotingConfig that agents use."""
PROVIDER = "provider"
"""The agent name in the reports of a sandbox provider."""
STANDBY = "standby"
"""The agent name in the heartbeats of a standby watchdog."""
DASHBOARD = "dashboard"
"""The agent name in the heartbeats of a dashboard."""
UNSUPERVISED = "unsupervised"
"""The sandbox in the heartbeats of an agent that no host runs."""
SANDBOX_ACTIONS = ("add", "remove")
"""No names of sandboxes: `signalmesh sandbox add NAME` is a command, and `signalmesh sandbox NAME` a role."""
RESERVED_NAMES = frozenset(
    {"swarm", WATCHDOG, STANDBY, "mirror", "metrics", DASHBOARD, "up", "in", "all", "info", "warning", "critical"}
    | {UNSUPERVISED, PROVIDER, *STORED_KINDS}
)
"""Names that no agent and no sandbox may have: some subjects use them in place of an agent's name."""

PROTOCOL_SERVICE = "agents"
"""The service name and the first token of all subjects of the Synadia Agent Protocol."""
HARNESS = "signalmesh"
"""The program that runs the agents, in that protocol."""

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,62}[A-Za-z0-9])?")
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")
NAME_RULE = "1 to 64 letters, digits, '_' or '-', beginning and ending with a letter or digit"


def check_name(name: str, what: str) -> str:
    """Return `name` if it may name an agent, a sandbox or a swarm.

    Raises:
        UsageError: it is reserved or has characters that a subject cannot contain.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{what} {name!r}: expected {NAME_RULE}")
    if name.lower() in RESERVED_NAMES and what != "swarm":
        raise UsageError(f"{what} {name!r}: this name is reserved; choose another one")
    if what == "swarm" and name.lower() == "in":
        raise UsageError("swarm 'in': this name is reserved for the write side; choose another one")
    if what == "swarm" and name.lower() == PROTOCOL_SERVICE:
        raise UsageError(f"swarm {name!r}: this name is reserved for the Synadia Agent Protocol; choose another one")
    return name


def escape_topic(topic: str) -> str:
    """One subject token for any non-empty topic; `unescape_topic` is its inverse.

    Raises:
        UsageError: the topic is empty.
    """
    if not topic:
        raise UsageError("topic: expected at least one character")
    out: list[str] = []
    for byte in topic.encode():
        if byte in _PLAIN:
            out.append(chr(byte))
        elif byte == 0x2F:
            out.append("-")
        else:
            out.append(f"={byte:02X}")
    return "".join(out)


def unescape_topic(token: str) -> str:
    """The topic that `escape_topic` escaped to this token.

    Raises:
        ValueError: no topic escapes to this token (so foreign tokens cannot collide with ours).
    """
    out = bytearray()
    at = 0
    while at < len(token):
        char = token[at]
        if char == "-":
            out.append(0x2F)
        elif char == "=":
            out.append(int(token[at + 1 : at + 3], 16))
            at += 2
        else:
            out.append(ord(char))
        at += 1
    topic = out.decode()
    if escape_topic(topic) != token:
        raise ValueError(f"{token!r} is not an escaped topic")
    return topic


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed read-side subject. `topic` is unescaped, and None where the kind has none."""

    ns: str
    kind: str
    topic: str | None
    agent: str


class Subjects:
    """All subjects and bucket names of one swarm; `ns` is the swarm's name."""

    def __init__(self, ns: str) -> None:
        self.ns = check_name(ns, "swarm")
        self.stream = f"{ns}_events"
        self.write_prefix = f"in.{ns}."
        self.probe = f"in.{ns}.probe"
        """Where it is tried whether the server maps the write side; nothing is stored under it."""
        self.restore_prefix = f"restore.{ns}."
        """The write prefix of a stream that is being restored."""
        self.state_bucket = f"{ns}_state"
        self.memory_bucket = f"{ns}_memory"
        self.registry_bucket = f"{ns}_agents"
        self._topics: dict[str, str] = {}

    def event(self, kind: str, topic: str, agent: str) -> str:
        """Read-side subject of a message of `kind` about `topic` by `agent`."""
        return f"{self.ns}.{kind}.{escape_topic(topic)}.{agent}"

    def write(self, read_side: str) -> str:
        """The write-side subject under which to publish what is received on `read_side`."""
        return "in." + read_side

    def epoch(self, agent: str) -> str:
        return f"{self.ns}.epoch.{agent}"

    def config(self, writer: str) -> str:
        return f"{self.ns}.config.swarm.{writer}"

    def lifecycle(self, agent: str, writer: str) -> str:
        return f"{self.ns}.lifecycle.{agent}.{writer}"

    def alert(self, severity: str, writer: str) -> str:
        return f"{self.ns}.alert.{severity}.{writer}"

    def heartbeat(self, agent: str) -> str:
        return f"{self.ns}.heartbeat.{agent}"

    def control(self, target: str, command: str) -> str:
        return f"{self.ns}.control.{target}.{command}"

    def controlled(self, subject: str) -> str:
        """The process that answers requests to `subject`; empty if that is no subject of control requests."""
        target, _, command = subject.removeprefix(f"{self.ns}.control.").partition(".")
        return target if command and subject == self.control(target, command) else ""

    def protocol(self, verb: str, agent: str) -> str:
        """A subject of the Synadia Agent Protocol: `prompt`, `status` and `hb` of an agent, `*` of all agents."""
        return f"{PROTOCOL_SERVICE}.{verb}.{HARNESS}.{self.ns}.{agent}"

    def api(self, agent: str) -> str:
        """The prefix at which an agent requests JetStream's API of its host; no swarm's name begins with `_`."""
        return f"_API.{self.ns}.{agent}"

    def is_hidden(self, subject: str) -> bool:
        """Whether no filter of this swarm finds a stored message under `subject`, so that no agent has read it.

        A server stores a subject with a literal `*` or `>` where clients publish, for it maps no such subject. Below
        one with the byte 0x7F, which its index of subjects uses itself, it finds nothing.
        """
        return not subject.startswith(f"{self.ns}.") or "\x7f" in subject

    def all_of(self, kind: str) -> str:
        """Filter for every message of `kind` on the read side."""
        return f"{self.ns}.{kind}.>"

    def outputs_of(self, agent: str) -> tuple[str, ...]:
        """Filters for everything that `agent`'s handlers and source publish: the numbered messages, also alerts."""
        return tuple(f"{self.ns}.{kind}.*.{agent}" for kind in (*AGENT_KINDS, "alert"))

    def memory_key(self, agent: str, key: str) -> str:
        return f"{self.ns}/{agent}/{key}"

    def parse(self, subject: str) -> Address:
        """Take a read-side subject apart.

        Raises:
            MessageError: the subject does not match this swarm's grammar.
        """
        parts = subject.split(".")
        if len(parts) >= 3 and parts[0] == self.ns:
            kind = parts[1]
            if kind in ("epoch", "heartbeat") and len(parts) == 3:
                return Address(self.ns, kind, None, parts[2])
            if len(parts) == 4:
                token = parts[2]
                if kind in ("lifecycle", "alert", "control", "config"):
                    return Address(self.ns, kind, token, parts[3])
                topic = self._topics.get(token)
                if topic is None:
                    try:
                        topic = unescape_topic(token)
                    except (ValueError, UsageError) as error:
                        raise MessageError(subject, f"topic: {error}") from None
                    if len(self._topics) < 10_000:
                        self._topics[token] = topic
                return Address(self.ns, kind, topic, parts[3])
        raise MessageError(subject, f"expected {self.ns}.{{kind}}.{{topic}}.{{agent}}")
