"""A cluster of three nats-servers that keep everything three times: any one of them may die."""

from __future__ import annotations

import contextlib
from contextlib import AsyncExitStack
from pathlib import Path

import nats.errors
import pytest

from coordinator.security.keys import KeyStore
from tests.acceptance.exact import Content
from tests.acceptance.faults import kill_agents
from tests.acceptance.subscriber import Subscriber
from tests.acceptance.swarm import AGENTS, Swarm, run_command
from tests.matrix.verification import MORE, Before, matrix_toml, verify
from tests.support.cluster import Cluster, cluster

KEYS = '[nats]\nauthentication = "keys"\n'
REPLICAS = "[stream]\nreplicas = 3\n"
BUCKETS = ("KV_swarm_state", "KV_swarm_memory", "KV_swarm_agents")


async def leader_of(subscriber: Subscriber, stream: str = "swarm_events") -> str:
    leader: str = (await subscriber.api(f"STREAM.INFO.{stream}"))["cluster"]["leader"]
    return leader


async def in_sync(subscriber: Subscriber, servers: Cluster) -> None:
    """Wait until every member has all of every stream; the heartbeats of the swarm are the clock."""
    while True:
        with contextlib.suppress(nats.errors.TimeoutError):  # the servers may be electing a leader
            streams = [(await subscriber.api(f"STREAM.INFO.{name}"))["cluster"] for name in ("swarm_events", *BUCKETS)]
            followers = [peer for stream in streams for peer in stream.get("replicas") or ()]
            if sum(peer["current"] for peer in followers) == len(streams) * (len(servers.names) - 1):
                return
        await subscriber.more_heartbeats(1, "watchdog")


@pytest.mark.serial
@pytest.mark.parametrize("victim", ["follower", "leader", "leader and agents"])
async def test_a_member_of_a_cluster_is_killed(tmp_path: Path, undisturbed_long: Content, victim: str):
    (tmp_path / "nats").mkdir()
    async with AsyncExitStack() as stack:
        swarm = await stack.enter_async_context(Swarm(tmp_path, matrix_toml(top=KEYS + REPLICAS)))
        users = await swarm.command("keys", "export")
        operator = KeyStore(tmp_path / ".signalmesh").credentials("operator")
        servers = await stack.enter_async_context(cluster(tmp_path / "nats", users=users.out, credentials=operator))
        subscriber = await swarm.up("--nats", servers.url)
        before = await Before.of(subscriber)
        await in_sync(subscriber, servers)
        leader = await leader_of(subscriber)
        dies = leader if victim != "follower" else next(name for name in servers.names if name != leader)
        stays = next(name for name in servers.names if name != dies)
        await subscriber.close()
        # Subscribed at a server that lives: what a subscriber misses of one that dies is another case.
        subscriber = await swarm.listen(url=servers.url_of(stays))
        await subscriber.live(*AGENTS)
        await servers.kill(dies)
        risen: tuple[str, ...] = ()
        if victim == "leader and agents":  # while nothing can be stored
            risen = ("research-1", "coordinator")
            await kill_agents(swarm, subscriber, *risen)
        await subscriber.more_decisions(MORE["load"])
        if victim != "follower":
            assert await leader_of(subscriber) != dies
        await servers.start(dies)
        await in_sync(subscriber, servers)
        await verify(swarm, subscriber, undisturbed_long, before, risen, received=False)
        assert await swarm.end(2) == 0


async def test_more_replicas_than_servers_are_refused(tmp_path: Path):
    (tmp_path / "swarm.toml").write_text(REPLICAS)
    result = await run_command(tmp_path, "up", "--port", "0")
    assert result.code == 2
    assert "stream.replicas = 3" in result.err
    assert "--nats" in result.err
