"""Which swarm the tools are about, and how it is read: from its bus, else from the file of its mirror."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from bus.errors import EXIT_UNREACHABLE, MeshError
from bus.mirror.reader import MirrorFile
from bus.nats.bus import NatsBus
from coordinator.mcp.answers import Answer, Reading, ToolFailed
from coordinator.runner.run_record import DEFAULT_STATE_DIR, Run

T = TypeVar("T")
Source = Literal["auto", "bus", "mirror"]
"""Where a tool reads: auto is the bus, and the mirror's file while no bus answers."""


class OnBus(Protocol):
    """Connects to the bus of the swarm, does the work, and closes the connection."""

    async def __call__(self, work: Callable[[NatsBus], Awaitable[T]], /) -> T:
        """The result of `work`; raises MeshError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedSwarm:
    """The options of `signalmesh mcp`. Each call looks for the swarm anew: it may have been started meanwhile."""

    state_dir: Path
    mirror: Path
    nats: str | None
    swarm: str | None
    config: Path | None
    allow_control: bool = False
    on_bus: OnBus
    run: Callable[[], Run | None]
    """The record of the swarm; raises MeshError."""
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ), repr=False)
    """As the server was started: a connection as the operator adds the operator's key to this process's own."""

    def command(self, *words: str, named_swarm: bool = True) -> str:
        """The command line that prints the same; the URL of the bus is left out, for it may hold a password."""
        return shlex.join(["signalmesh", *words, *self.options(named_swarm=named_swarm), "--json"])

    def options(self, *, named_swarm: bool = True) -> list[str]:
        """The options with which a command is about this swarm; the URL of the bus goes by its variable."""
        options = [] if self.state_dir == DEFAULT_STATE_DIR else ["--state-dir", str(self.state_dir)]
        return options + (["--swarm", self.swarm] if self.swarm is not None and named_swarm else [])


def mirror_instead(swarm: ServedSwarm, problem: MeshError) -> str:
    """Why the mirror's file is read; raises ToolFailed if there is none."""
    if not swarm.mirror.exists():
        raise ToolFailed(f"{problem}. There is no mirror's file at {swarm.mirror} either, so nothing can be read")
    return f"the bus was not read: {problem}"


async def read(
    swarm: ServedSwarm,
    source: Source,
    words: Sequence[str],
    from_bus: Callable[[NatsBus], Awaitable[T]],
    from_file: Callable[[MirrorFile], Awaitable[T]],
) -> Answer[T]:
    """The result of reading the bus or the mirror's file; `words` are the command that prints the same, if one does.

    Raises:
        ToolFailed: no bus answers, and there is no mirror's file.
        MeshError: as the two raise it.
    """

    async def on_bus(bus: NatsBus) -> Answer[T]:
        sequence = (await bus.bounds()).last
        result = await from_bus(bus)
        command = swarm.command(*words) if words else None
        reading = Reading(source="bus", nats=bus.url, stream_sequence=sequence, command=command)
        return Answer(read=reading, result=result)

    note = None
    if source != "mirror":
        try:
            return await swarm.on_bus(on_bus)
        except MeshError as problem:
            if source == "bus" or problem.exit_code != EXIT_UNREACHABLE:
                raise
            note = mirror_instead(swarm, problem)
    file = await asyncio.to_thread(MirrorFile, swarm.mirror)
    try:
        sequence = (await asyncio.to_thread(file.bounds))[1]
        result = await from_file(file)
    finally:
        file.close()
    reading = Reading(source="mirror", file=str(swarm.mirror), stream_sequence=sequence, note=note)
    return Answer(read=reading, result=result)
