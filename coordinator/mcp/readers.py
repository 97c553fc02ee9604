"""The tools that answer at once. Each calls the functions that its command calls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

from bus.interface import StoredMessage
from bus.messages.headers import STORED_AT
from bus.messages.subjects import Subjects, escape_topic
from bus.mirror.reader import MirrorFile
from bus.nats.bus import NatsBus
from bus.nats.streams import MEMORY_TTL_S
from bus.utils.json_text import MAX_SHOWN_DEPTH, parse_json
from coordinator.config.convert import similar
from coordinator.dashboard.mirror_source import MirrorSource
from coordinator.doctor.runner import diagnose
from coordinator.explain.explainer import explain
from coordinator.explain.file_source import FileSource
from coordinator.explain.models import Explanation
from coordinator.explain.selection import make_selector, named_symbols, select
from coordinator.explain.sources import BusSource, Filter, MessageSource
from coordinator.mcp.answers import (
    AgentReport,
    Answer,
    DecisionList,
    MemoryEntry,
    MemoryList,
    Reading,
    SandboxList,
    ToolFailed,
)
from coordinator.mcp.arguments import (
    DecisionsArguments,
    ExplainArguments,
    HistoryArguments,
    MemoryArguments,
    NoArguments,
)
from coordinator.mcp.swarm import ServedSwarm, Source, T, read
from coordinator.monitor.history import History, HistoryEntry, entry_of, read_history
from coordinator.monitor.models import Status
from coordinator.monitor.run_files import RunFiles
from coordinator.monitor.status import collect_status
from coordinator.reporting.findings import Diagnosis

END = 1 << 62
"""Beyond every stream sequence."""


async def read_status(swarm: ServedSwarm, _: NoArguments) -> Answer[Status]:
    """The status by the bus, else what the mirror's file has of it."""

    async def from_bus(bus: NatsBus) -> Status:
        return await collect_status(bus, files=RunFiles(swarm.run(), swarm.state_dir))

    async def from_file(_: MirrorFile) -> Status:
        source = await asyncio.to_thread(MirrorSource, swarm.mirror)
        try:
            status = source.status()
        finally:
            source.close()
        if status is None:
            raise ToolFailed(f"{swarm.mirror}: it holds nothing to make a status of; expected the file of a mirror")
        return status

    return await read(swarm, "auto", ("status",), from_bus, from_file)


async def read_sandboxes(swarm: ServedSwarm, arguments: NoArguments) -> Answer[SandboxList]:
    """The sandboxes of the status."""
    found = await read_status(swarm, arguments)
    status = found.result
    return Answer(read=found.read, result=SandboxList(sandboxes=status.sandboxes, provider=status.provider))


async def read_agent(swarm: ServedSwarm, name: str) -> Answer[AgentReport]:
    """One agent of the status, with its memory.

    Raises:
        ToolFailed: there is no such agent.
    """
    found = await read_status(swarm, NoArguments())
    agents = {agent.name: agent for agent in found.result.agents}
    if name not in agents:
        expected = f"expected one of: {', '.join(agents)}" if agents else "there is no agent"
        raise ToolFailed(f"swarm://agents/{name}: no such agent{similar(name, agents)}; {expected}")
    memory = await read_memory(swarm, MemoryArguments(prefix=Subjects(found.result.swarm).memory_key(name, "")))
    return Answer(read=found.read, result=AgentReport(agent=agents[name], memory=memory.result.entries))


async def read_decisions(swarm: ServedSwarm, arguments: DecisionsArguments) -> Answer[DecisionList]:
    """Stored decisions."""
    if arguments.decision is not None and arguments.symbol is not None:
        raise ToolFailed("decisions: arguments decision, symbol: expected one of the two; leave one out")

    async def work(source: MessageSource) -> DecisionList:
        if arguments.decision is not None:
            found = [(await select(source, make_selector(arguments.decision, None, None))).stored]
        else:
            topic = None if arguments.symbol is None else escape_topic(arguments.symbol)
            found = await source.read_before([Filter("decision", topic)], END, arguments.limit)
        if arguments.symbol is not None and not found:
            raise ToolFailed(
                f"decisions: argument symbol: there is no decision on {arguments.symbol!r}; expected one of "
                f"{await named_symbols(source)}"
            )
        return DecisionList(entries=[_entry(stored) for stored in found])

    return await _read_messages(swarm, arguments.source, (), work)


async def read_explanation(swarm: ServedSwarm, arguments: ExplainArguments) -> Answer[Explanation]:
    """A decision computed again."""
    if arguments.decision is None and arguments.symbol is None and arguments.round is None:
        raise ToolFailed(
            "explain: argument decision: expected a decision_id, a sequence or latest, or both symbol and round"
        )
    selector = make_selector(arguments.decision, arguments.symbol, arguments.round)
    words = (
        ("explain", arguments.decision)
        if arguments.decision is not None
        else ("explain", "--round", str(arguments.round), "--symbol", str(arguments.symbol))
    )
    return await _read_messages(swarm, arguments.source, words, lambda source: explain(source, selector))


async def _read_messages(
    swarm: ServedSwarm, source: Source, words: tuple[str, ...], work: Callable[[MessageSource], Awaitable[T]]
) -> Answer[T]:
    return await read(
        swarm,
        source,
        words,
        lambda bus: work(BusSource(bus)),
        lambda file: work(FileSource(file)),
    )


def _entry(stored: StoredMessage) -> HistoryEntry:
    agent = stored.subject.rpartition(".")[2]
    headers = {name: value for name, value in stored.headers.items() if name != STORED_AT}  # the bus adds it
    return entry_of(stored.sequence, stored.stored_ns, stored.subject, agent, headers, stored.data, intact=True)


async def read_kind(swarm: ServedSwarm, arguments: HistoryArguments) -> Answer[History]:
    """The newest messages of a kind in the mirror's file."""
    if not swarm.mirror.exists():
        raise ToolFailed(
            f"history: there is no mirror's file at {swarm.mirror}; start the swarm with `signalmesh up`, or name a "
            "file with `signalmesh mcp --file`"
        )

    def work() -> Answer[History]:
        with MirrorFile(swarm.mirror) as file:
            sequence = file.bounds()[1]
        result = read_history(swarm.mirror, arguments.kind, arguments.since, arguments.limit)
        words = ["history", arguments.kind, "--limit", str(arguments.limit)]
        words += [] if arguments.since is None else ["--since", arguments.since]
        return Answer(
            read=Reading(
                source="mirror", file=str(swarm.mirror), stream_sequence=sequence,
                command=swarm.command(*words, named_swarm=False),
            ),
            result=result,
        )  # fmt: skip

    return await asyncio.to_thread(work)


async def read_memory(swarm: ServedSwarm, arguments: MemoryArguments) -> Answer[MemoryList]:
    """Entries of the memory bucket."""

    async def from_bus(bus: NatsBus) -> MemoryList:
        bucket = bus.subjects.memory_bucket
        values = await bus.kv_all(bucket)
        found = {key: _memory(key, entry.revision, entry.value) for key, entry in values.items()}
        return _chosen(arguments, bucket, found)

    async def from_file(file: MirrorFile) -> MemoryList:
        bucket = file.subjects.memory_bucket
        found = {}
        for key, value in (await asyncio.to_thread(file.values, bucket)).items():
            row = value.row
            if value.intact and row.operation == "PUT":
                found[key] = _memory(key, row.revision, row.value, datetime.fromtimestamp(row.stored_ns / 1e9, UTC))
        return _chosen(arguments, bucket, found)

    return await read(swarm, arguments.source, (), from_bus, from_file)


def _memory(key: str, revision: int, data: bytes, stored_at: datetime | None = None) -> MemoryEntry:
    try:
        value = parse_json(data, MAX_SHOWN_DEPTH)
    except ValueError:
        return MemoryEntry(key=key, revision=revision, malformed=data.decode(errors="replace"), stored_at=stored_at)
    return MemoryEntry(key=key, revision=revision, value=value, stored_at=stored_at)


def _chosen(arguments: MemoryArguments, bucket: str, found: dict[str, MemoryEntry]) -> MemoryList:
    if arguments.key is not None:
        if arguments.key not in found:
            expected = f"expected one of: {', '.join(sorted(found))}" if found else "the bucket is empty"
            raise ToolFailed(
                f"memory: argument key: there is no {arguments.key!r}{similar(arguments.key, found)}; {expected}"
            )
        found = {arguments.key: found[arguments.key]}
    entries = [found[key] for key in sorted(found) if key.startswith(arguments.prefix)]
    return MemoryList(bucket=bucket, ttl_s=MEMORY_TTL_S, entries=entries)


async def read_diagnosis(swarm: ServedSwarm, _: NoArguments) -> Answer[Diagnosis]:
    """The checks of `doctor`."""
    result = await diagnose(swarm.nats, swarm.state_dir, swarm.config, Path.cwd())
    command = swarm.command("doctor", named_swarm=False)
    return Answer(read=Reading(source="machine", nats=result.nats, command=command), result=result)
