"""The parsers of bytes that come from the bus, from files and over HTTP, each with what it may do with them.

A target takes any bytes. It fails by an exception that the parser does not document, or that of a check here.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import gzip
import re
import shutil
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import orjson

from agents.agent import Agent, TimerSet
from agents.builtin.command import command_class
from agents.feeds.candles import _parse as parse_candles
from agents.feeds.headlines import load_headlines
from agents.host.api_gateway import AgentGateway, RequestRefused
from agents.host.protocol import KillOrder, SignalRequest, SpawnOrder
from agents.spec import AgentSpec
from agents.state.codec import StateCodec
from agents.state.values import StateMismatch
from bus.durable.registry import Record, read_record
from bus.durable.snapshots import Snapshot, read_snapshot
from bus.errors import DataError, MeshError, MessageError, MirrorDamaged, MirrorFailing, MirrorUnusable, UsageError
from bus.heartbeats import HeartbeatTable, ReceivedHeartbeat
from bus.messages import KINDS, Alert, Decision, Heartbeat, Lifecycle, MarketData, decode, encode
from bus.messages import headers as h
from bus.messages.subjects import Subjects
from bus.mirror.batching import references
from bus.mirror.reader import MirrorFile, _mirrored
from bus.mirror.schema import KvRow, MessageRow, StreamIncarnation, message_checksum, subject_columns
from bus.mirror.writer import MirrorStore
from bus.nats.certificates import read_certificates
from bus.nats.client import LazyHeaders, parse_headers
from bus.nats.key_files import read_seed
from bus.nats.tls_faults import explain_tls
from bus.nats.urls import check_url, redacted_url
from bus.nats.wire_parser import WireParser, _first
from bus.observability.logging import redact, sanitize
from bus.observability.otel_env import read_exporting
from bus.observability.spans import read_context, read_sampled
from coordinator.config.loader import load_swarm
from coordinator.config.secrets import _checked as checked_secret
from coordinator.config.telemetry import ListenAddress, check_webhook
from coordinator.dashboard.agent_log import tail
from coordinator.dashboard.api import Dashboard
from coordinator.dashboard.app import make_app
from coordinator.dashboard.guard import Access
from coordinator.dashboard.hub import Hub, Viewer
from coordinator.dashboard.mirror_source import MirrorSource
from coordinator.decisions.rounds import parse_round_id
from coordinator.monitor.history import entry_of, since_ns
from coordinator.monitor.message_lines import line_of
from coordinator.reporting.differences import payload_differences
from coordinator.runner.dashboard_link import ADDRESS_FILE, read_place
from coordinator.runner.proxy_role import BadNetwork
from coordinator.runner.run_record import read_run
from coordinator.sandboxes.handoff import parse_payload
from coordinator.sandboxes.pool_record import read_pool
from coordinator.telemetry.heartbeat_metrics import HeartbeatMetrics
from coordinator.telemetry.labels import Names
from coordinator.telemetry.otel_env_check import check_variables
from coordinator.telemetry.stream_metrics import StreamMetrics

SUBJECTS = Subjects("swarm")
AT = datetime(2026, 1, 1, tzinfo=UTC)
STAMP = b'"2026-01-01T00:00:00Z"'
LONGEST_PROBLEM = 4000
"""Characters of an error: it becomes an alert, a log line or the answer to a request."""


@dataclass(frozen=True)
class Target:
    """`run` takes any bytes; `seeds` are some of those that it understands."""

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    examples: int = 60
    """Of a short run without coverage."""


TARGETS: dict[str, Target] = {}


def target(*seeds: bytes, examples: int = 60) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    def add(run: Callable[[bytes], None]) -> Callable[[bytes], None]:
        TARGETS[run.__name__] = Target(run, seeds, examples)
        return run

    return add


@functools.cache
def directory() -> Path:
    """A directory of this process, in memory where the system has such a place."""
    memory = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix="signalmesh-fuzz-", dir=memory if memory.is_dir() else None))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def written(name: str, data: bytes) -> Path:
    path = directory() / name
    path.write_bytes(data)
    return path


def check_problem(error: Exception) -> None:
    assert len(str(error)) <= LONGEST_PROBLEM, f"{len(str(error))} characters: {str(error)[:200]}"


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
    "lifecycle": b'"event":"spawned","agent":"me","detail":{"x":[{}]}',
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


@target(b"SU" + b"A" * 56 + b"\n", b"SAA")
def key_file(data: bytes) -> None:
    """A file with the key of a process."""
    path = written("agent-me.nk", data)
    path.chmod(0o600)
    try:
        read_seed(path)
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


# -- files

CANDLES = b"timestamp,open,high,low,close,volume\n2017-07-01T11:00:00Z,1,2,0.5,1.5,10\n2017-07-01T12:00:00Z,1,2,1,2,3\n"
NEWS = b'# from\ndate,symbols,text\n2017-08-01,BTC/USD;ETH/USD,a text\n2017-08-02,BTC/USD,"another, text"\n'


@target(CANDLES, NEWS, gzip.compress(CANDLES), gzip.compress(NEWS), examples=150)
def market_data(data: bytes) -> None:
    """Candles and headlines, plain or compressed."""
    path = written("data.csv", data)
    blocks: list[bytes] = []
    for read in (lambda: parse_candles(path, blocks.append), lambda: load_headlines(path)):
        try:
            read()
        except DataError as error:
            check_problem(error)


@target(
    b'swarm = "s"\nmax_agents = 6\n[agents.a]\nkind = "momentum"\n[sandboxes.base]\n[watchdog]\nheartbeat_ms = 100\n',
    b'[agents.a]\ncommand = ["x"]\nlistens = ["market"]\npublishes = ["signal"]\noptions = { a = 1979-05-27 }\n',
    b'[secrets.webhook]\ncommand = ["x"]\n[alerts]\n[metrics]\nlisten = ":1"\n[dashboard]\njaeger = "http://h"\n',
    b'[sandboxes.far]\nprovider = "e2b"\npackages = { pip = ["x"] }\nallow = ["1.2.3.4"]\ndeny = ["0.0.0.0/0"]\n',
)
def settings(data: bytes) -> None:
    """swarm.toml."""
    try:
        load_swarm(written("swarm.toml", data), directory=directory())
    except UsageError as error:
        check_problem(error)


@target(
    b'{"pid":1,"started":"x","swarm":"s","url":"nats://h:1","config":"c","children":[]}',
    b'{"id":"x","endpoint":"e","sandboxes":[{"sandbox":"a","id":"b"}]}',
    b'{"url":"http://h/","pid":1,"started":"x"}',
)
def records(data: bytes) -> None:
    """The records of a state directory."""
    for name in ("run.json", "e2b.json", ADDRESS_FILE):
        written(name, data)
    try:
        read_run(directory())
    except UsageError as error:
        check_problem(error)
    read_pool(directory())
    read_place(directory())


@target(b"secret\n", b"-----BEGIN NATS USER JWT-----\nx\n")
def secret(data: bytes) -> None:
    """What a file, a command or a pipe gives for a secret."""
    for lines in (True, False):
        with contextlib.suppress(UsageError):
            assert checked_secret(data, "swarm.toml", "secrets.webhook", lines=lines)


@target(b'{"agent":"me","event":"x","timestamp":"2026-01-01T00:00:00Z"}\n{"of":"me"}\n')
def agent_log(data: bytes) -> None:
    """The log files that the dashboard shows."""
    logs = directory() / "logs"
    logs.mkdir(exist_ok=True)
    (logs / "base.log").write_bytes(data)
    orjson.dumps(tail(logs, "me"))


# -- the mirror's file and the dashboard over it


async def _write_mirror(path: Path) -> None:
    store = await MirrorStore.open(path, "swarm")
    await store.begin([StreamIncarnation("swarm_events", "2026-01-01T00:00:00Z", b"{}", 0, "first")])
    rows = [
        MessageRow(
            number, number * 10**9, SUBJECT_OF[kind], {h.MSG_ID: f"me:{number}", h.CAUSE: "1"},
            b"{" + EXAMPLES[kind] + b',"timestamp":' + STAMP + b',"source":"me"}',
        )
        for number, kind in enumerate((kind for kind in ORDER if kind != "heartbeat"), 1)
    ]  # fmt: skip
    values = [KvRow("swarm_state", "me", 1, "PUT", Snapshot(cursor=3).encode(), 10**9)]
    await store.write(rows, values, {"swarm_events": len(rows), "KV_swarm_state": 1})
    await store.close()


@functools.cache
def mirror_bytes() -> bytes:
    path = directory() / "template.sqlite"
    loop().run_until_complete(_write_mirror(path))
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return path.read_bytes()


@functools.cache
def loop() -> asyncio.AbstractEventLoop:
    made = asyncio.new_event_loop()
    atexit.register(made.close)
    return made


@target(b"", b"\0\0\x10\xff", b"\0\x20\0\0\x30\x01\x02\x03", examples=40)
def mirror(data: bytes) -> None:
    """A mirror's file in which some bytes have changed; each four of `data` are a place and a value."""
    content = bytearray(mirror_bytes())
    for at in range(0, len(data) - 3, 4):
        content[int.from_bytes(data[at : at + 3]) % len(content)] = data[at + 3]
    path = written("mirror.sqlite", bytes(content))
    with contextlib.suppress(MirrorUnusable, MirrorDamaged, MirrorFailing), MirrorFile(path) as file:
        file.gaps()
        file.incarnations()
        file.bounds()
        file.problems()
        for found in [*file.newest(50), *file.newest(5, kind="alert", since_ns=1)]:
            row = found.row
            entry_of(row.sequence, 0, row.subject, "me", dict(row.headers), row.payload, intact=found.intact)
        for value in file.value_history("swarm_state", limit=5):
            entry_of(value.row.revision, 0, value.row.key, "me", {}, value.row.value, intact=value.intact)
        file.values("swarm_agents")


@target(b'{"Mesh-Cause":"1"}\n{"a":1}', b'["x"]\n[[[1]]]')
def mirror_row(data: bytes) -> None:
    """A row of a mirror's file whose checksum is right, though no mirror has written it."""
    headers, _, content = data.partition(b"\n")
    subject = "swarm.alert.info.me"
    checksum = message_checksum(1, 1, subject, headers, content)
    found = _mirrored((1, 1, subject, headers, content, checksum, *subject_columns(subject)))
    assert all(isinstance(value, str) for value in found.row.headers.values())
    h.number(found.row.headers, h.CAUSE)
    shown = entry_of(1, 1, subject, "me", dict(found.row.headers), content, intact=found.intact)
    orjson.dumps({"entries": [shown]})
    payload_differences(content, headers)


@functools.cache
def dashboard() -> Any:
    mirror_bytes()
    source = MirrorSource(directory() / "template.sqlite")
    return make_app(Dashboard(source, Hub()), Access.of("127.0.0.1", 80, "t" * 32), lambda _: None)


PATHS = (
    b"/api/overview", b"/api/timeline", b"/api/decisions", b"/api/mesh", b"/api/deaths/", b"/api/decisions/",
    b"/api/messages/", b"/api/agents/", b"/decisions/", b"/agents/", b"/messages/", b"/login", b"/static/", b"/",
)  # fmt: skip


@target(
    b"\0\0symbol=A\nhost: localhost\n\n",
    b"\x05\0A:me:1\n\n",
    b"\x06\x001\n",
    b"\x0b\x01\nhost: localhost\ncookie: a=b\n\ntoken=x&next=/",
    b"\x01\0since=1&until=2\norigin: http://localhost\nauthorization: Bearer x\n",
    examples=100,
)
def http(data: bytes) -> None:
    """Requests to the dashboard: none crashes it. Number of a path and a method, rest of the path or query, headers."""
    begin = PATHS[data[0] % len(PATHS)] if data else b"/"
    post = len(data) > 1 and data[1] % 2 == 1
    head, _, body = data[2:].partition(b"\n\n")
    rest, *lines = head.split(b"\n")
    path, _, query = (begin + (b"?" + rest if data[:1] < b"\x04" else rest)).partition(b"?")
    headers = [(b"host", b"localhost")]
    for line in lines:  # as the server's parser passes them on
        name, colon, value = line.partition(b":")
        if colon and re.fullmatch(rb"[-a-zA-Z0-9]+", name):
            headers.append((name.lower(), re.sub(rb"[^\x20-\xff]", b"", value).strip()))
    query = re.sub(rb"[^\x21-\x7e]", b"", query)
    scope = {
        "type": "http", "method": "POST" if post else "GET", "path": path.decode(errors="replace"), "raw_path": path,
        "query_string": query, "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
        "scheme": "http", "http_version": "1.1", "root_path": "",
    }  # fmt: skip
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    loop().run_until_complete(asyncio.wait_for(dashboard()(scope, receive, send), 20))
    assert statuses
    assert statuses[0] not in (500, 501), statuses


@target(b"x-5", b"-")
def last_event_id(data: bytes) -> None:
    """The place from which an event stream goes on."""
    hub = Hub()

    async def join() -> None:
        hub.join(Viewer(lambda: None), data.decode("latin-1"), {"state": "connected"})
        hub.close()

    loop().run_until_complete(join())


@target(b"always_on\nhttp://h:1/\na=b,c=d\n5", b"traceidratio\n0.5\nx")
def telemetry_variables(data: bytes) -> None:
    """The variables of OpenTelemetry."""
    values = [*data.decode(errors="replace").split("\n"), "", "", "", "", ""]
    names = (
        "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_SAMPLER", "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_TRACES_SAMPLER_ARG",
        "OTEL_METRIC_EXPORT_INTERVAL",
    )  # fmt: skip
    environment = dict(zip(names, values, strict=False))
    check_variables(environment)
    read_exporting(environment, "traces")
    read_exporting(environment, "metrics")


def run_for(name: str, data: bytes, limit_s: float = 10.0) -> None:
    """Run a target; an input that takes longer than `limit_s` is a fault too."""
    started = time.monotonic()
    TARGETS[name].run(data)
    assert time.monotonic() - started < limit_s
