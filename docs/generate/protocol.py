"""protocol.md: subjects, headers, the stream and the buckets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from bus.messages import MAX_PAYLOAD_BYTES, headers
from bus.messages.subjects import NAME_RULE, RESERVED_NAMES, STORED_KINDS, Subjects
from bus.nats.jetstream import NANOSECOND
from bus.nats.streams import MINIMUM_VERSION, StreamLimits, expected_streams
from docs.generate.markdown import code, number, page, sentence, table
from docs.generate.source import constants_of

SUBJECTS = Subjects("swarm")
TICK = "BTC/USD"
WRITERS = {
    "market": (SUBJECTS.event("market", TICK, "research-1"), "a source"),
    "headline": (SUBJECTS.event("headline", TICK, "research-2"), "the sentiment agent, or a program of yours"),
    "sentiment": (SUBJECTS.event("sentiment", TICK, "research-2"), "a voter"),
    "signal": (SUBJECTS.event("signal", TICK, "strategy-momentum"), "a voter"),
    "decision": (SUBJECTS.event("decision", TICK, "coordinator"), "the coordinator"),
    "timer": (SUBJECTS.event("timer", TICK, "coordinator"), "the agent that has set the timer"),
    "epoch": (SUBJECTS.epoch("research-1"), "the process that starts the agent"),
    "config": (SUBJECTS.config("watchdog"), "the watchdog"),
    "lifecycle": (SUBJECTS.lifecycle("research-1", "watchdog"), "agents, hosts, watchdog, provider, `up`"),
    "alert": (SUBJECTS.alert("warning", "watchdog"), "every process"),
    "heartbeat": (SUBJECTS.heartbeat("research-1"), "every agent and role. Not stored"),
}
CONTROL = (
    (SUBJECTS.control("coordinator", "status"), "an agent", "NATS services API: counts of the running process"),
    (
        SUBJECTS.control("base", "spawn"),
        "a sandbox host",
        "`spawn`, `kill`, `signal`, `check`, `probe`: of agent processes",
    ),
    (SUBJECTS.control("watchdog", "restart"), "the watchdog", "`restart`, `revive`: of one agent"),
    (SUBJECTS.control("proxy", "reset"), "the fault proxy", "network faults of `chaos`"),
)
BUCKETS = {
    SUBJECTS.memory_bucket: ("swarm/coordinator/decision", "Each agent's last output, exactly the published JSON."),
    SUBJECTS.registry_bucket: ("coordinator", "The registry: one record of each agent and its process."),
    SUBJECTS.state_bucket: ("coordinator", "Snapshots, written by compare-and-set. For the agents' own use."),
}


def text() -> str:
    """The page.

    Raises:
        LookupError: a message kind has no writer in WRITERS.
    """
    if {*WRITERS} != {*STORED_KINDS, "heartbeat"}:
        raise LookupError(f"docs/generate/protocol.py: WRITERS: not in both: {sorted({*WRITERS} ^ {*STORED_KINDS})}")
    events, *buckets = expected_streams(cast(Any, SimpleNamespace(subjects=SUBJECTS)), StreamLimits(), is_guarded=True)
    kinds = [(code(kind), code(subject), who) for kind, (subject, who) in WRITERS.items()]
    named = {getattr(headers, name): text for name, text in constants_of(headers).items() if name[0] != "_"}
    settings = [(code(key), _format_setting(key, value)) for key, value in events.items() if key != "name"]
    contents = [(code(name), code(key), what) for name, (key, what) in BUCKETS.items()]
    keys = [key for key in buckets[0] if key != "name"]
    return page(
        "Subjects, headers, buckets",
        "[Architecture](../concepts/architecture.md) explains the parts. [Message schemas](messages.md) has the "
        "payloads. Here the swarm is called `swarm`, its default name.",
        "## Subjects",
        "The grammar is `{ns}.{kind}.{topic}.{agent}`. Subscribe to these subjects; to publish, put `in.` before them. "
        "The stream is between the two sides.",
        table(("kind", "read side", "writer"), kinds),
        f"- A name has {NAME_RULE}.\n"
        f"- Reserved names: {', '.join(map(code, sorted(RESERVED_NAMES)))}.\n"
        "- A topic is any text. `/` is written `-`; other characters outside letters, digits and `_` are written "
        "`=XX`, the bytes of UTF-8.\n"
        f"- A payload is JSON of at most {number(MAX_PAYLOAD_BYTES)} bytes.",
        "### Requests",
        "`{ns}.control.{target}.{command}` is a request with a reply. It is not stored.",
        table(("example", "served by", "purpose"), [(code(subject), *row) for subject, *row in CONTROL]),
        "## Headers",
        table(("header", "meaning"), [(code(name), sentence(meaning)) for name, meaning in named.items()]),
        "## Stream",
        f"The server is NATS {MINIMUM_VERSION[0]}.{MINIMUM_VERSION[1]} or newer with JetStream. `up` creates stream "
        "and buckets, and updates their limits. `max_age`, `max_bytes` and `num_replicas` are those of "
        "[`[stream]`](configuration.md#stream); the table has the defaults.",
        table(("setting", code(events["name"])), settings),
        "## Buckets",
        "They are key-value buckets of NATS.",
        table(("bucket", "example of a key", "contents"), contents),
        table(
            ("setting", *(code(bucket["name"]) for bucket in buckets)),
            [(code(key), *(_format_setting(key, bucket[key]) for bucket in buckets)) for key in keys],
        ),
    )


def _format_setting(key: str, value: Any) -> str:
    """A setting of JetStream, with the unit that a reader expects."""
    if key in ("max_age", "duplicate_window"):
        return f"{number(value // NANOSECOND)} s" if value else "unlimited"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return ", ".join(f"{name} {code(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(code, value))
    return number(value) if isinstance(value, int) else str(value)
