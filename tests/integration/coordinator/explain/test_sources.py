"""The stream of a real server and a mirror's file give `explain` the same messages."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bus.durable.snapshots import Snapshot
from bus.mirror.reader import MirrorFile
from coordinator.decisions.rounds import round_id
from coordinator.explain.errors import RoundRemoved, RowChanged
from coordinator.explain.explainer import explain, explain_bus, explain_file
from coordinator.explain.file_source import FileSource
from coordinator.explain.models import Explanation
from coordinator.explain.selection import LATEST, Selector
from coordinator.explain.sources import BusSource, Filter, MessageSource
from tests.support.coordinator_rounds import CONFIG, MOMENTUM, NEWS, REVERSION, SYMBOL, VOTERS, tick, timer, vote
from tests.support.copying import Recorded, copied
from tests.support.mirror_files import damage, mirrored
from tests.support.recorded_rounds import RecordedRounds

ROUNDS = 30
TOPIC = "BTC-USD"


def recording() -> RecordedRounds:
    """Rounds of two symbols; the last one misses a voter, whose vote comes later, and got another Config."""
    recorded = RecordedRounds()
    recorded.play([CONFIG])
    for n in range(1, ROUNDS):
        for symbol in (SYMBOL, "ETH/USD"):
            recorded.play([tick(n, 100.0 + n * 7 % 13, symbol=symbol), *(vote(v, n, 0.6, symbol) for v in VOTERS)])
    last = tick(ROUNDS, 104.0)
    recorded.play([last, vote(NEWS, ROUNDS, 0.9), replace(CONFIG, buy_at=0.51), vote(REVERSION, ROUNDS, 0.7)])
    recorded.play([timer(round_id(SYMBOL, "research-1", ROUNDS))])
    recorded.add(replace(vote(MOMENTUM, ROUNDS, 0.1), timestamp=last.timestamp))
    return recorded


async def run_of(recorded: RecordedRounds) -> Recorded:
    snapshot = await recorded.snapshot("coordinator")
    assert isinstance(snapshot, Snapshot)
    buckets = {
        recorded.subjects.state_bucket: {"coordinator": snapshot.encode()},
        recorded.subjects.registry_bucket: {},
    }
    return Recorded(tuple(recorded.messages), buckets)


@asynccontextmanager
async def both_sources(directory: Path) -> AsyncIterator[tuple[RecordedRounds, list[MessageSource]]]:
    recorded = recording()
    run = await run_of(recorded)
    path = await mirrored(directory / "mirror.sqlite", run)
    async with copied(directory / "server", run) as bus:
        with MirrorFile(path) as file:
            yield recorded, [BusSource(bus), FileSource(file)]


def content(found: Explanation) -> dict[str, Any]:
    """An explanation without what differs by source and by clock."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            left_out = ("stored_at", "after_tick_ms", "source", "read", "duration_ms")
            return {name: plain(item) for name, item in value.items() if name not in left_out}
        return [plain(item) for item in value] if isinstance(value, list) else value

    found_plain: dict[str, Any] = plain(dataclasses.asdict(found))
    return found_plain


async def test_every_decision_is_explained_alike_by_memory_bus_and_file(tmp_path: Path) -> None:
    async with both_sources(tmp_path) as (recorded, sources):
        for stored in recorded.decisions:
            selector = Selector(decision=str(stored.sequence))
            expected = await explain(recorded, selector)
            assert expected.same
            for source in sources:
                assert content(await explain(source, selector)) == content(expected)
        for source in sources:
            found = await explain(source, Selector(decision=LATEST))
            assert [voter.status for voter in found.voters] == ["counted", "counted", "late"]
            assert found.tick.stored_at <= found.stored_at
            assert found.after_tick_ms >= 0


async def test_what_is_asked_for_is_what_is_read(tmp_path: Path) -> None:
    async with both_sources(tmp_path) as (recorded, sources):
        last = await recorded.last_sequence()
        votes, ticks = Filter("signal", TOPIC, MOMENTUM), Filter("market", TOPIC)
        for source in sources:
            assert await source.last_sequence() == last
            for filters, first, end, limit in (
                ((votes, ticks), 1, last, None),
                ((votes, ticks), 50, 90, None),
                ((votes, ticks), 50, last, 3),
                ((ticks,), last, last, None),
                ((Filter("sentiment"),), 1, last, None),
                ((Filter("decision"), Filter("config", "swarm", "watchdog")), 0, 20, 100),
            ):
                expected = [stored.sequence for stored in await recorded.read(filters, first, end, limit)]
                assert [stored.sequence for stored in await source.read(filters, first, end, limit)] == expected
            for filters, before, limit in (
                ((votes, ticks), last + 10, 5),
                ((ticks,), 90, 3),
                ((Filter("sentiment"), Filter("config")), 60, 1000),
                ((ticks,), 1, 5),
            ):
                expected = [stored.sequence for stored in await recorded.read_before(filters, before, limit)]
                assert [stored.sequence for stored in await source.read_before(filters, before, limit)] == expected
            for wanted, sequence in ((votes, 1), (ticks, 60), (ticks, last), (Filter("sentiment"), 1)):
                mine, expected_one = (
                    await source.first_from(wanted, sequence),
                    await recorded.first_from(wanted, sequence),
                )
                assert (mine and (mine.sequence, mine.data)) == (
                    expected_one and (expected_one.sequence, expected_one.data)
                )
                newest, expected_one = await source.newest(wanted), await recorded.newest(wanted)
                assert (newest and newest.sequence) == (expected_one and expected_one.sequence)
            assert await source.writers("signal") == await recorded.writers("signal")
            assert await source.snapshot("nobody") is None
            assert await source.missing(1, last) is None


async def test_what_retention_removed_is_named_with_the_other_place_to_look(tmp_path: Path) -> None:
    recorded = recording()
    run = await run_of(recorded)
    gone = tuple(stored.sequence for stored in run.messages[:100] if ".config." not in stored.subject)
    selector = Selector(decision=f"{SYMBOL}:research-1:25")
    async with copied(tmp_path / "server", run, without=gone) as bus:
        source = BusSource(bus)
        assert await source.missing(50, 60) == "messages up to 100 have been removed by retention"
        assert await source.missing(101, 200) is None
        with pytest.raises(RoundRemoved, match=r"removed by retention; a mirror's file may have it \(--file FILE\)$"):
            await explain_bus(bus, selector)
        with pytest.raises(RoundRemoved, match=r"this round is no longer stored: messages up to 100"):
            await explain_bus(bus, Selector(decision=f"{SYMBOL}:research-1:1"))
    path = await mirrored(tmp_path / "mirror.sqlite", run, first=101)
    with pytest.raises(RoundRemoved, match=r"messages 1 to 100 are not all in the file \(stored before the mirror"):
        await explain_file(path, selector)


async def test_a_row_that_was_changed_is_named(tmp_path: Path) -> None:
    recorded = recording()
    path = await mirrored(tmp_path / "mirror.sqlite", await run_of(recorded))
    voted = next(stored for stored in reversed(recorded.messages) if stored.subject.endswith(REVERSION))
    damage(path, "UPDATE messages SET payload = replace(payload, '0.7', '0.8') WHERE sequence = ?", voted.sequence)
    with pytest.raises(RowChanged, match=rf"message {voted.sequence} does not match its checksum.*audit --file"):
        await explain_file(path, Selector(decision=LATEST))
    assert (await explain_file(path, Selector(symbol=SYMBOL, round=ROUNDS - 1))).same
