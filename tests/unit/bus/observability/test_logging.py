"""What a log line shows: JSON elsewhere than on a terminal, the active trace, and no secret."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, ClassVar

import pytest
import structlog

from agents.agent import Agent
from agents.runtime.runtime import RuntimeHooks
from agents.runtime.tracing import AgentTracing
from bus.messages import MarketData, encode
from bus.observability.logging import TRACE_ID, is_secret, set_up_logs
from bus.observability.otel_env import Settings
from bus.observability.tracer import Tracer
from bus.testing.memory_bus import MemoryBus, MemoryServer
from tests.support.runtime import claim_runtime

SEED = "SU" + "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567" + "ABCDEFGHIJKLMNOPQRSTUVWX"
HIDDEN = ("hunter2", SEED, "tok-123")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def afterwards() -> Iterator[None]:
    before = structlog.get_config()
    TRACE_ID.set("")  # another test may have left one in the context that all tests share
    yield
    structlog.configure(**before)


def logged(stream: io.StringIO, event: str = "it_happened", **fields: Any) -> str:
    set_up_logs("info", stream)
    structlog.get_logger("test").warning(event, **fields)
    return stream.getvalue()


def test_a_line_is_json_and_pretty_on_a_terminal():
    line = json.loads(logged(io.StringIO(), of="momentum", epoch=5))
    assert (line["event"], line["level"], line["of"], line["epoch"]) == ("it_happened", "warning", "momentum", 5)
    assert line["timestamp"].endswith("Z")
    assert "trace_id" not in line
    pretty = logged(Terminal(), of="momentum")
    assert "it_happened" in pretty
    with pytest.raises(ValueError, match=r"Expecting value|Extra data"):
        json.loads(pretty)


def test_the_active_trace_is_named():
    token = TRACE_ID.set("0af7651916cd43dd8448eb211c80319c")
    try:
        assert json.loads(logged(io.StringIO()))["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    finally:
        TRACE_ID.reset(token)


LOGGING = """
import logging, sys, structlog
from bus.observability.logging import set_up_logs
set_up_logs("info")
log = structlog.get_logger("test")
log.info("short")
log.info("long", text="x" * 20_000)
logging.getLogger("other").error("by the standard library")
try:
    raise ValueError("told with where it was raised")
except ValueError:
    log.exception("failed")
sys.stderr.write("printed, ")
log.info("halves", text="\\ud800")
"""


def test_a_line_is_one_write_so_that_processes_can_share_a_file():
    """To a socket of packets, each write is one of its own; Python unbuffered, as in the containers."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-c", LOGGING]
        process = subprocess.Popen(command, stderr=theirs.fileno(), env=environment)
        theirs.close()
        writes = []
        while data := ours.recv(1 << 20):
            writes.append(data.decode())
        ours.close()  # whatever it still writes, it ends
        assert process.wait() == 0
    assert [text.count("\n") for text in writes if text != "printed, "] == [1] * 5
    events = [json.loads(text)["event"] for text in writes if text.startswith("{")]
    assert events == ["short", "long", "failed", "halves"]
    assert "by the standard library" in writes[2]
    assert writes.index("printed, ") == 4


SECRETS: list[dict[str, Any]] = [
    {"url": "nats://me:hunter2@host:4222"},
    {"urls": ["nats://hunter2@one", "nats://a:hunter2@two"]},
    {"problem": "cannot reach tls://me:hunter2@host, nor https://hunter2@other/x"},
    {"text": f"the seed is {SEED}, do not tell"},
    {"detail": {"nested": [{"key": SEED}, ("x", f"<{SEED}>")]}},
    {"password": "hunter2"},
    {"api_key": "tok-123"},
    {"detail": {"E2B_API_KEY": "tok-123", "headers": {"Authorization": "tok-123"}}},
    {"access_token": "tok-123"},
    {"nkey_seed": "hunter2"},
    {"webhook": "https://example.org/tok-123"},
    {"credentials": ["tok-123"]},
    {"error": RuntimeError("refused by nats://me:hunter2@host")},
]


@pytest.mark.parametrize("fields", SECRETS, ids=lambda fields: next(iter(fields)))
@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_secrets_are_hidden(fields, stream):
    line = logged(stream(), **fields)
    assert "***" in line
    for secret in HIDDEN:
        assert secret not in line


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_traceback_hides_them_too(stream):
    created = stream()
    set_up_logs("info", created)
    try:
        raise RuntimeError("refused by nats://me:hunter2@host")
    except RuntimeError:
        structlog.get_logger("test").exception("it_failed")
    assert "RuntimeError" in created.getvalue()
    assert "Traceback" in created.getvalue()
    assert "hunter2" not in created.getvalue()


@pytest.mark.parametrize("name", ["seed", "symbol", "agent", "epoch", "tokens_read", "url", "key", "keys", "author"])
def test_what_is_no_secret_by_its_name_is_printed(name):
    result = is_secret(name)
    assert result == (name == "seed")
    if name != "seed":
        assert json.loads(logged(io.StringIO(), **{name: "plain"}))[name] == "plain"


TRACED, OTHER = "0af7651916cd43dd8448eb211c80319c", "1af7651916cd43dd8448eb211c80319c"


class Noting(Agent):
    """Notes the active trace of each tick, as a line that its handler logs would."""

    kind = "noting"
    listens = ("market",)
    noted: ClassVar[list[str]] = []

    def on_market(self, tick: MarketData) -> None:
        self.noted.append(TRACE_ID.get())
        if tick.sequence == 2:
            raise RuntimeError("on purpose")


async def test_what_a_handler_logs_names_the_trace_of_its_message():
    TRACE_ID.set("")
    server = MemoryServer()
    for number, (trace, flag) in enumerate([(TRACED, "01"), (OTHER, "01"), (TRACED, "00"), ("", "")], 1):
        tick = MarketData(
            symbol="A", price=1.0, volume=1.0, timestamp=datetime(2020, 1, 1, tzinfo=UTC), source="f", sequence=number
        )
        headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-{flag}"} if trace else {}
        server.store("in.swarm.market.A.feed", encode(tick), headers)
    Noting.noted.clear()
    bus = MemoryBus(server)
    agent = Noting("agent")
    hooks = RuntimeHooks(tracing=AgentTracing(Tracer(Settings(), dict), agent, bus.subjects))
    runtime = await claim_runtime(agent, bus, hooks=hooks)
    async with asyncio.timeout(20):
        running = asyncio.create_task(runtime.run())
        while runtime.input_processor.cursor < 4 and not running.done():
            await asyncio.sleep(0)
        runtime.drain()
        await running
    await bus.close()
    assert Noting.noted[:2] == [TRACED, OTHER]
    assert Noting.noted[-2:] == ["", ""]
    assert TRACE_ID.get() == ""
