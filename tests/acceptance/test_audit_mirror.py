"""`signalmesh audit` and a mirror's file: beside the stream row by row, and in its place with the bus down."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from bus.errors import MirrorDamaged, MirrorUnusable
from bus.nats.bus import NatsBus
from coordinator.audit.runner import audit_bus, audit_file
from tests.acceptance.conftest import LENGTH
from tests.acceptance.swarm import AGENTS, run_command
from tests.support.copying import Recorded, copied
from tests.support.mirror_files import EVENTS, damage, mirrored

pytestmark = pytest.mark.slow

CHECKSUM = "checksum = zeroblob(8)"


async def created(bus: NatsBus) -> str:
    return str((await bus.api(f"STREAM.INFO.{EVENTS}"))["created"])


async def test_a_file_is_audited_without_a_bus(tmp_path: Path, good: Recorded):
    path = await mirrored(tmp_path / "mirror.sqlite", good)
    result = await run_command(tmp_path, "audit", "--file", str(path))
    as_json = await run_command(tmp_path, "audit", "--file", str(path), "--json")
    assert result.code == as_json.code == 0, result.out + result.err
    assert "all checks that ran passed" in result.out
    found = as_json.json
    assert found["stream"]["messages"] == found["mirror"]["compared"] == len(good.messages)
    assert set(found["agents"]) == set(found["snapshots"]) == set(AGENTS)
    assert found["rounds"]["decided"] == LENGTH


async def test_no_such_file(tmp_path: Path):
    with pytest.raises(MirrorUnusable):
        audit_file(tmp_path / "mirror.sqlite")
    assert (await run_command(tmp_path, "audit", "--file", "mirror.sqlite")).code == 2


async def test_a_file_of_the_later_part(tmp_path: Path, good: Recorded):
    first = good.find("swarm.decision.", Mesh_Output=100).sequence
    audit = audit_file(await mirrored(tmp_path / "mirror.sqlite", good, first=first))
    assert audit.problems == []
    assert audit.agents["coordinator"].first == 100
    assert any(f"starts at message {first}" in note for note in audit.notes)


async def test_snapshots_newer_than_the_files_last_message_are_left_out(tmp_path: Path, good: Recorded):
    audit = audit_file(await mirrored(tmp_path / "mirror.sqlite", good, last=len(good.messages) // 2))
    assert audit.problems == []
    assert audit.snapshots == {}


@pytest.mark.parametrize("what", ["payload = payload || x'20'", "headers = headers || x'20'", CHECKSUM])
async def test_a_changed_row(tmp_path: Path, good: Recorded, what: str):
    path = await mirrored(tmp_path / "mirror.sqlite", good)
    changed = good.find("swarm.decision.", Mesh_Output=50).sequence
    damage(path, f"UPDATE messages SET {what} WHERE sequence = ?", changed)
    audit = audit_file(path)
    [problem] = audit.problems
    assert (problem.check, problem.sequences) == ("mirror", [changed])
    assert audit.mirror.damaged == 1


async def test_a_removed_row(tmp_path: Path, good: Recorded):
    path = await mirrored(tmp_path / "mirror.sqlite", good)
    removed = good.find("swarm.decision.", Mesh_Output=50).sequence
    damage(path, "DELETE FROM messages WHERE sequence = ?", removed)
    audit = audit_file(path)
    assert audit.problems[0].check == "holes"
    assert audit.problems[0].sequences == [removed, removed]
    assert audit.agents["coordinator"].gaps == 1


@pytest.mark.parametrize("last", [500, 0])
async def test_removed_newest_rows(tmp_path: Path, good: Recorded, last: int):
    """The file's own cursor shows that they were there."""
    path = await mirrored(tmp_path / "mirror.sqlite", good)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM messages WHERE sequence > ?", (last,))
    audit = audit_file(path)
    assert [problem.sequences for problem in audit.problems if problem.check == "holes"] == [
        [last + 1, len(good.messages)]
    ]


async def test_removed_oldest_rows(tmp_path: Path, good: Recorded):
    path = await mirrored(tmp_path / "mirror.sqlite", good)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM messages WHERE sequence <= 300")
    assert [problem.sequences for problem in audit_file(path).problems if problem.check == "holes"] == [[1, 300]]


def lists(path: Path, *gaps: tuple[int, int, str], recorded_ns: int = 0) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        for first, last, reason in gaps:
            db.execute("INSERT INTO gaps VALUES (?, ?, ?, ?, ?)", (EVENTS, first, last, reason, recorded_ns))


def gap_problems(path: Path, check: str = "gaps") -> list[list[int]]:
    return [problem.sequences for problem in audit_file(path).problems if problem.check == check]


def remove(path: Path, first: int, last: int) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM messages WHERE sequence BETWEEN ? AND ?", (first, last))


async def test_a_listed_gap_that_is_missing_is_no_problem(tmp_path: Path, good: Recorded):
    path = await mirrored(tmp_path / "mirror.sqlite", good)
    remove(path, 100, 120)
    lists(path, (100, 110, "retention"), (111, 120, "lost"))
    audit = audit_file(path)
    assert [problem for problem in audit.problems if problem.check in ("gaps", "holes", "mirror")] == []
    assert any("21 messages are missing" in note for note in audit.notes)


@pytest.mark.parametrize("reason", ["before", "retention", "expired", "pruned", "lost"])
@pytest.mark.parametrize(("first", "last"), [(1, 300), (100, 120), (500, 500)])
async def test_a_listed_gap_that_is_not_missing(tmp_path: Path, good: Recorded, reason: str, first: int, last: int):
    path = await mirrored(tmp_path / "mirror.sqlite", good)
    lists(path, (first, last, reason))
    audit = audit_file(path)
    [problem] = audit.problems
    assert (problem.check, problem.sequences) == ("gaps", [first, last])
    assert f"holds {last - first + 1} of them, from message {first} on" in problem.text
    assert audit.mirror.compared == audit.stream.messages == len(good.messages), "nothing is left unchecked"
    done = await run_command(tmp_path, "audit", "--file", str(path))
    assert done.code == 1
    assert f"gaps: the file lists messages {first} to {last} as missing" in done.out


@pytest.mark.parametrize(
    ("listed", "unlisted"),
    [((100, 110), [[111, 120]]), ((105, 120), [[100, 104]]), ((105, 110), [[100, 104], [111, 120]])],
)
async def test_a_gap_of_which_a_part_is_not_listed(
    tmp_path: Path, good: Recorded, listed: tuple[int, int], unlisted: list[list[int]]
):
    path = await mirrored(tmp_path / "mirror.sqlite", good)
    remove(path, 100, 120)
    lists(path, (*listed, "retention"))
    assert gap_problems(path) == []
    assert gap_problems(path, "holes") == unlisted


@pytest.mark.parametrize("other", [(100, 120), (110, 115), (90, 100), (120, 130)])
async def test_gaps_that_overlap(tmp_path: Path, good: Recorded, other: tuple[int, int]):
    path = await mirrored(tmp_path / "mirror.sqlite", good)
    remove(path, 90, 130)
    lists(path, (100, 120, "retention"), (*other, "lost"))
    [problem] = [problem for problem in audit_file(path).problems if problem.check == "gaps"]
    assert "are listed as well" in problem.text


async def test_what_pruning_left_of_older_gaps_is_no_overlap(tmp_path: Path, good: Recorded):
    """Release 0.1.0 recorded what it removed over the gaps that were there."""
    path = await mirrored(tmp_path / "mirror.sqlite", good)
    remove(path, 1, 130)
    lists(path, (50, 60, "retention"), (110, 130, "lost"), recorded_ns=1)
    lists(path, (1, 120, "pruned"), recorded_ns=2)
    assert gap_problems(path) == gap_problems(path, "holes") == []


@pytest.mark.parametrize("beyond", [(-5, -1), (0, 0), (10**6, 10**6 + 5), (10**6, 2**63 - 1), (7, 3)])
async def test_a_gap_outside_of_what_is_mirrored(tmp_path: Path, good: Recorded, beyond: tuple[int, int]):
    path = await mirrored(tmp_path / "mirror.sqlite", good)
    lists(path, (*beyond, "retention"))
    [problem] = audit_file(path).problems
    assert (problem.check, problem.sequences) == ("gaps", list(beyond))
    assert f"it mirrors messages 1 to {len(good.messages)}" in problem.text


async def test_the_list_of_the_mirror_beside_the_stream(tmp_path: Path, good: Recorded):
    async with copied(tmp_path, good) as bus:
        path = await mirrored(tmp_path / "mirror.sqlite", good, created=await created(bus))
        lists(path, (100, 120, "pruned"))
        audit = await audit_bus(bus, path)
    [problem] = audit.problems
    assert (problem.check, problem.sequences) == ("gaps", [100, 120])


@pytest.mark.parametrize("column", ["kind", "topic", "agent"])
async def test_a_column_that_does_not_fit_its_subject(tmp_path: Path, good: Recorded, column: str):
    path = await mirrored(tmp_path / "mirror.sqlite", good)
    changed = good.find("swarm.decision.", Mesh_Output=50).sequence
    damage(path, f"UPDATE messages SET {column} = 'alert' WHERE sequence = ?", changed)
    assert [problem.sequences for problem in audit_file(path).problems if problem.check == "mirror"] == [[changed]]


async def test_a_row_beyond_everything(tmp_path: Path, good: Recorded):
    path = await mirrored(tmp_path / "mirror.sqlite", good)
    largest = 2**63 - 1
    damage(path, "UPDATE messages SET sequence = ? WHERE sequence = ?", largest, len(good.messages))
    audit = audit_file(path)
    assert any(problem.sequences == [largest] for problem in audit.problems)


@pytest.mark.parametrize("sql", ["DROP TABLE kept", "DELETE FROM meta"])
async def test_a_file_without_its_parts(tmp_path: Path, good: Recorded, sql: str):
    path = await mirrored(tmp_path / "mirror.sqlite", good)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute(sql)
    with pytest.raises(MirrorDamaged, match=re.escape(str(path))):
        audit_file(path)


async def test_the_mirror_beside_the_stream(tmp_path: Path, good: Recorded):
    async with copied(tmp_path, good) as bus:
        path = await mirrored(tmp_path / "mirror.sqlite", good, created=await created(bus), last=1000)
        audit = await audit_bus(bus, path)
    assert audit.problems == []
    assert (audit.mirror.cursor, audit.mirror.compared, audit.mirror.missing) == (1000, 1000, 0)


async def test_a_mirror_that_is_ahead_of_the_stream(tmp_path: Path, good: Recorded):
    """As after a server was reset to an older state: what the mirror has beyond it is lost on the bus."""
    older = replace(good, messages=good.messages[:1000], buckets={bucket: {} for bucket in good.buckets})
    async with copied(tmp_path, older) as bus:
        path = await mirrored(tmp_path / "mirror.sqlite", good, created=await created(bus))
        audit = await audit_bus(bus, path)
    [problem] = audit.problems
    assert (problem.check, problem.sequences) == ("mirror", [1000, len(good.messages)])


async def test_rows_that_are_missing_or_differ(tmp_path: Path, good: Recorded):
    async with copied(tmp_path, good) as bus:
        other = good.find("swarm.decision.", Mesh_Output=60)
        wrong = good.with_headers(other.sequence, Mesh_Cause=1)
        path = await mirrored(tmp_path / "mirror.sqlite", wrong, created=await created(bus))
        removed = good.find("swarm.decision.", Mesh_Output=50).sequence
        changed = good.find("swarm.decision.", Mesh_Output=70).sequence
        damage(path, "DELETE FROM messages WHERE sequence = ?", removed)
        damage(path, f"UPDATE messages SET {CHECKSUM} WHERE sequence = ?", changed)
        audit = await audit_bus(bus, path)
    assert {problem.check for problem in audit.problems} == {"mirror"}
    assert sorted(problem.sequences[0] for problem in audit.problems) == sorted([removed, other.sequence, changed])
    assert (audit.mirror.missing, audit.mirror.differing, audit.mirror.damaged) == (1, 1, 1)


async def test_a_changed_value(tmp_path: Path, good: Recorded):
    async with copied(tmp_path, good) as bus:
        path = await mirrored(tmp_path / "mirror.sqlite", good, created=await created(bus))
        value = orjson.dumps({"epoch": 1})
        damage(path, "UPDATE kept SET value = ? WHERE bucket = 'swarm_state' AND key = 'coordinator'", value)
        audit = await audit_bus(bus, path)
    [problem] = audit.problems
    assert problem.check == "mirror"
    assert "coordinator in swarm_state" in problem.text


async def test_a_mirror_of_another_stream_is_not_compared(tmp_path: Path, good: Recorded):
    async with copied(tmp_path, good) as bus:
        path = await mirrored(tmp_path / "mirror.sqlite", good, created="2020-01-01T00:00:00Z")
        audit = await audit_bus(bus, path)
    assert audit.ok
    assert audit.mirror.file is None
    assert any("another stream" in note for note in audit.notes)
