"""Which key a watchdog gives to an incarnation."""

from __future__ import annotations

from pathlib import Path

import pytest

from bus.nats.credentials import public_key_of
from bus.nats.incarnation_keys import prepare, public_key_taken, taken_keys
from bus.nats.key_files import agent_key_file, new_seed, write_seed
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
