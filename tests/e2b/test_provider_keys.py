"""Hosts in sandboxes at E2B with keys: each has its own and no other, from its creation to its end."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import psutil
import pytest

from bus.errors import NotAdmitted
from bus.nats.bus import NatsBus
from bus.nats.credentials import Credentials, public_key_of
from coordinator.security.keys import KeyStore
from tests.acceptance.swarm import AGENTS
from tests.e2b.remote import REMOTE_AGENTS, RemoteSwarm, StartedSwarm, remote_toml, texts, until
from tests.e2b.standin.launch import StandIn

KEYED = '[nats]\nauthentication = "keys"\n' + remote_toml()


def keys_of(swarm: RemoteSwarm) -> KeyStore:
    return KeyStore(swarm.directory / ".signalmesh")


def host_keys(swarm: RemoteSwarm) -> list[str]:
    """The hosts of the remote sandbox that have keys."""
    return [identity.removeprefix("sandbox-") for identity in keys_of(swarm).created(["python"])]


async def connects(swarm: RemoteSwarm, seed: str) -> bool:
    try:
        bus = await NatsBus.connect(swarm.url, swarm.name, "test", 0.5, Credentials(nkey_seed=seed))
    except NotAdmitted:
        return False
    await bus.close()
    return True


async def holds_only_its_own(there: StartedSwarm) -> None:
    """No seed is in files, arguments or variables of the sandbox, and its log at E2B has none."""
    swarm, store = there.swarm, keys_of(there.swarm)
    displayed = (await swarm.standin.sandboxes())[there.sandbox_id]
    seeds = {file.stem: store.seed(file.stem) for file in store.directory.glob("*.nk")}
    there_now = "".join(
        " ".join([*process.cmdline(), *process.environ().values()])
        for process in map(psutil.Process, displayed["pids"])
    )
    there_now += "".join(path.read_text(errors="replace") for path in Path(displayed["home"]).rglob("*.log"))
    assert [name for name, seed in seeds.items() if seed in there_now] == []
    sent = {line["kind"]: set[str]() for line in swarm.standin.log()}
    for line in swarm.standin.log():
        shown = " ".join(texts(line))
        sent[line["kind"]] |= {name for name, seed in seeds.items() if seed in shown}
    assert {kind: names for kind, names in sent.items() if names} == {"stream_input": {f"sandbox-{there.host}"}}


@pytest.mark.slow
async def test_a_remote_host_has_the_key_of_its_sandbox_until_that_is_replaced(tmp_path: Path, e2b_standin: StandIn):
    async with RemoteSwarm(tmp_path, e2b_standin, KEYED) as swarm:
        there = await swarm.started()
        subscriber = there.subscriber
        assert swarm.record["authentication"] == "keys"
        assert host_keys(swarm) == [there.host]
        seed = keys_of(swarm).seed(f"sandbox-{there.host}")
        await subscriber.more_decisions(5)
        assert await connects(swarm, seed)
        await e2b_standin.vanish(there.sandbox_id)
        await there.moved_to_local()
        host = await swarm.remote_host(subscriber, other_than=there.host)
        await until(lambda: _are(swarm, [host]))
        assert there.alerts("client_refused") == []
        await until(lambda: _is_refused(swarm, seed))
        assert keys_of(swarm).seed(f"sandbox-{host}") != seed
        killed = await swarm.command("kill", REMOTE_AGENTS[0], "--json")
        assert (killed.json["outputs_lost"], killed.json["outputs_duplicated"]) == (0, 0)
        await subscriber.live(*AGENTS)
        await swarm.assert_exact()
        logs = [path.read_text() for path in (tmp_path / ".signalmesh" / "logs").iterdir()]
        assert [line for log in logs for line in log.splitlines() if "permission_denied" in line] == []
        await swarm.down()
        assert host_keys(swarm) == []


async def _are(swarm: RemoteSwarm, hosts: list[str]) -> bool:
    return host_keys(swarm) == hosts


async def _is_refused(swarm: RemoteSwarm, seed: str) -> bool:
    return not await connects(swarm, seed)


@pytest.mark.slow
async def test_a_new_provider_keeps_the_host_and_its_key_until_that_is_rotated(tmp_path: Path, e2b_standin: StandIn):
    async with RemoteSwarm(tmp_path, e2b_standin, KEYED) as swarm:
        there = await swarm.started()
        await holds_only_its_own(there)
        left = keys_of(swarm)
        left.ensure("sandbox-python-gone")  # of an earlier run
        public = public_key_of(left.seed(f"sandbox-{there.host}"))
        psutil.Process(there.launcher).kill()
        await swarm.until_logged("sandbox_adopted")
        await until(lambda: _are(swarm, [there.host]))
        await there.untouched()
        assert public_key_of(left.seed(f"sandbox-{there.host}")) == public

        rotated = await swarm.command("keys", "rotate", f"sandbox-{there.host}")
        assert rotated.code == 0, rotated
        heartbeats = there.subscriber.heartbeats
        await there.subscriber.until("another host", lambda: heartbeats[there.host]["pid"] != there.pid)
        assert public_key_of(left.seed(f"sandbox-{there.host}")) != public
        assert list(await e2b_standin.sandboxes()) == [there.sandbox_id]
        await there.subscriber.live(*AGENTS)
        await swarm.assert_exact()
        await swarm.down()


@pytest.mark.slow
async def test_a_host_from_before_there_were_keys_gets_one(tmp_path: Path, e2b_standin: StandIn):
    async with RemoteSwarm(tmp_path, e2b_standin, remote_toml()) as swarm:
        there = await swarm.started("", "--authentication", "open")
        swarm.process.kill()  # its sandbox stays
        await swarm.wait()
        again = dataclasses.replace(there, subscriber=await swarm.up_with_remote("", "--authentication", "keys"))
        await swarm.agents_in(again.subscriber, there.host)
        assert host_keys(swarm) == [there.host]
        assert list(await e2b_standin.sandboxes()) == [there.sandbox_id]
        await swarm.down()


async def test_a_server_of_others_is_refused(tmp_path: Path, e2b_standin: StandIn):
    async with RemoteSwarm(tmp_path, e2b_standin, KEYED) as swarm:
        done = await swarm.command("up", "--nats", "nats://127.0.0.1:4", "--for", "1")
        assert done.code == 2, done
        assert "sandboxes.python: each sandbox at E2B gets a key when it is created" in done.err
