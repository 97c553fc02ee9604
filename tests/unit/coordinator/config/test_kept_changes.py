"""What `signalmesh config` shows, writes and forgets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bus.errors import UsageError
from coordinator.config.changes import (
    CHANGES_FILE,
    SAVED_FILE,
    AddedAgent,
    Changes,
    Move,
    RemovedAgent,
    RemovedSandbox,
    forget_saved_changes,
    read_changes_file,
    read_saved_changes,
    without_configured,
    write_changes_file,
)
from coordinator.config.kept_changes import compare, reset, save
from coordinator.config.loader import load_swarm
from coordinator.runner.preflight import check_changes

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


def test_what_is_edited_after_it_was_saved_is_no_change(tmp_path: Path):
    file = tmp_path / "swarm.toml"
    file.write_text("max_agents = 9\n")
    added = CHANGES.agents | {
        "moved": AddedAgent(table={"kind": "momentum", "sandbox": "base"}, after=6),
        "ended": AddedAgent(table={"kind": "momentum", "sandbox": "base"}, after=6),
    }
    changes = replace(CHANGES, agents=added, moved={**CHANGES.moved, "moved": Move(sandbox="nodejs", after=8)})
    write_changes_file(tmp_path, changes)
    save(load_swarm(file), tmp_path, None)
    saved = load_swarm(file)
    assert saved.agent("moved").spec.sandbox == "nodejs"
    assert compare(saved, tmp_path).changes == []
    assert without_configured(saved, changes).agents == {}

    text = file.read_text().replace("weight = 0.5", "weight = 0.75")
    text = text.replace('[agents.ended]\nkind = "momentum"', '[agents.research-2]\nkind = "sentiment"')
    file.write_text(text)
    edited = load_swarm(file)
    assert {item.spec.name for item in edited.agents} >= {"new", "moved", "research-2"}
    assert compare(edited, tmp_path).changes == []
    swarm = check_changes(edited.resolve(), read_changes_file(tmp_path), tmp_path)
    assert {item.spec.name: item.weight for item in swarm.config.agents}["new"] == 0.75
    names = [item.spec.name for item in swarm.config.agents]
    assert (names.count("research-2"), names.count("ended")) == (1, 0)

    # What is changed after that is a difference again, and saving it keeps what was edited.
    later = changes.after("move new", "id2", moved={**changes.moved, "new": Move(sandbox="python", after=20)})
    write_changes_file(tmp_path, later)
    assert [(one.agent, one.change) for one in compare(edited, tmp_path).changes] == [("new", "moved")]
    save(edited, tmp_path, None)
    again = load_swarm(file)
    assert (again.agent("new").weight, again.agent("new").spec.sandbox) == (0.75, "python")
    assert compare(again, tmp_path).changes == []

    # Once `up` has taken it over, or in another file, it is nothing special.
    other = tmp_path / "other.toml"
    other.write_text("max_agents = 9\n")
    forget_saved_changes(tmp_path, load_swarm(other))
    assert [one.agent for one in compare(load_swarm(other), tmp_path).changes] != []
    assert read_saved_changes(tmp_path, again)["moved"].keys() == later.moved.keys()
    assert "momentum" not in (tmp_path / SAVED_FILE).read_text()  # no copy of what a removal may forget
    forget_saved_changes(tmp_path, again)
    assert not read_saved_changes(tmp_path, again)


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
