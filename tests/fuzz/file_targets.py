"""The parsers of bytes that come from files and over HTTP."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import gzip
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from agents.feeds.candles import _parse as parse_candles
from agents.feeds.headlines import load_headlines
from bus.durable.snapshots import Snapshot
from bus.errors import DataError, MirrorDamaged, MirrorFailing, MirrorUnusable, UsageError
from bus.messages import headers as h
from bus.messages.subjects import Subjects
from bus.mirror.reader import MirrorFile, _mirrored
from bus.mirror.schema import KvRow, MessageRow, StreamIncarnation, message_checksum, subject_columns
from bus.mirror.writer import MirrorStore
from bus.observability.otel_env import read_exporting
from coordinator.config.changes import (
    CHANGES_FILE,
    NO_CHANGES,
    SAVED_FILE,
    apply_changes,
    encode_changes,
    read_changes_file,
    read_saved_changes,
    to_changes,
    without_configured,
)
from coordinator.config.loader import BUILT_IN, load_swarm, parse_swarm
from coordinator.config.secrets import _checked as checked_secret
from coordinator.config.settings import ResolvedSwarm, SwarmConfig
from coordinator.dashboard.agent_log import tail
from coordinator.dashboard.api import Dashboard
from coordinator.dashboard.app import make_app
from coordinator.dashboard.guard import Access
from coordinator.dashboard.hub import Hub, Viewer
from coordinator.dashboard.mirror_source import MirrorSource
from coordinator.monitor.history import entry_of
from coordinator.reporting.differences import payload_differences
from coordinator.runner.dashboard_link import ADDRESS_FILE, read_place
from coordinator.runner.run_record import read_run
from coordinator.sandboxes.pool_record import read_pool
from coordinator.telemetry.otel_env_check import check_variables
from tests.fuzz.bus_targets import EXAMPLES, ORDER, SUBJECT_OF
from tests.fuzz.target import check_problem, directory, target, written

SUBJECTS = Subjects("swarm")
AT = datetime(2026, 1, 1, tzinfo=UTC)
STAMP = b'"2026-01-01T00:00:00Z"'

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


@target(
    b'{"revision":1,"agents":{"a":{"table":{"kind":"momentum","sandbox":"base"},"after":3}}}',
    b'{"revision":2,"removed":{"a":{"after":3,"forget":true}},"moved":{"b":{"sandbox":"base","after":1}}}',
    b'{"file":"/x.toml","saved":{"agents":{"a":"00"},"moved":{}}}',
)
def changes(data: bytes) -> None:
    """What was changed at run time, as the state directory has it."""
    config, base = _built_in()
    written(CHANGES_FILE, data)
    written(SAVED_FILE, data)
    try:
        found = read_changes_file(directory())
        assert to_changes(orjson.loads(orjson.dumps(encode_changes(found)))) == found
        apply_changes(base, found)
    except UsageError as error:
        check_problem(error)
    try:
        without_configured(config, NO_CHANGES, read_saved_changes(directory(), replace(config, file="/x.toml")))
    except UsageError as error:
        check_problem(error)


@functools.cache
def _built_in() -> tuple[SwarmConfig, ResolvedSwarm]:
    config = parse_swarm({}, BUILT_IN, "")
    return config, config.resolve()


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
