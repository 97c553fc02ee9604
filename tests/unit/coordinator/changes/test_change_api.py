"""Requests that a leader refuses because of where it runs, before it stores anything."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bus.errors import ConfigError, UsageError
from bus.nats.key_files import INCARNATIONS, new_seed, write_seed
from bus.testing.memory_bus import MemoryBus, MemoryServer
from coordinator.changes.change_api import ChangeApi, ChangeRequest
from coordinator.config.live_swarm import LiveSwarm
from coordinator.config.loader import parse_swarm
from coordinator.supervisor.agent_keys import AgentKeys
from coordinator.supervisor.model import PROVIDER_SILENT_S
from coordinator.supervisor.watchdog import make_policy

EXTRA = ChangeRequest(id="id", sandbox="extra", table={"provider": "local"})
BASE = ChangeRequest(id="id", sandbox="base")


class NothingStored:
    """In place of a ConfigPublisher: fails if anything is to be stored."""

    async def commit(self, *_: object) -> None:
        raise AssertionError("stored")


def leader(keys: AgentKeys | None = None, *, up_runs_hosts: bool) -> ChangeApi:
    swarm = LiveSwarm(parse_swarm({}, "swarm.toml", "").resolve())
    bus: Any = MemoryBus(MemoryServer())
    parts: Any = SimpleNamespace(
        bus=bus, keys=keys, swarm=swarm, policy=make_policy(swarm.config), hosts=None, reports=None,
        config_publisher=NothingStored(), wake=lambda: None,
    )  # fmt: skip
    return ChangeApi(parts, cast(Any, None), up_runs_hosts=up_runs_hosts)


async def test_sandboxes_are_not_changed_where_each_host_is_a_service():
    api = leader(up_runs_hosts=False)
    for handle, request, what in (
        (api._add_sandbox, EXTRA, "sandbox add extra"),
        (api._remove_sandbox, BASE, "sandbox remove base"),
    ):
        with pytest.raises(UsageError, match=f"{what}: here each host is a service of its own"):
            await handle(request)


async def test_a_sandbox_at_e2b_needs_a_provider_that_runs():
    api = leader(up_runs_hosts=True)
    far = ChangeRequest(id="id", sandbox="far", table={"provider": "e2b"})
    with pytest.raises(UsageError, match="sandbox add far: no provider of sandboxes at E2B runs"):
        await api._add_sandbox(far)
    provider = api._policy.provider
    provider.heartbeat_at = time.monotonic() - PROVIDER_SILENT_S
    with pytest.raises(UsageError, match="no provider of sandboxes at E2B runs"):
        await api._add_sandbox(far)
    provider.heartbeat_at = time.monotonic()
    with pytest.raises(AssertionError, match="stored"):
        await api._add_sandbox(far)
    wrong = ChangeRequest(id="id", sandbox="far", table={"provider": "e2b", "replace_at": 2})
    with pytest.raises(ConfigError, match=r"sandbox add far: sandboxes.far.replace_at"):
        await api._add_sandbox(wrong)


async def test_no_agent_gets_the_name_of_a_voter_outside_the_swarm(tmp_path: Path):
    (tmp_path / INCARNATIONS).mkdir()
    write_seed(file := tmp_path / "voter-new.nk", new_seed())
    write_seed(tmp_path / "subscriber-other.nk", new_seed())
    api = leader(AgentKeys(tmp_path), up_runs_hosts=True)
    with pytest.raises(
        UsageError, match=f"add new: {file} is the key of a voter .* `signalmesh keys revoke voter-new`"
    ):
        await api._add(ChangeRequest(id="id", agent="new", table={"kind": "momentum"}))
    with pytest.raises(ConfigError, match="6 agents would run"):  # and not its name
        await api._add(ChangeRequest(id="id", agent="other", table={"kind": "momentum"}))


async def test_a_host_needs_a_key_that_the_server_knows(tmp_path: Path):
    api = leader(AgentKeys(tmp_path), up_runs_hosts=True)
    with pytest.raises(UsageError, match="the server has no key for its host"):
        await api._add_sandbox(EXTRA)
    for there in (tmp_path / "sandbox-extra.nk", tmp_path / INCARNATIONS):
        there.mkdir() if there.name == INCARNATIONS else there.touch()
        with pytest.raises(AssertionError, match="stored"):
            await leader(AgentKeys(tmp_path), up_runs_hosts=True)._add_sandbox(EXTRA)
        there.rmdir() if there.is_dir() else there.unlink()
