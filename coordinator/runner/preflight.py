"""Checks before anything is started that every agent of a configuration can be created on this machine.

Code of users runs in a process of its own, which ends with the check: an import may hang, end its process, or start
threads and programs.
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import orjson
import psutil

from agents.runtime.process import make_agent
from agents.spec import AgentSpec, ClassTraits
from bus.errors import ConfigError, UsageError
from bus.utils.error_text import describe_error
from bus.utils.processes import die_with_parent
from coordinator.config.changes import Changes, check_count, read_saved_changes, without_configured
from coordinator.config.live_swarm import LiveSwarm
from coordinator.config.settings import AgentSettings, ResolvedSwarm, SwarmConfig
from signalmesh import module_command

TRAITS_VARIABLE = "SIGNALMESH_CLASS_TRAITS"
DESCRIPTORS = 4096
LEAST_DESCRIPTORS = 128
"""Open files that a process of the default swarm needs at the least, with some to spare."""
START_S = 60.0
"""Limit for the start of the process that tries it, even on a busy machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """What the other process writes: its next step, or the result for an agent, or, with no `agent`, its end."""

    agent: str = ""
    doing: str = ""
    traits: ClassTraits | None = None
    key: str = ""
    problem: str = ""


def check_agents(config: SwarmConfig) -> ResolvedSwarm:
    """Import every agent and create it once, so that a mistake is reported here and not by a dying process.

    Raises:
        ConfigError: naming the agent's key and what is wrong.
    """
    for settings in config.agents:
        if settings.spec.command:
            _check_command(config.file, settings.spec)
    resolved = config.resolve(inspect_users_classes(config))
    for settings in resolved.agents:
        if not settings.external and not is_users(settings.spec):
            _create(config.file, settings.spec)
    return resolved


def check_changes(base: ResolvedSwarm, changes: Changes, state_dir: Path) -> LiveSwarm:
    """The swarm of `base` with the changes that were made at run time, but for those that its file has by now, checked
    as `check_agents` does.

    Raises:
        UsageError: they are not possible any more.
    """
    try:
        swarm = LiveSwarm(base, without_configured(base, changes, read_saved_changes(state_dir, base)))
        check_count(swarm.config)
        added = [settings.spec for settings in swarm.config.agents if settings.spec.name in swarm.changes.agents]
        for spec in added:
            if spec.command:
                _check_command(base.file, spec)
        inspect_classes(swarm.config, [spec for spec in added if spec.class_path])
    except ConfigError as error:
        raise UsageError(
            f"{error}; this is with the changes that were made at run time: `signalmesh config diff` shows them, "
            "`signalmesh config reset` forgets them"
        ) from None
    return swarm


def raise_descriptor_limit() -> None:
    """Allow this process and its children as many open files as the hard limit does, up to DESCRIPTORS.

    Raises:
        UsageError: that is less than LEAST_DESCRIPTORS.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    if soft != resource.RLIM_INFINITY and soft < LEAST_DESCRIPTORS:
        raise UsageError(
            f"a process may open {soft} files here, expected {LEAST_DESCRIPTORS} or more: raise the limit (ulimit -n)"
        )


def least_cpus(agents: int) -> float:
    """CPUs below which `up` and `doctor` warn, for so many agents.

    A start of the default swarm of five, with four seconds of decisions, took 6 to 10 seconds of CPU time on two cores:
    with a quarter of a CPU some half a minute. The share of further agents is an estimate.
    """
    return 0.25 + 0.01 * max(0, agents - 5)


def is_users(spec: AgentSpec) -> bool:
    """Whether creating this agent runs code that is not ours."""
    return bool(spec.class_path and spec.search_path)


def _create(file: str, spec: AgentSpec) -> None:
    key = f"agents.{spec.name}"
    try:
        make_agent(spec)
    except UsageError as error:
        raise ConfigError(file, key, str(error)) from None
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's setup() may raise anything
        problem = f"creating it raised {describe_error(error)}; see its setup()"
        raise ConfigError(file, key, problem) from None


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


def inspect_agent(config: SwarmConfig, settings: AgentSettings) -> ClassTraits | None:
    """Try an agent that is to be added to the swarm of `config`; the traits of its class, None for a command.

    Raises:
        ConfigError: as `check_agents`.
    """
    if settings.spec.command:
        _check_command(config.file, settings.spec)
        return None
    return inspect_classes(config, [settings.spec])[settings.spec.name]


def inspect_users_classes(config: SwarmConfig) -> dict[str, ClassTraits]:
    """As `inspect_classes`, of all agents of `config` whose classes are not ours."""
    return inspect_classes(config, [settings.spec for settings in config.agents if is_users(settings.spec)])


def inspect_classes(config: SwarmConfig, specs: list[AgentSpec]) -> dict[str, ClassTraits]:
    """Import the classes of `specs` and create their agents in another process; agent -> traits of its class.

    Raises:
        ConfigError: naming the agent's key and what is wrong, also if it did not end in time.
    """
    if not specs:
        return {}
    traits: dict[str, ClassTraits] = {}
    ours, theirs = os.pipe()
    with contextlib.ExitStack() as stack:
        reading = stack.enter_context(os.fdopen(ours, "rb", buffering=0))
        process = subprocess.Popen(
            module_command(__name__, str(theirs)),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs,),
            start_new_session=True,
            preexec_fn=functools.partial(die_with_parent, os.getpid()),  # noqa: PLW1509 - no threads yet
        )
        stack.callback(_end, process)
        os.close(theirs)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(orjson.dumps({"file": config.file, "specs": specs}))
        step: _Line | None = None
        try:
            for line in _lines(reading, config.watchdog.start_timeout_s):
                if line.problem:
                    raise ConfigError(config.file, line.key, line.problem)
                if line.traits is not None:
                    traits[line.agent] = line.traits
                elif not line.agent:
                    return traits
                else:
                    step = line
        except TimeoutError:
            timeout_s = START_S if step is None else config.watchdog.start_timeout_s
            problem = (
                f"did not come to an end within {timeout_s:g} s; raise [watchdog] start_timeout_s if it needs longer; "
                "it must not wait for a network or a person"
            )
        else:
            problem = f"ended its process (exit code {process.wait()})"
        if step is None:
            raise ConfigError(config.file, "agents", f"starting Python {problem}")
        raise ConfigError(config.file, f"agents.{step.agent}.class", f"{step.doing} {problem}")


def traits_environment(config: ResolvedSwarm) -> dict[str, str]:
    """What the watchdog needs to know of the users' classes, so that it does not import them once more."""
    found = {
        settings.spec.name: config.traits[settings.spec.name] for settings in config.agents if is_users(settings.spec)
    }
    return {TRAITS_VARIABLE: orjson.dumps(found).decode()} if found else {}


def read_traits(environment: Mapping[str, str]) -> dict[str, ClassTraits]:
    """The inverse of `traits_environment`; empty where `up` has not set it."""
    text = environment.get(TRAITS_VARIABLE)
    return {} if text is None else msgspec.json.decode(text, type=dict[str, ClassTraits])


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the other process, and what it has started."""
    started: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    with contextlib.suppress(ProcessLookupError):  # if it has ended by itself, what it had started is not its child
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _lines(reading: object, step_s: float) -> Iterator[_Line]:
    """Lines as they come.

    Raises:
        TimeoutError: the first one took longer than START_S, or a later one than `step_s`.
    """
    fd = reading.fileno()  # type: ignore[attr-defined]
    rest, timeout_s = b"", START_S
    while True:
        if not select.select([fd], [], [], timeout_s)[0]:
            raise TimeoutError
        timeout_s = step_s
        data = os.read(fd, 65536)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield msgspec.json.decode(line, type=_Line)


def _run_inspection(fd: int) -> None:
    """The other process: create each agent, and write each step before it, and the result."""

    def write(line: _Line) -> None:
        data = orjson.dumps(line) + b"\n"
        while data:
            data = data[os.write(fd, data) :]

    task: dict[str, Any] = orjson.loads(sys.stdin.buffer.read())
    config = SwarmConfig(file=task["file"], swarm="", max_agents=0, sandboxes=(), agents=())
    for spec in msgspec.convert(task["specs"], list[AgentSpec]):
        try:
            write(_Line(agent=spec.name, doing=f"importing {spec.class_path.rpartition(':')[0]}"))
            traits = config.inspect_class(spec)
            write(_Line(agent=spec.name, doing="creating it (its setup())"))
            _create(config.file, spec)
        except ConfigError as error:
            write(_Line(key=error.key, problem=error.problem))
            return
        write(_Line(agent=spec.name, traits=traits))
    write(_Line())


if __name__ == "__main__":
    _run_inspection(int(sys.argv[1]))
    while True:  # the other process ends this one, with its children: at an end of its own it would lose them
        signal.pause()
