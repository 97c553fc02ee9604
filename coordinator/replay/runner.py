"""`signalmesh replay`: runs the recorded stream through the same agent classes and compares every output.

One pass in stream order: each message goes to the agents that listen to it, and each recorded output is compared with
the output of its agent in the replay. So memory does not grow with the stream: only outputs without their counterpart
are kept.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

from agents.runtime.process import make_agent
from agents.runtime.replay import Mismatch, Replayed
from agents.spec import AgentSpec
from bus.durable.snapshots import Snapshot, first_snapshot
from bus.durable.stream_scan import is_kept, kept_from, scan
from bus.errors import MessageError
from bus.interface import EVERYTHING, Bus, StoredMessage
from bus.messages import Lifecycle, VotingConfig, decode
from bus.messages import headers as h
from bus.messages.subjects import WATCHDOG, Subjects
from bus.mirror.reader import MirrorFile
from coordinator.audit.mirror_checks import stored_of
from coordinator.audit.models import Hole
from coordinator.audit.runner import Progress, report_progress
from coordinator.audit.stream_checks import MAX_HOLES
from coordinator.config.changes import NO_CHANGES, AddedAgent, Changes, apply_changes, known_traits
from coordinator.config.loader import to_config_message
from coordinator.config.overrides import Overrides, apply_overrides
from coordinator.config.settings import SwarmConfig
from coordinator.replay.models import Difference, Replay, ReplayedAgent, explain
from coordinator.supervisor.config_publisher import changes_in

SETTINGS = (
    "quorum", "buy_at", "sell_at", "round_timeout_ms", "position_cap", "vol_target", "drawdown_max", "cvar_max",
)  # fmt: skip


RECENT = 8192
"""Newest messages that are kept: an agent reads on from a little before the VotingConfig that adds it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRange:
    """Which recorded outputs are compared, by stream sequence; the state is always built from the beginning."""

    first: int = 1
    last: int | None = None


@dataclass(slots=True)
class Reported:
    """What an agent has reported of its inputs: those that it skipped, and the last one that it was beyond."""

    skipped: set[int] = field(default_factory=set)
    handled: int = 0


@dataclass(slots=True)
class Recording:
    """A recorded stream, read from the bus or from a file."""

    source: str
    subjects: Subjects
    first: int
    last: int
    reported: dict[str, Reported]
    """By agent."""
    messages: AsyncGenerator[StoredMessage, None]


async def replay_bus(bus: Bus, config: SwarmConfig, span: ReplayRange, progress: Progress | None = None) -> Replay:
    """Replay the stream of `bus` up to its current end.

    Raises:
        ConfigError, UsageError: an agent of the configuration cannot be created.
        BusError: the bus does not answer.
    """
    subjects = bus.subjects
    bounds = await bus.bounds()
    last = bounds.last if span.last is None else min(span.last, bounds.last)
    reported = reported_by_agents(subjects, await bus.read_back((f"{subjects.ns}.lifecycle.>",), bounds.first))
    messages = scan(bus, EVERYTHING, bounds.first, last)
    recording = Recording(bus.url, subjects, bounds.first, last, reported, messages)
    replay = await _replay(recording, config, span, progress)
    return _judged(replay, await kept_from(bus))


async def replay_file(path: Path, config: SwarmConfig, span: ReplayRange, progress: Progress | None = None) -> Replay:
    """Replay a mirror's file, with the bus up or down.

    Raises:
        ConfigError, UsageError: an agent of the configuration cannot be created.
        MirrorUnusable, MirrorDamaged: the file cannot be read.
    """
    with MirrorFile(path) as file:
        first, last = file.bounds()
        last = last if span.last is None else min(span.last, last)
        reported = reported_by_agents(file.subjects, (stored_of(found) for found in file.messages(kind="lifecycle")))

        damaged = 0

        async def rows() -> AsyncGenerator[StoredMessage, None]:
            nonlocal damaged
            for found in file.messages(last=last):
                damaged += not found.intact
                yield stored_of(found)

        recording = Recording(str(path), file.subjects, max(1, first), last, reported, rows())
        replay = await _replay(recording, config, span, progress)
        if damaged:
            rows_of = "1 row" if damaged == 1 else f"{damaged:,} rows"
            replay.notes.append(f"{rows_of} of the file were changed: `signalmesh audit --file {path}` lists them")
        kept = (found.row.sequence for found in file.messages() if not is_kept(found.row.headers))
        return _judged(replay, next(kept, last + 1))


def _judged(replay: Replay, first: int) -> Replay:
    """The replay with its verdict on missing messages, if by now retention has removed what was before `first`."""
    for hole in replay.missing:
        hole.explained = hole.last < first
    replay.ok = replay.ok and all(hole.explained for hole in replay.missing)
    return replay


def reported_by_agents(subjects: Subjects, messages: Iterable[StoredMessage]) -> dict[str, Reported]:
    """What the agents have reported of their inputs, by agent."""
    found: dict[str, Reported] = {}
    for stored in messages:
        try:
            address = subjects.parse(stored.subject)
            message = decode(address, stored.subject, stored.data)
        except MessageError:
            continue
        if not isinstance(message, Lifecycle) or address.agent != message.agent:
            continue
        agent = found.setdefault(message.agent, Reported())
        skipped, cursor = message.detail.get("sequence"), message.detail.get("cursor")
        if message.event == "skipped" and isinstance(skipped, int):
            agent.skipped.add(skipped)
            agent.handled = max(agent.handled, skipped)
        if isinstance(cursor, int):
            agent.handled = max(agent.handled, cursor)
    return found


async def _replay(recording: Recording, config: SwarmConfig, span: ReplayRange, progress: Progress | None) -> Replay:
    started_at = time.monotonic()
    replayer = Replayer(recording, config, span)
    try:
        async with aclosing(recording.messages) as messages:
            await replayer.run(messages, progress)
    finally:
        await replayer.close()
    return replayer.build_report(time.monotonic() - started_at)


def _kind_of(stored: StoredMessage) -> tuple[str, str]:
    """The kind of a message, and what follows it in the subject."""
    kind, _, rest = stored.subject.partition(".")[2].partition(".")
    return kind, rest


class Replayer:
    """All agents of `config` over one recording."""

    def __init__(self, recording: Recording, config: SwarmConfig, span: ReplayRange) -> None:
        self._recording, self._span = recording, span
        self._base = config
        self._config = apply_overrides(config, Overrides(speed=0)).resolve()
        self._changes = NO_CHANGES
        """As the newest VotingConfig has them."""
        self._recent: deque[StoredMessage] = deque(maxlen=RECENT)
        self._closed: list[tuple[str, Replayed]] = []
        """Agents whose state was deleted."""
        self._subjects = recording.subjects
        self._agents: dict[str, Replayed] = {}
        self._reports: dict[str, ReplayedAgent] = {}
        self._listening: dict[str, list[Replayed]] = {}
        for settings in self._config.agents:
            name = settings.spec.name
            self._reports[name] = ReplayedAgent(kind=settings.spec.kind)
            if settings.external:
                self._reports[name].left_out = "an external program"
                continue
            self._begin(settings.spec)
        self._next = 1
        self._missing: list[Hole] = []
        self._messages = 0
        self._differences: dict[str, Difference] = {}
        self._unknown_writers: dict[str, int] = {}
        self._hidden = 0
        self._settings_differ = False
        self._notes: list[str] = []

    def _begin(self, spec: AgentSpec, first: Snapshot | None = None) -> Replayed:
        """Replay an agent from `first` on."""
        agent = make_agent(spec)
        reported = self._recording.reported.get(spec.name, Reported())
        replayed = Replayed(agent, self._subjects, reported.skipped, reported.handled, first)
        self._agents[spec.name] = replayed
        for kind in dict.fromkeys((*agent.listens, "timer")):
            self._listening.setdefault(kind, []).append(replayed)
        return replayed

    async def run(self, messages: AsyncIterator[StoredMessage], progress: Progress | None) -> None:
        """Replay all messages, in their order."""
        last = self._recording.last
        async for stored in messages:
            self._count(stored.sequence)
            report_progress(progress, stored.sequence, last)
            if self._subjects.is_hidden(stored.subject):
                self._hidden += 1
                continue
            kind, rest = _kind_of(stored)
            self._recent.append(stored)
            if h.OUTPUT in stored.headers:
                await self._compare(rest.rpartition(".")[2], stored)
            elif kind == "config":
                await self._on_config(stored)
            for replayed in self._listening.get(kind, ()):
                if kind != "timer" or rest.endswith(f".{replayed.name}"):
                    await self._take(replayed, stored)
        if self._messages and self._next <= last:
            self._on_gap(self._next, last)
        for name, replayed in self._agents.items():
            if not replayed.left_out and (mismatches := await replayed.compare_rest()):
                self._record(name, mismatches)

    async def _take(self, replayed: Replayed, stored: StoredMessage) -> None:
        if not replayed.left_out and (mismatch := await replayed.take(stored)) is not None:
            self._record(replayed.name, [mismatch])

    async def _follow(self, changes: Changes) -> None:
        """Have the agents come and go as in the run; one whose state was kept goes on as if it had never left."""
        before, self._changes = self._changes, changes
        for name, removed in changes.removed.items():
            if removed.forget and name in self._agents and before.removed.get(name) != removed:
                await self._close(name)
        new = [name for name, added in changes.agents.items() if name not in before.agents and not added.continues]
        new += [name for name in changes.agents if name not in self._agents and name not in new]
        if not new:
            return
        config = apply_overrides(apply_changes(self._base, changes), Overrides(speed=0))
        config = config.resolve(known_traits(self._config, changes))
        for name in new:
            await self._add(config.agent(name).spec, changes.agents[name])

    async def _close(self, name: str) -> None:
        replayed = self._agents.pop(name)
        if not replayed.left_out and (mismatches := await replayed.compare_rest()):
            self._record(name, mismatches)
        for listening in self._listening.values():
            if replayed in listening:
                listening.remove(replayed)
        self._closed.append((name, replayed))

    async def _add(self, spec: AgentSpec, added: AddedAgent) -> None:
        """Begin an agent that was added: it has read what was stored from after `added.after` on."""
        if spec.name in self._agents:
            await self._close(spec.name)
        self._reports.setdefault(spec.name, ReplayedAgent(kind=spec.kind))
        replayed = self._begin(spec, first_snapshot(added.after, added.outputs))
        if added.continues:
            replayed.left_out = "its state is from before the recording"
        elif self._recent[0].sequence > added.after + 1:
            replayed.left_out = f"message {added.after + 1}, the first that it read, is not among those at hand"
        for stored in [*self._recent][:-1]:
            kind, rest = _kind_of(stored)
            if replayed in self._listening.get(kind, ()) and (kind != "timer" or rest.endswith(f".{spec.name}")):
                await self._take(replayed, stored)

    def _count(self, sequence: int) -> None:
        self._messages += 1
        if sequence != self._next:
            self._on_gap(self._next, sequence - 1)
        self._next = sequence + 1

    def _on_gap(self, first: int, last: int) -> None:
        """A range of messages is missing: the state of agents that may have had inputs in it cannot be rebuilt."""
        if first > 1 and len(self._missing) < MAX_HOLES:
            self._missing.append(Hole(first=first, last=last, explained=False))
        for replayed in self._agents.values():
            replayed.left_out = replayed.left_out or (
                f"from message {first} on: messages {first} to {last} are missing, and its state needs all of them; "
                "a mirror may have them (--file)"
            )

    async def _compare(self, name: str, stored: StoredMessage) -> None:
        replayed = self._agents.get(name)
        if replayed is None:
            self._unknown_writers[name] = self._unknown_writers.get(name, 0) + 1
            return
        if replayed.left_out:
            if (failure := replayed.confirm_failure(stored)) is not None:
                self._record(name, [failure])
            return
        mismatches = await replayed.compare(stored)
        if replayed.source_left_out and h.CAUSE not in stored.headers:
            return
        if stored.sequence >= self._span.first:
            self._reports[name].compared += 1
            if mismatches:
                self._record(name, mismatches)

    def _record(self, name: str, mismatches: list[Mismatch]) -> None:
        self._reports[name].differing += len(mismatches)
        if name not in self._differences:
            self._differences[name] = explain(name, mismatches[0])

    async def _on_config(self, stored: StoredMessage) -> None:
        try:
            message = stored.decode(self._subjects)
        except MessageError:
            return
        if isinstance(message, VotingConfig) and message.source == WATCHDOG:
            await self._follow(changes_in(message))
        if isinstance(message, VotingConfig) and not self._settings_differ:
            ours = to_config_message(self._config, {})
            if differing := [name for name in SETTINGS if getattr(message, name) != getattr(ours, name)]:
                self._settings_differ = True
                values = ", ".join(
                    f"{name} {getattr(message, name)} instead of {getattr(ours, name)}" for name in differing
                )
                self._notes.append(
                    f"the VotingConfig at message {stored.sequence} has {values} of {self._config.file}: "
                    "the recorded one was used"
                )

    async def close(self) -> None:
        """Close the agents."""
        for replayed in (*self._agents.values(), *(replayed for _, replayed in self._closed)):
            await replayed.close()

    def build_report(self, duration_s: float) -> Replay:
        """The report of the replay."""
        recording, reports = self._recording, self._reports
        for name, replayed in self._closed:
            reports[name].inputs += replayed.input_processor.inputs
        for name, replayed in self._agents.items():
            report = reports[name]
            report.inputs += replayed.input_processor.inputs
            report.waiting = replayed.waiting
            report.left_out = replayed.left_out or None
            if replayed.source_left_out and not report.left_out:
                report.left_out = f"its own events, {replayed.source_left_out}"
        for name, count in sorted(self._unknown_writers.items()):
            self._notes.append(f"{name} is not in {self._config.file}: {count} outputs of it are not compared")
        inputs = sum(report.inputs for report in reports.values())
        compared = sum(report.compared for report in reports.values())
        if self._hidden:
            self._notes.append(
                f"{self._hidden} messages have subjects that no agent could read: `signalmesh audit` lists them"
            )
        if not compared:
            self._notes.append("nothing could be compared")
        return Replay(
            ok=compared > 0 and not self._differences,
            swarm=self._subjects.ns,
            source=recording.source,
            config=self._config.file,
            first=recording.first,
            last=recording.last,
            messages=self._messages,
            inputs=inputs,
            compared=compared,
            differing=sum(report.differing for report in reports.values()),
            agents=reports,
            differences=list(self._differences.values()),
            missing=self._missing,
            notes=self._notes,
            duration_s=round(duration_s, 3),
            inputs_per_s=round(inputs / duration_s, 1) if duration_s else 0.0,
        )
