"""The tools that take long: each runs its command as a process of its own, which ends with the call.

So a replay imports the agents' code as it is now, with the hash seed that it needs, and a call that is cancelled leaves
nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bus.errors import EXIT_DONE, EXIT_FAILED, EXIT_UNREACHABLE
from bus.utils.aio import both, end_tasks, finish
from bus.utils.json_text import parse_json
from bus.utils.processes import die_with_parent
from bus.utils.terminal import escape_control
from coordinator.mcp.answers import Answer, Reading, ToolFailed
from coordinator.mcp.arguments import AuditArguments, ReplayArguments
from coordinator.mcp.swarm import ServedSwarm, Source, mirror_instead
from coordinator.reporting.formatting import PROGRESS_VARIABLE
from coordinator.runner.child_process import URL_VARIABLE
from signalmesh import python_command

GRACE_S = 15.0
"""From SIGTERM to SIGKILL."""
NAME = "signalmesh: "
Progress = Callable[[float, float | None, str | None], Awaitable[None]]
"""Called with what is done, the whole if it is known, and a text about it."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that has ended: its exit code, its --json, and the last line of its standard error."""

    code: int
    output: bytes
    problem: str


async def audit(swarm: ServedSwarm, arguments: AuditArguments, progress: Progress) -> Answer[Any]:
    """`audit --json`."""
    return await _verify(swarm, arguments.source, ["audit"], [], progress)


async def replay(swarm: ServedSwarm, arguments: ReplayArguments, progress: Progress) -> Answer[Any]:
    """`replay --json`."""
    if arguments.last is not None and arguments.last < arguments.first:
        raise ToolFailed(
            f"replay: argument last: expected {arguments.first} (first) or more, not {arguments.last}; "
            "call replay again with another range"
        )
    words = ["replay", "--from", str(arguments.first)]
    words += [] if arguments.last is None else ["--to", str(arguments.last)]
    config = [] if swarm.config is None else ["--config", str(swarm.config)]
    return await _verify(swarm, arguments.source, words, config, progress)


async def _verify(
    swarm: ServedSwarm, source: Source, words: list[str], config: list[str], progress: Progress
) -> Answer[Any]:
    note, file = None, ["--file", str(swarm.mirror)]
    from_file = source == "mirror"
    options = [*config, *(file if from_file else [])]
    done = await run_command(swarm, [*words, *options, *swarm.options()], progress)
    if done.code == EXIT_UNREACHABLE and source == "auto":
        note, from_file = mirror_instead(swarm, ToolFailed(done.problem)), True
        options = [*config, *file]
        done = await run_command(swarm, [*words, *options, *swarm.options()], progress)
    result = result_of(words[0], done)
    about = result["stream"] if words[0] == "audit" else result
    reading = Reading(
        source="mirror" if from_file else "bus",
        nats=None if from_file else about["source"],
        file=str(swarm.mirror) if from_file else None,
        stream_sequence=about["last"],
        command=swarm.command(*words, *options),
        note=note,
    )
    return Answer(read=reading, result=result)


def result_of(command: str, done: Finished) -> Any:
    """The --json of a command, also of one whose check has failed.

    Raises:
        ToolFailed: it has ended without a result.
    """
    if done.code in (EXIT_DONE, EXIT_FAILED) and done.output.strip():
        with contextlib.suppress(ValueError):
            return parse_json(done.output)
    raise ToolFailed(done.problem or f"{command}: it ended with exit code {done.code} and no result; run it by hand")


async def run_command(swarm: ServedSwarm, words: Sequence[str], progress: Progress) -> Finished:
    """Run `signalmesh WORDS --json` on the bus of this swarm. Cancelled, it ends the process and waits for its end.

    Each line of its standard error is reported too.

    Raises:
        OSError: the system has no room for another process.
    """
    receiving, sending = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *python_command(*words, "--json"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={
                **os.environ,
                PROGRESS_VARIABLE: str(sending),
                **({} if swarm.nats is None else {URL_VARIABLE: swarm.nats}),
            },
            pass_fds=(sending,),
            start_new_session=True,
            preexec_fn=functools.partial(die_with_parent, os.getpid()),
        )
    except BaseException:
        os.close(receiving)
        raise
    finally:
        os.close(sending)
    reporting = asyncio.create_task(_report(receiving, progress), name="mcp-progress")
    assert process.stdout is not None
    assert process.stderr is not None
    lines: list[str] = []
    try:
        _, output = await both(_note(process.stderr, lines, progress), process.stdout.read())
        await process.wait()
    finally:
        await finish(_end(process, reporting))
    problem = lines[-1].removeprefix(NAME) if lines else ""
    assert process.returncode is not None
    return Finished(process.returncode, output, problem)


async def _note(errors: asyncio.StreamReader, lines: list[str], progress: Progress) -> None:
    async for line in errors:
        if text := line.decode(errors="replace").strip():
            lines.append(text)
            await progress(len(lines), None, escape_control(text))


async def _report(descriptor: int, progress: Progress) -> None:
    reader = asyncio.StreamReader()
    with os.fdopen(descriptor, "rb") as pipe:
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        try:
            async for line in reader:
                at, last = line.split()
                await progress(int(at), int(last), None)
        finally:
            transport.close()


async def _end(process: asyncio.subprocess.Process, reporting: asyncio.Task[None]) -> None:
    """End a process that still runs, and with it what it has started."""
    await end_tasks([reporting])
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
        process.send_signal(signal.SIGCONT)  # a stopped process handles no SIGTERM
    try:
        async with asyncio.timeout(GRACE_S):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
