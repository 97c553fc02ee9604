"""Checks before anything is started that every agent of a configuration can be created on this machine."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import orjson

from agents.runtime.process import make_agent
from agents.spec import AgentSpec, load_class
from bus.errors import ConfigError, UsageError
from bus.utils.processes import die_with_parent
from coordinator.config.settings import ResolvedSwarm, SwarmConfig

STEP_S = 10.0
"""Limit for importing a class, and for creating its agent. A running agent may be silent for less than that."""
START_S = 60.0
"""Limit for the start of the process that tries it, even on a busy machine."""
_DONE = "done"


def check_agents(config: SwarmConfig) -> ResolvedSwarm:
    """Import every agent and create it once, so that a mistake is reported here and not by a dying process.

    Code of users is first tried in a separate process: an import may hang, or end its process.

    Raises:
        ConfigError: naming the agent's key and what is wrong.
    """
    for settings in config.agents:
        if settings.spec.command:
            _check_command(config.file, settings.spec)
    _preflight(config.file, [settings.spec for settings in config.agents if _is_users(settings.spec)])
    resolved = config.resolve()
    for settings in resolved.agents:
        if settings.external:
            continue
        key = f"agents.{settings.spec.name}"
        try:
            make_agent(settings.spec)
        except UsageError as error:
            raise ConfigError(config.file, key, str(error)) from None
        except Exception as error:  # noqa: BLE001 - a user's setup() may raise anything
            problem = f"making it raised {type(error).__name__}: {error}; see its setup()"
            raise ConfigError(config.file, key, problem) from None
    return resolved


def _is_users(spec: AgentSpec) -> bool:
    return bool(spec.class_path and spec.search_path and not spec.kind)


def _check_command(file: str, spec: AgentSpec) -> None:
    program = spec.command[0]
    key = f"agents.{spec.name}.command"
    if "/" in program:
        path = Path(spec.search_path, program)
        if not path.is_file():
            raise ConfigError(
                file, key, f"there is no program {path}; relative paths start at the directory of the file"
            )
        if not os.access(path, os.X_OK):
            raise ConfigError(file, key, f"{path} cannot be executed; `chmod +x {path}`, or name its interpreter first")
    elif shutil.which(program) is None:
        raise ConfigError(file, key, f"there is no program {program!r} on the PATH; install it, or write its path")


# -- trying the code of users


def _preflight(file: str, specs: list[AgentSpec]) -> None:
    """Create them in another process, only to see that each step ends: the attempt in this process finds the error."""
    if not specs:
        return
    ours, theirs = os.pipe()
    with contextlib.ExitStack() as stack:
        reading = stack.enter_context(os.fdopen(ours, "rb", buffering=0))
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs,),
            preexec_fn=functools.partial(die_with_parent, os.getpid()),  # noqa: PLW1509 - no threads yet
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        os.close(theirs)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(orjson.dumps(specs))
        step = ""
        try:
            for step in _lines(reading):  # noqa: B007 - the last one is what it was at
                pass
        except TimeoutError:
            timeout_s = STEP_S if step else START_S
            problem = f"did not come to an end within {timeout_s:.0f} s; it must not wait for a network or a person"
        else:
            if step == _DONE:
                return
            problem = f"ended its process (exit code {process.wait()})"
        name, _, what = step.partition(" ")
        raise ConfigError(file, f"agents.{name}.class" if name else "agents", f"{what or 'starting Python'} {problem}")


def _lines(reading: object) -> Iterator[str]:
    """Lines as they come.

    Raises:
        TimeoutError: the first one took longer than START_S, or a later one than STEP_S.
    """
    fd = reading.fileno()  # type: ignore[attr-defined]
    rest, timeout_s = b"", START_S
    while True:
        if not select.select([fd], [], [], timeout_s)[0]:
            raise TimeoutError
        timeout_s = STEP_S
        data = os.read(fd, 65536)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        yield from (line.decode() for line in lines)


def _run_preflight(fd: int) -> None:
    """The other process: create each agent, and write the name of each step before it."""

    def report(line: str) -> None:
        os.write(fd, f"{line}\n".encode())

    for spec in msgspec.convert(orjson.loads(sys.stdin.buffer.read()), list[AgentSpec]):
        with contextlib.suppress(BaseException):
            report(f"{spec.name} importing {spec.class_path.rpartition(':')[0]}")
            load_class(spec)
            report(f"{spec.name} making it (its setup())")
            make_agent(spec)
    report(_DONE)


if __name__ == "__main__":
    _run_preflight(int(sys.argv[1]))
    os._exit(0)  # even if threads were started meanwhile
