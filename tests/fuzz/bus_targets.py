"""The parsers of bytes that come from the bus, as messages, values, requests and answers."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
import orjson

from agents.agent import Agent, TimerSet
from agents.builtin.command import command_class
from agents.host.api_gateway import AgentGateway, RequestRefused
from agents.host.protocol import KillOrder, SignalRequest, SpawnOrder
from agents.spec import AgentSpec
from agents.state.codec import StateCodec
from agents.state.values import StateMismatch
from bus.durable.registry import Record, read_record
from bus.durable.snapshots import Snapshot, read_snapshot
from bus.errors import MeshError, MessageError, UsageError
from bus.heartbeats import HeartbeatTable, ReceivedHeartbeat
from bus.messages import KINDS, Alert, Decision, Heartbeat, Lifecycle, MarketData, decode, encode
from bus.messages import headers as h
from bus.messages.subjects import Subjects
from bus.mirror.batching import references
from bus.nats.certificates import read_certificates
from bus.nats.client import LazyHeaders, parse_headers
from bus.nats.credentials import jwt_beside
from bus.nats.key_files import read_seed
from bus.nats.tls_faults import explain_tls
from bus.nats.urls import check_url, redacted_url
from bus.nats.wire_parser import WireParser, _first
from bus.observability.logging import redact, sanitize
from bus.observability.spans import read_context, read_sampled
from coordinator.config.telemetry import ListenAddress, check_webhook
from coordinator.decisions.rounds import parse_round_id
from coordinator.monitor.history import since_ns
from coordinator.monitor.message_lines import line_of
from coordinator.runner.proxy_role import BadNetwork
from coordinator.sandboxes.handoff import parse_payload
from coordinator.telemetry.heartbeat_metrics import HeartbeatMetrics
from coordinator.telemetry.labels import Names
from coordinator.telemetry.stream_metrics import StreamMetrics
from tests.fuzz.target import check_problem, target, written

SUBJECTS = Subjects("swarm")
AT = datetime(2026, 1, 1, tzinfo=UTC)
STAMP = b'"2026-01-01T00:00:00Z"'

# -- messages of the bus

ORDER = tuple(KINDS)
SUBJECT_OF = {
    "heartbeat": "swarm.heartbeat.me",
    "alert": "swarm.alert.info.me",
    "lifecycle": "swarm.lifecycle.me.me",
    "config": "swarm.config.watchdog",
    "epoch": "swarm.epoch.me",
    **{kind: f"swarm.{kind}.A.me" for kind in ("market", "headline", "sentiment", "signal", "decision", "timer")},
}
EXAMPLES = {
    "market": b'"symbol":"A","price":1.0,"volume":1.0,"sequence":1,"indicators":{"rsi":[1,2]}',
    "headline": b'"text":"t","symbols":["A"]',
    "sentiment": b'"sentiment":"bullish","confidence":0.5,"sources":["x"],"p_up":0.5,"round":1',
    "signal": b'"signal":"buy","strength":0.5,"indicators":{"a":{"b":1}},"p_up":0.6',
    "decision": b'"final_decision":"buy","position_size":0,"risk_score":0,"consensus_level":1,"agents_consulted":[]',
    "timer": b'"name":"n","number":1',
    "epoch": b'"agent":"me","claim":"c","claimed_by":"me","sandbox":"base"',
    "config": b'"voters":{"me":1.0},"quorum":0.5',
    "lifecycle": b'"event":"ready","agent":"me","detail":{"x":[{}]}',
    "alert": b'"severity":"info","code":"c","message":"m","detail":{"x":1}',
    "heartbeat": b'"agent":"me","agent_id":"i","epoch":1,"sequence":1,"progress":1,"status":"live","interval_ms":100,'
    b'"sandbox":"base","pid":1,"role":"sandbox","inventory":[{"agent":"me","agent_id":"i","epoch":1,"pid":2,'
    b'"spawned_at":' + STAMP + b'}],"usage":{"processes":1,"cpu_s":1,"rss_mb":1},"accounts":{"base":{"seen_s":1,'
    b'"alive_s":1}}',
}


@functools.cache
def heartbeat_metrics() -> HeartbeatMetrics:
    metrics = StreamMetrics(SUBJECTS, Names(("me", "base")), ["me"])
    return HeartbeatMetrics(metrics.registry, metrics.names)


@target(
    *(
        bytes([at]) + b"{" + EXAMPLES[kind] + b',"timestamp":' + STAMP + b',"source":"me"}'
        for at, kind in enumerate(ORDER)
    ),
    examples=400,
)
def payload(data: bytes) -> None:
    """A message: whatever is decoded can be encoded, logged and shown."""
    kind = ORDER[data[0] % len(ORDER)] if data else "market"
    subject = SUBJECT_OF[kind]
    try:
        message = decode(SUBJECTS.parse(subject), subject, data[1:])
    except MessageError as error:
        check_problem(error)
        return
    assert decode(SUBJECTS.parse(subject), subject, encode(message)) is not None
    redact(None, "", {"message": msgspec.to_builtins(message)})
    if isinstance(message, (Decision, Lifecycle, Alert)):
        sanitize(None, "", {"line": line_of(message, subject, "1")})
    if isinstance(message, Heartbeat):
        HeartbeatTable().take(ReceivedHeartbeat(0.0, message))
        heartbeat_metrics().take(message)


@target(b"swarm.market.BTC-USD.me", b"swarm.config.watchdog", b"swarm.alert.info.me", b"nats://u:p@h:1,nats://h:2")
def texts(data: bytes) -> None:
    """Subjects, addresses, ids, times and headers of one line."""
    text = data.decode(errors="surrogateescape")
    with contextlib.suppress(MessageError):
        SUBJECTS.parse(text)
    for check in (
        check_url,
        lambda value: check_webhook(value, "where"),
        lambda value: ListenAddress.parse(value, "where"),
        since_ns,
    ):
        with contextlib.suppress(UsageError):
            check(text)
    redacted_url(text)
    explain_tls(text)
    with contextlib.suppress(ValueError):
        read_certificates(f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n".encode(errors="replace"))
    parse_round_id(text)
    read_context(text)
    read_sampled(text)
    h.number({"x": text}, "x")


@target(b"NATS/1.0 503 No Responders\r\nNats-Sequence: 5\r\n\r\n", b"NATS/1.0\r\nMesh-Cause: 1\r\nMesh-Cause:2\r\n\r\n")
def header_block(data: bytes) -> None:
    """Headers of a message, parsed at once and one by one."""
    parsed, lazy = parse_headers(data), LazyHeaders(data)
    for name in (h.CAUSE, h.OUTPUT, h.SEQUENCE, h.MSG_ID):
        h.number(lazy, name)
        assert lazy.get(name) == parsed.get(name)
    assert dict(lazy) == parsed


@target(
    b"\x05MSG s 1 2\r\nab\r\nHMSG s 1 r 12 13\r\nNATS/1.0\r\n\r\nx\r\nPING\r\n", b"\x01INFO {}\r\nMSG s 2 1\r\na\r\n"
)
def wire(data: bytes) -> None:
    """Bytes of a connection give the same messages, in whatever pieces they arrive."""
    size = data[0] + 1 if data else 1
    stream = data[1:]

    def read(pieces: list[bytes]) -> tuple[list[Any], bytes]:
        found: list[Any] = []
        parser = WireParser(None, {b"1": lambda *message: found.append(message)}, lambda: None)
        for at, piece in enumerate(pieces):
            left = parser.take(piece)
            if 0 < _first(left) <= len(left):  # nats-py's own parser takes this and the rest
                return found, left + b"".join(pieces[at + 1 :])
            parser._rest = left or parser._rest
        return found, parser._rest

    whole = read([stream])
    assert read([stream[at : at + size] for at in range(0, len(stream), size)]) == whole


# -- values of the buckets


@target(
    Snapshot(
        epoch=1, cursor=5, outputs=2, timers={"t": {"number": 1, "topic": "A", "after_ms": 5}}, skipped=[3],
        last_produced={"subject": "swarm.market.A.me", "payload": {}}, tracing={"pending": []}, state={"a": 1},
    ).encode()
)  # fmt: skip
def snapshot(data: bytes) -> None:
    """A snapshot, and what an agent takes from it at its start."""
    assert isinstance(references(data), int)
    try:
        found = read_snapshot("me", data)
    except MeshError as error:
        check_problem(error)
        return
    for timer in found.timers.values():
        TimerSet(**timer)
    if found.last_produced is not None:
        assert isinstance(found.last_produced["subject"], str)
        orjson.dumps(found.last_produced["payload"])
    assert read_snapshot("me", found.encode()) == found


@target(orjson.dumps(Record(
    agent_id="i", name="me", kind="k", capabilities=(), status="active", epoch=1, sandbox="base", pid=1, spawned_at=AT,
)))  # fmt: skip
def registry(data: bytes) -> None:
    """A record of the registry."""
    with contextlib.suppress(ValueError):
        assert read_record(data).name is not None


@dataclass
class EveryState(Agent.State):
    number: float = 0.0
    text: str | None = None
    pairs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    window: deque[float] = field(default_factory=lambda: deque(maxlen=3))
    names: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    when: datetime | None = None
    raw: bytes = b""
    free: Any = None


@target(
    StateCodec(EveryState).encode(EveryState(pairs={"a": (1, 2)}, window=deque([1.0], 3), free={"a": [1]}, when=AT))
)
def state(data: bytes) -> None:
    """The State of an agent: what is decoded comes back as it was."""
    codec = StateCodec(EveryState)
    try:
        decoded = codec.decode(orjson.loads(data))
    except (StateMismatch, orjson.JSONDecodeError) as error:
        check_problem(error)
        return
    with contextlib.suppress(StateMismatch):  # deeper than orjson writes
        codec.verify(decoded, codec.encode(decoded))


# -- requests and answers


@target(
    b'{"term":1,"agent":"me","epoch":1}',
    b'{"agent":"me","signal":9}',
    b'{"agents":["me"],"for_s":1}',
    b'{"term":1,"spec":{"name":"me","kind":"k"},"epoch":1,"agent_id":"i"}',
    b'{"url":"nats://h:1","credentials":{},"endpoint":"e","age_s":1}',
)
def request(data: bytes) -> None:
    """Requests to hosts, the proxy and the watchdog, and what a provider hands over."""
    try:
        parse_payload(data)
    except UsageError as error:
        check_problem(error)
    for kind in (KillOrder, SignalRequest, SpawnOrder, BadNetwork, dict[str, str]):
        try:
            msgspec.convert(orjson.loads(data), kind)
        except ValueError as error:
            check_problem(error)


KEY = "U" + "A" * 55
ANSWERS = f"_INBOX.{KEY}.answer.base."


@target(
    b"STREAM.INFO.swarm_events\n" + ANSWERS.encode() + b"1\n",
    b"STREAM.MSG.GET.KV_swarm_state\n" + ANSWERS.encode() + b'1\n{"last_by_subj":"$KV.swarm_state.me"}',
    b"CONSUMER.CREATE.swarm_events.c\n" + ANSWERS.encode() + b'1\n{"stream_name":"x","config":{"name":"c"}}',
    b"CONSUMER.DELETE.swarm_events.c\n\n",
)
def api_request(data: bytes) -> None:
    """A request of an agent to JetStream: what passes reads the agent's own subjects, into an inbox of its own."""
    command, _, rest = data.partition(b"\n")
    reply, _, body = rest.partition(b"\n")
    gateway = AgentGateway(AgentSpec(name="me", kind="k", listens=("market",)), SUBJECTS, KEY, "base")
    answer = reply.decode(errors="replace")
    with contextlib.suppress(RequestRefused):
        gateway.check(command.decode(errors="replace"), answer, body)
        assert not answer or answer.startswith(ANSWERS)
        assert command.startswith((b"STREAM.INFO.swarm_events", b"STREAM.MSG.GET.", b"CONSUMER."))


@target(b"SU" + b"A" * 56 + b"\n", b"SAA", b"e30.eyJzdWIiOiJVQSJ9.AA\n")
def key_file(data: bytes) -> None:
    """A file with the key of a process, and one with its JWT."""
    path = written("agent-me.nk", data)
    path.chmod(0o600)
    written("agent-me.jwt", data)
    for read in (read_seed, jwt_beside):
        try:
            read(path)
        except UsageError as error:
            check_problem(error)


@functools.cache
def program() -> Any:
    spec = AgentSpec(
        name="me", kind="command", command=("true",), listens=("market",), publishes=("signal", "headline")
    )
    return command_class(spec)("me")


@target(b'{"outputs":[{"kind":"signal","signal":"buy","strength":0.5,"indicators":{}}],"state":{"a":[1]}}')
def program_answer(data: bytes) -> None:
    """The line that a program answers an event with."""
    tick = MarketData(symbol="A", price=1.0, volume=1.0, timestamp=AT, source="x", sequence=1)
    try:
        outputs, kept = program()._understand(data, tick)
    except ValueError as error:
        check_problem(error)
        return
    for output in outputs:
        encode(output)
    Snapshot(state={"value": kept}).encode()
