"""Which key a watchdog gives to an incarnation, and the files: prepared, taken once, and reduced to public keys."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from bus.errors import UsageError
from bus.nats.credentials import public_key_of
from bus.nats.key_files import (
    agent_files,
    agent_key_file,
    forget_seed,
    new_seed,
    prepare,
    prepared_file,
    public_key_taken,
    record,
    remove_taken,
    take,
    taken_keys,
    write_seed,
)
from coordinator.supervisor import agent_keys
from coordinator.supervisor.agent_keys import AgentKeys


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(agent_keys, "PAUSE_S", 0.001)
    (tmp_path / "agents").mkdir()
    return tmp_path / "agents"


async def test_without_prepared_ones_each_agent_has_one_key(tmp_path: Path):
    seed = new_seed()
    write_seed(agent_key_file(tmp_path, "a"), seed)
    keys = AgentKeys(tmp_path)
    assert [await keys.seed("a", epoch) for epoch in (1, 2)] == [seed, seed]
    await keys.forget("a")
    assert agent_key_file(tmp_path, "a").exists()


async def test_each_incarnation_gets_the_prepared_one(tmp_path: Path, prepared: Path):
    keys, seeds = AgentKeys(tmp_path), list[str]()
    for epoch in (1, 2):
        public = prepare(prepared, "a")
        seeds.append(await keys.seed("a", epoch))
        assert public_key_of(seeds[-1]) == public
        await keys.forget("a")
        assert [file.suffix for file in prepared.iterdir()] == [".pub"] * epoch
    assert len({*seeds}) == 2


async def test_without_a_prepared_one_the_last_is_used_again_and_recorded(tmp_path: Path, prepared: Path):
    keys = AgentKeys(tmp_path)
    prepare(prepared, "a")
    first = await keys.seed("a", 1)
    await keys.forget("a")
    assert await keys.seed("a", 2) == first
    await keys.forget("a")
    assert taken_keys(prepared) == {("a", 1), ("a", 2)}
    assert public_key_taken(prepared, "a", 2) == public_key_of(first)
    assert not [file for file in prepared.iterdir() if file.suffix == ".nk"]


async def test_a_new_watchdog_without_a_prepared_one_makes_one_and_records_it(tmp_path: Path, prepared: Path):
    seed = await AgentKeys(tmp_path).seed("a", 5)
    assert public_key_taken(prepared, "a", 5) == public_key_of(seed)


def test_a_prepared_key_is_taken_once(tmp_path: Path):
    public = prepare(tmp_path, "a-b")
    assert stat.S_IMODE(prepared_file(tmp_path, "a-b").stat().st_mode) == 0o600
    seed = take(tmp_path, "a-b", 7)
    assert seed is not None
    assert public_key_of(seed) == public == public_key_taken(tmp_path, "a-b", 7)
    assert take(tmp_path, "a-b", 8) is None
    assert taken_keys(tmp_path) == {("a-b", 7)}
    forget_seed(tmp_path, "a-b", 7, seed)
    assert public_key_taken(tmp_path, "a-b", 7) == public
    assert seed not in "".join(file.read_text() for file in tmp_path.iterdir())


@pytest.mark.parametrize("files", [("a.7.nk",), ("a.7.nk", "a.7.pub"), ("a.7.pub",)])
def test_each_step_of_a_take_leaves_the_key_known(tmp_path: Path, files: tuple[str, ...]):
    public = prepare(tmp_path, "a")
    seed = take(tmp_path, "a", 7)
    assert seed is not None
    (tmp_path / "a.7.pub").write_text(public + "\n")
    for file in tmp_path.iterdir():
        if file.name not in files:
            file.unlink()
    assert (taken_keys(tmp_path), public_key_taken(tmp_path, "a", 7)) == ({("a", 7)}, public)
    remove_taken(tmp_path, "a", 7)
    assert list(tmp_path.iterdir()) == []
    forget_seed(tmp_path, "a", 7, seed)
    assert list(tmp_path.iterdir()) == [], "a removed key is a revoked one"


def test_the_newest_file_of_an_agent_is_shown(tmp_path: Path):
    prepare(tmp_path, "a")
    record(tmp_path, "b", 9, new_seed())
    record(tmp_path, "b", 11, new_seed())
    prepare(tmp_path, "b")
    assert agent_files(tmp_path) == {"a": tmp_path / "a.next.nk", "b": tmp_path / "b.11.pub"}
    assert agent_files(tmp_path / "none") == {}


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff", b"U" + 55 * b"0"])
def test_a_wrong_file_is_named(tmp_path: Path, content: bytes):
    (tmp_path / "a.7.pub").write_bytes(content)
    with pytest.raises(UsageError, match=r"a\.7\.pub: expected a public key"):
        public_key_taken(tmp_path, "a", 7)


def test_an_unusable_prepared_key_is_named_and_not_taken_again(tmp_path: Path):
    prepare(tmp_path, "a")
    prepared_file(tmp_path, "a").chmod(0o644)
    with pytest.raises(UsageError, match=r"a\.7\.nk: others may read or write it"):
        take(tmp_path, "a", 7)
    assert take(tmp_path, "a", 8) is None
