"""What `signalmesh config` shows, writes and forgets."""

from __future__ import annotations

from pathlib import Path

import pytest

from bus.errors import UsageError
from coordinator.config.changes import (
    CHANGES_FILE,
    AddedAgent,
    Changes,
    Move,
    RemovedAgent,
    RemovedSandbox,
    read_changes_file,
    without_configured,
    write_changes_file,
)
from coordinator.config.kept_changes import compare, reset, save
from coordinator.config.loader import load_swarm

CHANGES = Changes(
    revision=5,
    change="remove research-2",
    requests=("id",),
    agents={"new": AddedAgent(table={"kind": "momentum", "sandbox": "base", "weight": 0.5}, after=7)},
    removed={
        "research-2": RemovedAgent(after=9, was={"kind": "sentiment"}),
        "gone": RemovedAgent(after=4, forget=True, configured=False, was={"kind": "x"}),
    },
    moved={"coordinator": Move(sandbox="base", after=8)},
)


def test_the_differences_are_shown_until_the_file_has_them(tmp_path: Path):
    (tmp_path / "swarm.toml").write_text("# a comment\nmax_agents = 9\n")
    write_changes_file(tmp_path, CHANGES)
    assert read_changes_file(tmp_path) == CHANGES
    found = compare(load_swarm(directory=tmp_path), tmp_path)
    assert (found.revision, [(one.agent, one.change, one.detail) for one in found.changes]) == (
        5,
        [
            ("new", "added", "kind momentum in base, weight 0.5"),
            ("coordinator", "moved", "to base"),
            ("research-2", "removed", "its state is kept"),
        ],
    )
    assert save(load_swarm(directory=tmp_path), tmp_path, None).startswith(f"wrote {tmp_path / 'swarm.toml'}; ")
    assert (tmp_path / "swarm.toml.old").read_text() == "# a comment\nmax_agents = 9\n"
    saved = load_swarm(directory=tmp_path)
    assert compare(saved, tmp_path).changes == []
    left = without_configured(saved, CHANGES)
    assert (left.revision, left.agents, left.moved) == (6, {}, {})
    assert left.removed["research-2"].was == {"kind": "sentiment"}
    assert without_configured(saved, left) == left
    assert without_configured(saved.resolve(), CHANGES) == left


def test_a_reset_is_newer_than_what_the_stream_has(tmp_path: Path):
    assert reset(tmp_path) == "there is nothing to forget"
    assert not (tmp_path / CHANGES_FILE).exists()
    write_changes_file(tmp_path, CHANGES)
    reset(tmp_path)
    assert read_changes_file(tmp_path) == Changes(revision=6, change="reset")


def test_a_file_that_is_none_is_named(tmp_path: Path):
    (tmp_path / CHANGES_FILE).write_text('{"revision": "x"}')
    with pytest.raises(UsageError, match=CHANGES_FILE):
        reset(tmp_path)


def test_sandboxes_are_shown_and_saved(tmp_path: Path):
    changes = Changes(
        revision=2,
        sandboxes={"extra": {"provider": "local"}},
        removed_sandboxes={"python": RemovedSandbox(after=4), "gone": RemovedSandbox(after=5, configured=False)},
        moved={"coordinator": Move(sandbox="extra", after=4)},
    )
    write_changes_file(tmp_path, changes)
    config = load_swarm(directory=tmp_path)
    shown = compare(config, tmp_path).changes
    assert [(one.agent, one.change, one.is_sandbox) for one in shown] == [
        ("extra", "added", True), ("python", "removed", True), ("coordinator", "moved", False),
    ]  # fmt: skip
    assert set(without_configured(config, changes).removed_sandboxes) == {"python"}
    save(config, tmp_path, tmp_path / "swarm.toml")
    saved = load_swarm(directory=tmp_path)
    assert [spec.name for spec in saved.sandboxes] == ["base", "nodejs", "extra"]
    assert saved.sandboxes[1].packages == ("express", "axios", "lodash")
    homes = {item.spec.name: item.spec.sandbox for item in saved.agents}
    assert (homes["coordinator"], homes["strategy-mean-reversion"]) == ("extra", "extra")
    left = without_configured(saved, changes)
    assert (left.sandboxes, left.removed_sandboxes, left.moved) == ({}, {}, {})
    assert compare(saved, tmp_path).changes == []
