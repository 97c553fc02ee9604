"""A program in any language as an agent: its votes, its state after a crash, and every way in which it can fail.

The programs are real processes. Faults are put into them by their arguments: what to say instead of an answer to a
certain tick, and whom to ask (a socket of the test) before they answer one.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import orjson
import psutil
import pytest
import structlog

from agents.agent import Agent
from agents.builtin.command import MAX_ANSWER_BYTES, CommandAgent, CommandFailed, command_class
from agents.runtime.process import make_agent
from agents.runtime.runtime import Runtime
from agents.spec import AgentSpec
from bus.errors import EXIT_USAGE, MeshError, UsageError
from bus.interface import ReceivedMessage
from bus.messages import MarketData, Signal, decode, encode
from bus.messages import headers as h
from bus.messages.subjects import Subjects
from bus.server.supervisor import NatsServer
from bus.testing.memory_bus import MemoryBus, MemoryServer
from bus.testing.tcp_proxy import Proxy
from bus.utils.processes import wait_pid_exit
from tests.support.collecting import GUARD_S, Collector
from tests.support.nats import Connections
from tests.support.repository import ROOT
from tests.support.runtime import claim_runtime

START = datetime(2020, 1, 1, tzinfo=UTC)
NODE_EXAMPLE = ROOT / "examples" / "node-agent"
LANGUAGES = ["python"] + (["node"] if shutil.which("node") else [])  # without Node.js there is nothing to run it with

PROGRAM = """
import json, signal, socket, subprocess, sys

faults = json.loads(sys.argv[1])
print("a program has started", file=sys.stderr, flush=True)
for number in range(faults.get("flood", 0)):
    print(number, "x" * 1000, file=sys.stderr, flush=True)
if faults.get("banner"):
    print("welcome", flush=True)
if faults.get("child"):
    subprocess.Popen(["sleep", "600"])
for line in sys.stdin:
    question = json.loads(line)
    tick, seen = question["message"], question["state"].get("seen", [])
    number = str(tick["sequence"])
    if port := faults.get("ask", {}).get(number):
        with socket.create_connection(("127.0.0.1", port)) as test:
            if test.recv(10) == b"hang":
                while True:
                    signal.pause()
    if number in faults.get("say", {}):
        sys.stdout.write(faults["say"][number])
        sys.stdout.flush()
        continue
    if number == faults.get("exit"):
        print("I cannot go on", file=sys.stderr, flush=True)
        sys.exit(3)
    seen = [*seen, tick["price"]][-5:]
    vote = {"kind": "signal", "signal": "buy", "strength": 0.5, "indicators": {"total": sum(seen)}}
    outputs = [vote, {**vote, "signal": "sell"}] if tick["sequence"] % 7 else []
    print(json.dumps({"outputs": outputs, "state": {"seen": seen}}), flush=True)
"""


def tick(n: int) -> bytes:
    stamp = START + timedelta(hours=n)
    price = 100.0 + n * 37 % 11
    event = MarketData(symbol="BTC/USD", price=price, volume=1.0, timestamp=stamp, source="feed", sequence=n)
    return encode(event)


def spec_of(
    directory: Path, language: str = "python", options: dict[str, Any] | None = None, **faults: Any
) -> AgentSpec:
    if language == "node":
        command: tuple[str, ...] = ("node", "agent.mjs")
        directory = NODE_EXAMPLE
    else:
        (directory / "program.py").write_text(PROGRAM)
        command = (sys.executable, "program.py", json.dumps(faults))
    return AgentSpec(
        name="script",
        kind="command",
        command=command,
        search_path=str(directory),
        listens=("market",),
        publishes=("signal",),
        options=options or {},
    )


class Mesh:
    """A stream in memory with `ticks` ticks; `votes` collects what is stored of our agent's."""

    def __init__(self, ticks: int) -> None:
        self.server = MemoryServer()
        self.votes: Collector[ReceivedMessage] = Collector()
        self.alerts: Collector[ReceivedMessage] = Collector()
        self.server.add_listener("swarm.signal.*.script", self.votes.put)
        self.server.add_listener("swarm.alert.*.script", self.alerts.put)
        self.add(range(1, ticks + 1))

    def add(self, numbers: range) -> None:
        for n in numbers:
            self.server.store("in.swarm.market.BTC-USD.feed", tick(n), {})

    @property
    def stored(self) -> list[tuple[int, bytes, str, str]]:
        """What the agent has stored, in order: place, data, number, and the sequence of the tick it answers."""
        own = [m for m in self.server.messages if h.OUTPUT in m.headers and m.subject.endswith(".script")]
        return [(at, m.data, m.headers[h.OUTPUT], self._tick_of(m.headers[h.CAUSE])) for at, m in enumerate(own)]

    def _tick_of(self, cause: str) -> str:
        return str(orjson.loads(self.server.messages[int(cause) - 1].data)["sequence"])

    @property
    def skipped(self) -> list[str]:
        reports = [orjson.loads(m.data) for m in self.server.messages if m.subject.startswith("swarm.lifecycle.script")]
        return [report["reason"] for report in reports if report["event"] == "skipped"]

    @asynccontextmanager
    async def incarnation(self, spec: AgentSpec) -> AsyncIterator[LiveAgent]:
        """One incarnation, crashed at the end unless it has ended itself by then."""
        bus = MemoryBus(self.server)
        incarnation = await LiveAgent.begin(spec, bus)
        try:
            async with asyncio.timeout(GUARD_S * 2):
                yield incarnation
        finally:
            incarnation.task.cancel()
            await asyncio.gather(incarnation.task, return_exceptions=True)
            await bus.close()
            assert incarnation.agent.pid is None


class LiveAgent:
    def __init__(self, agent: CommandAgent, runtime: Runtime) -> None:
        self.agent, self.runtime = agent, runtime
        self.task = asyncio.create_task(runtime.run())

    @classmethod
    async def begin(cls, spec: AgentSpec, bus: Any) -> LiveAgent:
        agent = make_agent(spec)
        assert isinstance(agent, CommandAgent)
        return cls(agent, await claim_runtime(agent, bus, snapshot_inputs=3))

    async def drain(self) -> None:
        self.runtime.drain()
        await self.task

    async def failure(self) -> BaseException:
        await asyncio.wait({self.task})
        error = self.task.exception()
        assert error is not None
        return error


class Asked:
    """What programs ask before they answer: replied to from `replies`, then with "go"; `asked` counts them."""

    def __init__(self) -> None:
        self.requested: Collector[int] = Collector()
        self.replies: list[bytes] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._on_asked, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _on_asked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        writer.write(self.replies.pop(0) if self.replies else b"go")
        writer.write_eof()
        self.requested.put(len(self.requested.items))


async def undisturbed(spec: AgentSpec, ticks: int, votes: int) -> Mesh:
    mesh = Mesh(ticks)
    async with mesh.incarnation(spec) as incarnation:
        await mesh.votes.reach(votes)
        await incarnation.drain()
    return mesh


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("language", LANGUAGES)
async def test_its_votes_are_stored(tmp_path, language):
    each = 1 if language == "node" else 2
    mesh = await undisturbed(spec_of(tmp_path, language), 6, 6 * each)
    subject = "swarm.signal.BTC-USD.script"
    votes = [decode(Subjects("swarm").parse(subject), subject, data) for _, data, _, _ in mesh.stored]
    assert {vote.source for vote in votes} == {"script"}  # type: ignore[union-attr]
    assert [vote.round for vote in votes] == [n for n in range(1, 7) for _ in range(each)]  # type: ignore[union-attr]
    assert [vote.timestamp for vote in votes][-1] == START + timedelta(hours=6)  # type: ignore[union-attr]
    assert [(number, cause) for _, _, number, cause in mesh.stored] == [
        (str(at + 1), str(at // each + 1)) for at in range(6 * each)
    ]
    snapshot = orjson.loads(mesh.server.buckets["swarm_state"]["script"].value)
    closes = [orjson.loads(tick(n))["price"] for n in range(1, 7)]
    assert snapshot["state"] == {"value": {"BTC/USD": closes} if language == "node" else {"seen": closes[-5:]}}
    assert mesh.skipped == []


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("crash_after", [1, 4, 27, 59])
async def test_after_a_crash_the_outputs_equal_an_undisturbed_run(tmp_path, language, crash_after):
    spec = spec_of(tmp_path, language)
    count = 60 if language == "node" else 104
    calm = await undisturbed(spec, 60, count)
    mesh = Mesh(60)
    async with mesh.incarnation(spec):
        await mesh.votes.reach(crash_after)
    async with mesh.incarnation(spec) as incarnation:
        await mesh.votes.reach(count)
        await incarnation.drain()
    assert mesh.stored == calm.stored
    assert len({number for _, _, number, _ in mesh.stored}) == count
    assert mesh.skipped == []
    assert [orjson.loads(alert.data)["code"] for alert in mesh.alerts.items] == []


async def test_a_program_that_floods_its_stderr_does_not_fill_the_disk(tmp_path, monkeypatch):
    log = structlog.testing.CapturingLogger()
    monkeypatch.setattr("agents.builtin.command.log", log)
    mesh = await undisturbed(spec_of(tmp_path, flood=2000), 6, 12)
    assert len(mesh.stored) == 12
    lines = [call.kwargs["line"] for call in log.calls if call.args == ("program_stderr",)]
    assert [int(line.split()[0]) for line in lines[1:40]] == list(range(39))  # what was said first is there
    assert len(lines) < 2000
    assert [call.args for call in log.calls].count(("program_stderr_floods",)) >= 1


async def test_snapshots_are_taken_although_inputs_wait_all_the_time(tmp_path):
    mesh = Mesh(60)
    async with mesh.incarnation(spec_of(tmp_path)) as incarnation:
        await mesh.votes.reach(52)
        assert incarnation.runtime.input_processor.inputs < 60
        assert orjson.loads(mesh.server.buckets["swarm_state"]["script"].value)["inputs"] > 3


VOTE = {"kind": "signal", "signal": "buy", "strength": 0.5, "indicators": {}}
MALFORMED = {
    "no JSON": ("what?\n", "its answer is no JSON .*what?"),
    "an empty line": ("\n", "its answer is no JSON"),
    "no object": ("[]\n", "expected a JSON object"),
    "NaN": ('{"state": {"a": NaN}}\n', "no JSON"),
    "an unknown key": ('{"output": []}\n', "unknown key 'output', expected outputs and state"),
    "outputs no list": ('{"outputs": {}}\n', "outputs: expected a list"),
    "an output no object": ('{"outputs": [1]}\n', r"outputs\[0\]: expected an object"),
    "no kind": (json.dumps({"outputs": [VOTE, {}]}) + "\n", r"outputs\[1\]: kind: expected one of signal, not None"),
    "another kind": ('{"outputs": [{"kind": "market"}]}\n', "kind: expected one of signal, not 'market'"),
    "a kind that is none": ('{"outputs": [{"kind": []}]}\n', "kind: expected one of signal"),
    "a wrong type": (json.dumps({"outputs": [{**VOTE, "strength": "high"}]}) + "\n", "strength: expected float"),
    "out of range": (json.dumps({"outputs": [{**VOTE, "strength": 2}]}) + "\n", "strength: expected a number from 0"),
    "a field missing": ('{"outputs": [{"kind": "signal", "signal": "buy"}]}\n', "strength: missing, expected float"),
    "an empty symbol": (json.dumps({"outputs": [{**VOTE, "symbol": ""}]}) + "\n", "symbol: expected at least one"),
    "state no object": ('{"state": [1]}\n', "state: expected an object"),
    "state null": ('{"state": null}\n', "state: expected an object"),
    "state too deep": ('{"state": ' + '{"a":' * 300 + "1" + "}" * 300 + "}\n", "state: Recursion limit"),
    "a line too long": ('{"state": "' + "x" * MAX_ANSWER_BYTES + '"}\n', "expected a line of at most 262144 bytes"),
    "no end of line": ("x" * (MAX_ANSWER_BYTES + 1), "expected a line of at most 262144 bytes"),
    "two lines": ("{}\n{}\n", "expected one line"),
}


@pytest.mark.parametrize("fault", MALFORMED)
async def test_a_malformed_answer_is_skipped_with_an_alert(tmp_path, fault):
    printed, problem = MALFORMED[fault]
    spec = spec_of(tmp_path)
    program = PROGRAM.replace("json.loads(sys.argv[1])", f"{{'say': {{'4': {printed!r}}}}}")  # too long for an argument
    (tmp_path / "program.py").write_text(program)
    mesh = Mesh(6)
    async with mesh.incarnation(spec) as incarnation:
        await mesh.votes.reach(10)
        await incarnation.drain()
    assert [cause for _, _, _, cause in mesh.stored] == [n for n in "12356" for _ in range(2)]
    assert len(mesh.skipped) == 1
    [alert] = [orjson.loads(alert.data) for alert in mesh.alerts.items]
    assert (alert["code"], alert["severity"]) == ("handler_failed", "critical")
    with pytest.raises(ValueError, match=problem):
        raise ValueError(alert["message"])
    prices = [orjson.loads(tick(n))["price"] for n in (1, 2, 3, 5, 6)]  # the state is that of before the skipped one
    assert orjson.loads(mesh.stored[-1][1])["indicators"] == {"total": sum(prices)}


async def test_a_program_that_greets_gets_the_reason_that_stdout_is_for_answers(tmp_path):
    mesh = Mesh(2)
    async with mesh.incarnation(spec_of(tmp_path, banner=True)):
        await mesh.alerts.reach(2)
    assert mesh.stored == []
    assert len(mesh.skipped) == 2
    assert all("welcome" in reason for reason in mesh.skipped)


@pytest.mark.parametrize("how", ["killed", "silent"])
async def test_a_program_that_fails_over_an_event_gets_it_again_in_the_next_incarnation(tmp_path, how):
    calm = await undisturbed(spec_of(tmp_path), 12, 22)
    async with Asked() as test:
        test.replies = [b"hang"]
        timeout_s = 30.0 if how == "killed" else 1.0
        spec = spec_of(tmp_path, ask={"8": test.port}, options={"timeout_s": timeout_s})
        mesh = Mesh(12)
        async with mesh.incarnation(spec) as incarnation:
            await test.requested.reach(1)
            pid = incarnation.agent.pid
            assert pid is not None
            if how == "killed":
                os.kill(pid, signal.SIGKILL)
            error = await incarnation.failure()
            assert isinstance(error, CommandFailed)
            assert str(error).endswith("it printed: a program has started")
            expected = "signal 9" if how == "killed" else "no answer to a market within 1.0 s"
            assert expected in str(error)
            assert gone(pid)
        assert [cause for *_, cause in mesh.stored][-1] == "6"
        async with mesh.incarnation(spec) as incarnation:
            await mesh.votes.reach(22)
            await incarnation.drain()
    assert mesh.stored == calm.stored
    assert mesh.skipped == []
    assert len(test.requested.items) == 2


async def test_a_program_that_gives_up_is_quoted(tmp_path):
    mesh = Mesh(3)
    async with mesh.incarnation(spec_of(tmp_path, exit="2")) as incarnation:
        error = await incarnation.failure()
    assert isinstance(error, MeshError)
    assert "it ended over a market (exit code 3); it printed: I cannot go on" in str(error)
    assert [cause for *_, cause in mesh.stored] == ["1", "1"]


async def test_a_program_that_dies_between_two_events_is_started_again(tmp_path):
    mesh = Mesh(3)
    async with mesh.incarnation(spec_of(tmp_path)) as incarnation:
        await mesh.votes.reach(6)
        first = incarnation.agent.pid
        assert first is not None
        program = incarnation.agent._program
        assert program is not None
        os.kill(first, signal.SIGKILL)
        await program._closed.wait()
        assert not program.usable
        mesh.add(range(4, 6))
        await mesh.votes.reach(10)
        assert incarnation.agent._program is not program
        await incarnation.drain()
    assert orjson.loads(mesh.stored[-1][1])["indicators"] == {
        "total": sum(orjson.loads(tick(n))["price"] for n in range(1, 6))
    }


@pytest.mark.parametrize("how", ["drained", "cancelled", "cancelled over an event"])
async def test_it_ends_with_its_agent_and_so_does_what_it_has_started(tmp_path, how):
    async with Asked() as test:
        test.replies = [b"hang"] if "event" in how else []
        mesh = Mesh(2)
        async with mesh.incarnation(spec_of(tmp_path, ask={"2": test.port}, child=True)) as incarnation:
            await mesh.votes.reach(2)
            await test.requested.reach(1)
            pid = incarnation.agent.pid
            assert pid is not None
            [child] = psutil.Process(pid).children()
            if how == "drained":
                await incarnation.drain()
            else:
                incarnation.task.cancel()
                await asyncio.wait({incarnation.task})
            assert gone(pid)
            await wait_pid_exit(child.pid)  # its reaper is not us
            with pytest.raises(CommandFailed, match="ending"):
                await incarnation.agent.handle("market", decode(*_parsed(tick(3))))  # type: ignore[arg-type]
            assert incarnation.agent.pid is None


@pytest.mark.parametrize("steps", range(12))
async def test_a_cancelled_start_leaves_no_process(tmp_path, steps):
    agent = make_agent(spec_of(tmp_path, child=True))
    assert isinstance(agent, CommandAgent)
    agent.setup()
    before = set(psutil.Process().children())
    handling = asyncio.create_task(agent.handle("market", decode(*_parsed(tick(1)))))  # type: ignore[arg-type]
    for _ in range(steps):
        await asyncio.sleep(0)
    handling.cancel()
    await asyncio.wait({handling})
    assert handling.cancelled()
    assert set(psutil.Process().children()) <= before
    assert agent.pid is None


async def test_a_drain_over_an_event_leaves_it_to_the_next_incarnation(tmp_path):
    calm = await undisturbed(spec_of(tmp_path), 5, 10)
    async with Asked() as test:
        test.replies = [b"hang"]
        spec = spec_of(tmp_path, ask={"4": test.port})
        mesh = Mesh(5)
        async with mesh.incarnation(spec) as incarnation:
            await test.requested.reach(1)
            await incarnation.drain()
        assert mesh.stored == calm.stored[:6]
        async with mesh.incarnation(spec) as incarnation:
            await mesh.votes.reach(10)
    assert mesh.stored == calm.stored
    assert mesh.skipped == []


class Halfway(Agent):
    """Changes its state, and only then waits."""

    kind = "halfway"
    listens = ("market",)
    publishes = ("signal",)

    @dataclass
    class State:
        received: int = 0

    waiting: asyncio.Event

    async def on_market(self, event: MarketData) -> Signal:
        self.state.received += 1
        if event.sequence == 3:
            self.waiting.set()
            await asyncio.Event().wait()
        return self.signal(event, "hold", 0.5)


async def test_a_state_changed_by_half_is_never_saved():
    mesh = Mesh(3)
    agent = Halfway("script")
    agent.waiting = asyncio.Event()
    bus = MemoryBus(mesh.server)
    runtime = await claim_runtime(agent, bus, snapshot_inputs=1)
    task = asyncio.create_task(runtime.run())
    async with asyncio.timeout(GUARD_S):
        await agent.waiting.wait()
        runtime.drain()
        await task
    await bus.close()
    snapshot = orjson.loads(mesh.server.buckets["swarm_state"]["script"].value)
    assert snapshot["inputs"] == snapshot["state"].get("received")


@pytest.mark.parametrize("fault", ["missing", "not executable", "no directory"])
async def test_a_program_that_cannot_be_started_is_a_persons_mistake(tmp_path, fault):
    (tmp_path / "here").write_text("")
    directory, program = {
        "missing": (tmp_path, "no-such-program"),
        "not executable": (tmp_path, "./here"),
        "no directory": (tmp_path / "elsewhere", sys.executable),
    }[fault]
    spec = AgentSpec(
        name="script", command=(program, "x"), search_path=str(directory), listens=("market",), publishes=("signal",)
    )
    mesh = Mesh(1)
    async with mesh.incarnation(spec) as incarnation:
        error = await incarnation.failure()
    assert isinstance(error, UsageError)
    assert error.exit_code == EXIT_USAGE
    assert f"agent 'script': command ['{program}', 'x'] cannot be started in {directory}" in str(error)
    assert mesh.skipped == []


@pytest.mark.parametrize(
    ("listens", "publishes", "options", "problem"),
    [
        (("timer",), ("signal",), {}, "agent 'script': listens: 'timer' goes with a class only"),
        (("markt",), ("signal",), {}, "unknown kind 'markt'"),
        (("market",), ("alert",), {}, "publishes: unknown kind 'alert'"),
        ((), ("signal",), {}, "expected `listens`"),
        (("market",), ("signal",), {"timeout": 1}, "unknown setting 'timeout'; .* has: timeout_s"),
        (("market",), ("signal",), {"timeout_s": 0}, "agent 'script': .*> 0.*timeout_s"),
    ],
)
def test_what_no_program_can_be(listens, publishes, options, problem):
    spec = AgentSpec(name="script", command=("x",), listens=listens, publishes=publishes, options=options)
    with pytest.raises(UsageError, match=problem):
        command_class(spec)("script", spec.options)


async def test_over_nats_a_reconnect_in_the_middle_of_an_event_loses_and_duplicates_nothing(tmp_path):
    calm = await undisturbed(spec_of(tmp_path), 12, 22)
    async with NatsServer(tmp_path / "nats", port=0) as server, Connections() as stack, Asked() as test:
        test.replies = [b"hang"]
        bus = await stack.bus(server.url, streams=True)
        votes: Collector[ReceivedMessage] = Collector()
        await bus.listen("swarm.signal.*.script", votes)
        for n in range(1, 13):
            await bus.publish("in.swarm.market.BTC-USD.feed", tick(n))
        proxy = await stack.enter_async_context(Proxy(server.url))
        incarnation = await LiveAgent.begin(spec_of(tmp_path, ask={"8": test.port}), await stack.bus(proxy.url))
        await test.requested.reach(1)
        proxy.reset()
        await test.requested.reach(2)
        await votes.reach(22)
        await incarnation.drain()
        stored = [m for m in await bus.read_back(("swarm.signal.*.script",), 1) if h.OUTPUT in m.headers]
    assert [(m.data, m.headers[h.OUTPUT]) for m in stored] == [(data, number) for _, data, number, _ in calm.stored]


def _parsed(data: bytes) -> Any:
    subject = "swarm.market.BTC-USD.feed"
    return Subjects("swarm").parse(subject), subject, data
