"""Which keys of agents the server has to know."""

from __future__ import annotations

from pathlib import Path

import pytest

from bus.nats.credentials import public_key_of
from bus.nats.key_files import forget_seed, prepare, prepared_file, record, remove_taken, take, taken_keys, write_seed
from coordinator.security.incarnations import IncarnationKeys
from coordinator.security.permissions import Permissions

MAY = Permissions(publish=("x",))


def made(directory: Path) -> IncarnationKeys:
    return IncarnationKeys(directory / "agents", {"a": MAY, "b": MAY})


def users(keys: IncarnationKeys) -> dict[str, str]:
    return {name: key for name, (key, allowed) in keys.users().items() if allowed is MAY}


def start(directory: Path, agent: str, epoch: int) -> str:
    """What a watchdog does; returns the public key."""
    seed = take(directory / "agents", agent, epoch)
    assert seed is not None
    forget_seed(directory / "agents", agent, epoch, seed)
    return public_key_of(seed)


def test_each_agent_has_a_prepared_key_and_those_of_an_earlier_run_are_gone(tmp_path: Path):
    first = users(made(tmp_path))
    start(tmp_path, "a", 7)
    again = made(tmp_path)
    assert {*first} == {*users(again)} == {"agent-a, next", "agent-b, next"}
    assert not {*first.values()} & {*users(again).values()}
    assert taken_keys(tmp_path / "agents") == set()
    assert again.update() == (False, set())


def test_a_taken_key_stays_known_and_another_is_prepared(tmp_path: Path):
    keys = made(tmp_path)
    before = users(keys)
    public = start(tmp_path, "a", 7)
    assert public == before["agent-a, next"]
    assert keys.update() == (True, set())
    after = users(keys)
    assert (after["agent-a, epoch 7"], after["agent-b, next"]) == (public, before["agent-b, next"])
    assert after["agent-a, next"] not in before.values()
    assert keys.update() == (False, set())
    assert keys.owner(public) == ("agent-a", True)


@pytest.mark.parametrize("how", ["the next one", "a claim", "its end"])
def test_the_key_of_a_dead_incarnation_is_refused(tmp_path: Path, how: str):
    keys = made(tmp_path)
    dead, other = start(tmp_path, "a", 7), start(tmp_path, "b", 8)
    keys.update()
    if how == "the next one":
        start(tmp_path, "a", 9)
    elif how == "a claim":
        keys.claimed("a", 9)
    else:
        keys.ended("a", 7)
    assert keys.update() == (True, set())
    assert dead not in users(keys).values()
    assert other in users(keys).values()
    assert not keys.admits(dead)
    assert keys.owner(dead) == ("a dead process of agent-a", False)
    assert ("a", 7) not in taken_keys(tmp_path / "agents")
    assert keys.update() == (False, set())


def test_older_claims_and_unknown_agents_change_nothing(tmp_path: Path):
    keys = made(tmp_path)
    public = start(tmp_path, "a", 7)
    keys.update()
    keys.claimed("a", 7)
    keys.ended("a", 6)
    keys.ended("nobody", 9)
    assert keys.update() == (False, set())
    assert users(keys)["agent-a, epoch 7"] == public


def test_a_key_that_was_taken_between_two_looks_is_never_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The directory is read file by file: what is renamed meanwhile must not be missed."""
    keys = made(tmp_path)
    public = users(keys)["agent-a, next"]

    def taken_meanwhile(directory: Path) -> set[tuple[str, int]]:
        found = taken_keys(directory)
        take(directory, "a", 7)
        return found

    monkeypatch.setattr("coordinator.security.incarnations.taken_keys", taken_meanwhile)
    keys.update()
    assert keys.admits(public)
    monkeypatch.undo()
    keys.update()
    assert users(keys)["agent-a, epoch 7"] == public


def test_a_key_that_two_incarnations_had_to_have_is_known_until_both_have_ended(tmp_path: Path):
    keys = made(tmp_path)
    seed = take(tmp_path / "agents", "a", 7)
    assert seed is not None
    record(tmp_path / "agents", "a", 9, seed)
    keys.update()
    assert users(keys)["agent-a, epoch 9"] == public_key_of(seed)
    keys.ended("a", 9)
    keys.update()
    assert not keys.admits(public_key_of(seed))


def test_a_removed_key_is_revoked_and_its_agent_named(tmp_path: Path):
    keys = made(tmp_path)
    public = start(tmp_path, "a", 7)
    keys.update()
    remove_taken(tmp_path / "agents", "a", 7)
    replaced = prepare(tmp_path / "agents", "a")
    assert keys.update() == (True, {"a"})
    assert users(keys)["agent-a, next"] == replaced
    assert not keys.admits(public)


def test_an_unusable_prepared_key_is_replaced(tmp_path: Path):
    keys = made(tmp_path)
    file = prepared_file(tmp_path / "agents", "a")
    file.unlink()
    file.write_text("nonsense")
    assert keys.update() == (True, set())
    seed = take(tmp_path / "agents", "a", 7)
    assert seed is not None
    assert users(keys)["agent-a, next"] == public_key_of(seed)


def test_a_key_of_another_process_is_taken_over(tmp_path: Path):
    keys = made(tmp_path)
    file = prepared_file(tmp_path / "agents", "a")
    seed = take(tmp_path / "agents", "b", 3)
    assert seed is not None
    write_seed(file, seed)
    keys.ended("b", 3)
    keys.update()
    assert users(keys)["agent-a, next"] == public_key_of(seed)


def test_an_agent_that_leaves_takes_its_keys_along_and_one_that_comes_gets_one(tmp_path: Path):
    keys = made(tmp_path)
    gone = start(tmp_path, "a", 7)
    keys.update()
    keys.take({"b": MAY, "c": MAY})
    assert keys.update() == (True, set())
    assert {*users(keys)} == {"agent-b, next", "agent-c, next"}
    assert not keys.admits(gone)
    assert list((tmp_path / "agents").glob("a.*")) == []
    keys.take({"a": MAY, "b": MAY})
    again = start(tmp_path, "a", 9)
    assert keys.update() == (True, set())
    assert users(keys)["agent-a, epoch 9"] == again


def test_an_epoch_that_nobody_claimed_has_not_ended(tmp_path: Path):
    """Else one report of a distant epoch would refuse every later incarnation."""
    keys = made(tmp_path)
    start(tmp_path, "a", 7)
    keys.update()
    keys.ended("a", 10**9)
    assert keys.update() == (False, set())
    public = start(tmp_path, "a", 9)
    keys.claimed("a", 9)
    keys.update()
    assert users(keys)["agent-a, epoch 9"] == public
    assert keys.admits(public)
