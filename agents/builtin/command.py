"""An agent in any language: a child program that receives one JSON line for each event and answers with one.

    to its stdin      {"event": "market", "message": {...as published...}, "state": {...}}
    from its stdout   {"outputs": [{"kind": "signal", "signal": "buy", "strength": 0.7, "indicators": {}}],
                       "state": {...}}

The program must answer by (event, state) only, with no memory of its own, no clock and no randomness: it may be
restarted at any moment, and gets the event again on a replay. What it has to remember is `state`, any JSON object, {}
at first; it is part of the snapshots, so claim, fence, snapshot and replay are the runtime's. Left out, `outputs` are
none and `state` stays as it is. Its stdout is for answers only; its stderr is logged. It should end with its stdin.

Two kinds of faults. An answer that is malformed would be so again: the input is skipped with an alert, as for any
handler that raises. A program that dies or does not answer proves nothing about the event: this process ends
with CommandFailed, and its successor sends the event again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar, cast

import msgspec
import orjson
import structlog

from agents.agent import Agent, check_class
from agents.spec import AgentSpec
from bus.errors import MeshError, MessageError, UsageError
from bus.messages import KINDS, Event, Headline, MarketData, decode, encode, explain
from bus.messages.subjects import AGENT_KINDS, Address
from bus.utils.processes import die_with_parent

__all__ = ["MAX_ANSWER_BYTES", "CommandAgent", "CommandFailed", "command_class"]

MAX_ANSWER_BYTES = 256 * 1024
"""Longest line that a program may answer with, its newline not counted."""
MAX_LOG_BYTES = 8 * 1024
"""What a program writes to stderr is logged in pieces of at most this size."""
LOG_BYTES_S, LOG_BURST_BYTES = 4096, 64 * 1024
"""Of that, so much is logged in the long run, and so much at once; the rest is counted."""
END_S = 1.0
"""How long a program may take to end after its stdin has, before its process group is killed."""
_HAS_SYMBOL = frozenset({"market", "sentiment", "signal", "decision"})
_HAS_ROUND = frozenset({"sentiment", "signal", "decision"})
_NOT_RUNNABLE = (errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ENOEXEC)

log = structlog.get_logger("signalmesh.command")


class CommandFailed(MeshError):
    """A program died over an event, or did not answer it in time. The event has no effect, and is sent again."""


class CommandAgent(Agent):
    """Sends every event to its program. `command_class` creates the subclass with the handlers."""

    kind = "command"
    command: ClassVar[tuple[str, ...]] = ()
    """Program and arguments."""
    directory: ClassVar[str] = ""
    """Where the program runs; empty: where we do."""

    @dataclass
    class State:
        """The program's own state: any JSON object; its meaning is the program's."""

        value: dict[str, Any] = field(default_factory=dict)

    @dataclass(frozen=True)
    class Options:
        """Options of a command agent."""

        timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 30.0
        """Seconds that the program may take for one event, its start included."""

    state: State
    options: Options

    def setup(self) -> None:
        """The program is started by the first event."""
        self.handler_limit_s = self.options.timeout_s + END_S
        self._program: _Program | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Process id of the running program, which leads a process group of its own; None if there is none."""
        return self._program.pid if self._program is not None and self._program.usable else None

    async def handle(self, kind: str, event: Event) -> list[Event]:
        """Send `event` to the program; take over the state in its answer.

        Raises:
            ValueError: its answer is malformed; the state is as before.
            CommandFailed: it died, or did not answer within `timeout_s`.
            UsageError: it cannot be started.
        """
        question = orjson.dumps({"event": kind, "message": orjson.Fragment(encode(event)), "state": self.state.value})
        program = await self._running()
        try:
            async with asyncio.timeout(self.options.timeout_s):
                line = await program.request(question)
            outputs, state = self._understand(line, event)
        except BaseException as error:
            # Also when we are cancelled: its answer, if it came later, would be taken for that to another event.
            await program.kill()
            if isinstance(error, TimeoutError):
                why = f"no answer to a {kind} within {self.options.timeout_s} s (its option timeout_s)"
                raise CommandFailed(self._problem(why)) from None
            if isinstance(error, EOFError):
                raise CommandFailed(self._problem(f"it ended over a {kind} ({program.ending})")) from None
            raise
        self.state.value = state  # nothing is awaited from here until the runtime has moved the cursor
        return outputs

    async def _running(self) -> _Program:
        if self._closed:
            raise CommandFailed(self._problem("this agent is ending"))
        if self._program is not None:
            if self._program.usable:
                return self._program
            await self._program.kill()
            log.warning("program_restarted", agent=self.name, why=self._program.ending)
        starting = asyncio.ensure_future(
            asyncio.get_running_loop().subprocess_exec(
                lambda: _Program(self.name),
                *self.command,
                cwd=self.directory or None,
                start_new_session=True,
                preexec_fn=partial(die_with_parent, os.getpid()),
            )
        )
        try:
            # Cancelled halfway, subprocess_exec kills the process, but not its group, and does not wait for its end.
            _, program = await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.wait({starting})
            if starting.exception() is None:
                await starting.result()[1].kill()
            raise
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            if not isinstance(error, ValueError) and getattr(error, "errno", None) not in _NOT_RUNNABLE:
                raise CommandFailed(self._problem(f"cannot be started now: {error}")) from None
            raise UsageError(
                f"agent {self.name!r}: command {list(self.command)} cannot be started in "
                f"{self.directory or os.curdir}: {error}; expected a program on PATH, or the path of an executable file"
            ) from None
        self._program = program
        return program

    def _problem(self, why: str) -> str:
        last = self._program.last_words if self._program is not None else ""
        return f"agent {self.name}: its program {list(self.command)}: {why}" + (f"; it printed: {last}" if last else "")

    def _understand(self, line: bytes, event: Event) -> tuple[list[Event], dict[str, Any]]:
        """Outputs and state of an answer, or ValueError."""
        try:
            answer = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"its answer is no JSON ({error}): {_shortened(line)}") from None
        if not isinstance(answer, dict):
            raise ValueError(f"its answer: expected a JSON object, not {_shortened(line)}")
        if unknown := sorted(answer.keys() - {"outputs", "state"}):
            raise ValueError(f"its answer: unknown key {unknown[0]!r}, expected outputs and state")
        outputs, state = answer.get("outputs", []), answer.get("state", self.state.value)
        if not isinstance(outputs, list):
            raise ValueError("outputs: expected a list of objects")
        if not isinstance(state, dict):
            raise ValueError("state: expected an object")
        try:
            orjson.dumps([[[state]]])  # as deep as it is nested in a snapshot
        except TypeError as error:
            raise ValueError(f"state: {error}") from None
        return [self._output(f"outputs[{at}]", raw, event) for at, raw in enumerate(outputs)], state

    def _output(self, where: str, raw: Any, event: Event) -> Event:
        if not isinstance(raw, dict):
            raise ValueError(f"{where}: expected an object")
        fields = {name: value for name, value in raw.items() if name != "kind" and value is not None}
        kind = raw.get("kind")
        if kind not in self.publishes:
            raise ValueError(f"{where}: kind: expected one of {', '.join(self.publishes)}, not {kind!r}")
        fields.setdefault("source", self.name)
        fields.setdefault("timestamp", event.timestamp)
        if kind in _HAS_SYMBOL and (symbol := _symbol(event)):
            fields.setdefault("symbol", symbol)
        if kind in _HAS_ROUND and (number := _round(event)) is not None:
            fields.setdefault("round", number)
        if fields.get("symbol") == "":
            raise ValueError(f"{where}: symbol: expected at least one character")
        try:
            return cast(Event, decode(Address("", kind, None, self.name), where, orjson.dumps(fields)))
        except MessageError as error:  # a poison message on the bus, but here the program's fault
            raise ValueError(f"{where}: {explain(KINDS[kind], fields, error)}") from None

    async def teardown(self) -> None:
        """End the program, and whatever it has started, if it is running; no other is started after it."""
        self._closed = True
        if self._program is not None:
            await self._program.end()


def command_class(spec: AgentSpec) -> type[CommandAgent]:
    """The class of the agent that `spec.command` is, with a handler for each kind that it listens to.

    Raises:
        UsageError: it listens to nothing, or to a kind that no program can receive.
    """
    where = f"agent {spec.name!r}"
    if "timer" in spec.listens:
        raise UsageError(f"{where}: listens: 'timer' goes with a class only; a program cannot set timers")
    for kind in spec.publishes:
        if kind not in AGENT_KINDS:
            raise UsageError(f"{where}: publishes: unknown kind {kind!r}, expected {', '.join(AGENT_KINDS)}")
    handlers = {f"on_{kind}": _handler(kind) for kind in spec.listens}
    fixed = {
        "__doc__": f"The program {list(spec.command)}.",
        "__module__": __name__,
        "kind": spec.kind or CommandAgent.kind,
        "listens": spec.listens,
        "publishes": spec.publishes,
        "command": spec.command,
        "directory": spec.search_path,
    }
    cls = cast(type[CommandAgent], type("ProgramAgent", (CommandAgent,), {**fixed, **handlers}))
    check_class(cls, where)
    return cls


def _handler(kind: str) -> Callable[[CommandAgent, Event], Awaitable[list[Event]]]:
    async def on_event(self: CommandAgent, event: Event) -> list[Event]:
        return await self.handle(kind, event)

    on_event.__name__ = f"on_{kind}"
    return on_event


def _symbol(event: Event) -> str | None:
    if isinstance(event, Headline):
        return event.symbols[0] if event.symbols else None
    return getattr(event, "symbol", None)


def _round(event: Event) -> int | None:
    return event.sequence if isinstance(event, MarketData) else getattr(event, "round", None)


def _shortened(line: bytes | bytearray, size: int = 200) -> str:
    text = line.decode(errors="replace")
    return text if len(text) <= size else text[:size] + "…"


class _Program(asyncio.SubprocessProtocol):
    """One run of a program: one request at a time, one line each way, and no line without a request."""

    def __init__(self, agent: str) -> None:
        self._agent = agent
        self._closed = asyncio.Event()
        self._exited = False
        self._answer: asyncio.Future[bytes] | None = None
        self._fault: Exception | None = None
        self._stdout, self._stderr = bytearray(), bytearray()
        self._room, self._logged_at, self._dropped = float(LOG_BURST_BYTES), 0.0, 0
        self.last_words = ""
        """The last line of its stderr."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.SubprocessTransport, transport)
        self.pid = self._transport.get_pid()

    @property
    def usable(self) -> bool:
        """Whether it can take a request."""
        return self._fault is None and not self._exited

    @property
    def ending(self) -> str:
        """How it ended, or why it must."""
        code = self._transport.get_returncode()
        if self._fault is not None and not isinstance(self._fault, EOFError):
            return str(self._fault)
        if code is None:
            return "its stdout is closed"
        return f"exit code {code}" if code >= 0 else f"signal {-code}"

    async def request(self, line: bytes) -> bytes:
        """Send one line, wait for one. A caller that stops waiting must kill the program.

        Raises:
            EOFError: it ended instead.
            ValueError: its answer was not one line of at most MAX_ANSWER_BYTES.
        """
        if self._fault is not None:
            raise self._fault
        self._answer = asyncio.get_running_loop().create_future()
        stdin = self._transport.get_pipe_transport(0)
        if stdin is None or stdin.is_closing():
            self._fail(EOFError("it closed its stdin"))
        else:
            cast(asyncio.WriteTransport, stdin).write(line + b"\n")
        return await self._answer

    async def end(self) -> None:
        """Close its stdin, wait END_S for its end, and kill what is left of it."""
        if stdin := self._transport.get_pipe_transport(0):
            stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                await self._closed.wait()
        await self.kill()

    async def kill(self) -> None:
        """Kill it and all of its process group, and wait until it is gone and its output is read."""
        self._fail(EOFError("killed"))
        self._kill_group()
        with contextlib.suppress(TimeoutError):  # a grandchild with a session of its own may hold its pipes
            async with asyncio.timeout(END_S):
                await self._closed.wait()
        self._transport.close()

    def _kill_group(self) -> None:
        if not self._exited:  # after that its number may be another's
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def _fail(self, fault: Exception) -> None:
        if self._fault is None:
            self._fault = fault
            if self._answer is not None and not self._answer.done():
                self._answer.set_exception(fault)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 2:
            self._log(data)
            return
        if self._fault is not None:
            return
        self._stdout += data
        line, newline, rest = self._stdout.partition(b"\n")
        if self._answer is None or self._answer.done():
            self._fail(ValueError(f"it wrote to stdout without a request: {_shortened(self._stdout)}"))
        elif len(line) > MAX_ANSWER_BYTES:
            self._fail(ValueError(f"its answer: expected a line of at most {MAX_ANSWER_BYTES} bytes"))
        elif rest:
            self._fail(ValueError(f"its answer: expected one line, then nothing more: {_shortened(self._stdout)}"))
        elif newline:
            self._stdout = bytearray()
            self._answer.set_result(bytes(line))

    def _log(self, data: bytes) -> None:
        self._stderr += data
        while self._stderr:
            line, newline, rest = self._stderr.partition(b"\n")
            if not newline and len(line) < MAX_LOG_BYTES:
                return
            piece, more = line[:MAX_LOG_BYTES], line[MAX_LOG_BYTES:]
            self._stderr = more + newline + rest if more else rest
            text = piece.decode(errors="replace").rstrip()
            self.last_words = text or self.last_words
            self._log_line(text)

    def _log_line(self, line: str) -> None:
        """Log a line, if there is room for it: a program that never stops must not fill the disk."""
        now = asyncio.get_running_loop().time()
        self._room = min(LOG_BURST_BYTES, self._room + (now - self._logged_at) * LOG_BYTES_S)
        self._logged_at = now
        if self._room < len(line):
            if not self._dropped:
                log.warning("program_stderr_floods", agent=self._agent, logged_bytes_s=LOG_BYTES_S)
            self._dropped += 1
            return
        if self._dropped:
            log.warning("stderr_truncated", agent=self._agent, lines=self._dropped)
            self._dropped = 0
        self._room -= len(line)
        log.info("program_stderr", agent=self._agent, line=line)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 1:  # not its exit: what it wrote before that may still be on its way
            self._fail(EOFError("it closed its stdout"))
        elif fd == 2 and self._stderr:
            self._log(b"\n")

    def process_exited(self) -> None:
        self._kill_group()  # processes that it left behind; at once, while the group's number is not reused
        self._exited = True

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set()
