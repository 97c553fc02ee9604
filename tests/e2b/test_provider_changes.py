"""Sandboxes at E2B come and go while the swarm runs: agents move there with their state, and nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from typing import Any

import pytest

from tests.acceptance.swarm import AGENTS
from tests.e2b.remote import REMOTE_AGENTS, RemoteSwarm, env_toml, until

MOVED = "strategy-momentum"
OPTIONS = ("--option", f"python={json.dumps(sys.executable)}", "--option", f"env={env_toml()}")


@pytest.mark.slow
async def test_sandboxes_come_and_go_though_their_provider_dies(tmp_path, e2b_standin):
    keys = tmp_path / ".signalmesh" / "keys"
    async with RemoteSwarm(tmp_path, e2b_standin) as swarm:
        there = await swarm.started()
        subscriber = there.subscriber
        before = await subscriber.live(*AGENTS)
        added = await swarm.command("sandbox", "add", "extra", "--provider", "e2b", *OPTIONS, "--json")
        assert (added.code, added.json["provider"]) == (0, "e2b"), added
        moved = await swarm.command("move", MOVED, "--to", "extra", "--json")
        assert moved.code == 0, moved
        host = moved.json["sandbox"]
        assert host.startswith("extra-")
        assert set(await e2b_standin.sandboxes()) == {there.sandbox_id, host.removeprefix("extra-")}
        difference = await swarm.command("config", "diff", "--json")
        assert {one["change"] for one in difference.json["changes"]} == {"added", "moved"}

        swarm.send(swarm.pid_of("provider"), signal.SIGKILL)
        await swarm.until_logged("sandbox_kept", 4)  # the next one keeps both
        await subscriber.more_decisions(10)
        assert (await subscriber.live(MOVED))[MOVED]["epoch"] == moved.json["epoch"]

        removed = await swarm.command("sandbox", "remove", "python", "--json")  # one of swarm.toml
        assert removed.code == 0, removed
        assert {one["agent"] for one in removed.json["moved"]} == set(REMOTE_AGENTS)
        await until(lambda: only(e2b_standin, host.removeprefix("extra-")))
        assert not [*keys.glob("sandbox-python-*")]
        after = await subscriber.live(*AGENTS)
        assert {name: beat["epoch"] for name, beat in after.items() if name.startswith("research")} == {
            name: beat["epoch"] for name, beat in before.items() if name.startswith("research")
        }
        await swarm.down()

        subscriber = await swarm.up_with_remote()  # the same swarm
        host = await swarm.remote_host(subscriber)
        assert host.startswith("extra-")
        await subscriber.until("the agent there", lambda: subscriber.heartbeats.get(MOVED, {}).get("sandbox") == host)
        assert len(await e2b_standin.sandboxes()) == 1
        await subscriber.more_decisions(10)
        removing = asyncio.ensure_future(swarm.command("sandbox", "remove", "extra", "--json"))
        await subscriber.until("the change", lambda: "extra" in newest_changes(subscriber).get("removed_sandboxes", {}))
        swarm.send(swarm.pid_of("provider"), signal.SIGKILL)  # its successor finds what it was about to delete
        removed = await removing
        assert removed.code == 0, removed
        await until(lambda: only(e2b_standin))
        assert not [*keys.glob("sandbox-extra-*")]
        await subscriber.more_decisions(10)
        await swarm.assert_exact()
        replayed = await swarm.command("replay", "--json")
        assert (replayed.code, replayed.json["differences"]) == (0, []), replayed
        await swarm.down()


def newest_changes(subscriber) -> dict[str, Any]:
    return subscriber.configs[-1].get("changes", {}) if subscriber.configs else {}


async def only(standin, *expected: str) -> bool:
    return {*await standin.sandboxes()} == {*expected}
