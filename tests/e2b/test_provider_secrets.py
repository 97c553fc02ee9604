"""The key is the launcher's alone, and the bus's credentials pass through StreamInput, which is not logged."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nkeys
import psutil
import pytest

from bus.nats.key_files import write_seed
from bus.server.binary import find_binary
from bus.utils.processes import die_with_parent
from tests.acceptance.swarm import GUARD_S
from tests.e2b.remote import RemoteSwarm, StartedSwarm, texts
from tests.support.ports import free_port

PASSWORD = "keep" + "-this-to-yourself"


async def assert_hidden(there: StartedSwarm, credential: str) -> None:
    """Neither E2B's key nor `credential` is where others can read it, and the sandbox got it in one way."""
    swarm, standin = there.swarm, there.swarm.standin
    key, state = standin.api_key, swarm.directory / ".signalmesh"
    displayed = (await standin.sandboxes())[there.sandbox_id]
    ours = [process for process in swarm.all_agents() if process.pid != swarm.process.pid]
    assert there.launcher in {process.pid for process in ours}
    inside = {there.pid, *(heartbeat["pid"] for heartbeat in there.heartbeats.values())}
    assert inside <= set(displayed["pids"])
    for process in [*ours, *map(psutil.Process, displayed["pids"])]:
        argv, environment = " ".join(process.cmdline()), process.environ()
        assert key not in argv
        assert credential not in argv
        if process.pid != there.launcher:
            values = " ".join(environment.values())
            known = [name for name, secret in (("key", key), ("credential", credential)) if secret in values]
            assert known == [], argv  # a failure must not print an environment
    ways = set()
    for line in standin.log():
        unlogged = " ".join(texts(line.pop("unlogged", None)))
        assert key not in " ".join(texts(line)) + unlogged
        assert credential not in " ".join(texts(line)), line
        if credential in unlogged:
            ways.add(line["kind"])
    assert ways == {"stream_input"}
    written = [*state.rglob("*.log"), state / "e2b.json", state / "run.json", swarm.directory / "up.err"]
    written += Path(displayed["home"]).rglob("*.log")
    assert {"provider.log", "host.log"} <= {path.name for path in written}
    for path in written:
        text = path.read_text()
        assert key not in text, path
        assert credential not in text, path
    received = b"".join(printed.data for printed in there.subscriber.messages).decode() + json.dumps(
        there.subscriber.heartbeats
    )
    assert key not in received
    assert credential not in received


@pytest.mark.slow
async def test_neither_key_nor_password_stand_where_others_can_read(tmp_path, e2b_standin):
    async with RemoteSwarm(tmp_path, e2b_standin) as swarm:
        there = await swarm.started(f"nats://far:{PASSWORD}@127.0.0.1:{swarm.port}")
        await assert_hidden(there, PASSWORD)


@contextlib.contextmanager
def locked_server(directory: Path) -> Iterator[tuple[str, str]]:
    """A nats-server, by its address, where only the user of this nkey seed may publish; all may listen and read."""
    port = free_port()
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    public = nkeys.from_seed(bytearray(seed)).public_key.decode()
    directory.mkdir()
    listener = '{ user: ear, password: ear, permissions { publish: ["$JS.API.>", "_INBOX.>"], subscribe: ">" } }'
    config, ports = directory / "nats.conf", directory / "ports"
    config.write_text(
        f'host: 127.0.0.1\nport: {port}\nports_file_dir: "{ports}"\njetstream {{ store_dir: "{directory}" }}\n'
        f"no_auth_user: ear\nauthorization {{ users: [ {{ nkey: {public} }}, {listener} ] }}\n"
    )
    ports.mkdir()
    process = subprocess.Popen(
        [str(find_binary()), "-c", str(config)],
        stderr=subprocess.DEVNULL,
        preexec_fn=functools.partial(die_with_parent, os.getpid()),  # noqa: PLW1509 - a system call, no more
    )
    try:
        yield f"nats://127.0.0.1:{port}", seed.decode()
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
async def test_neither_key_nor_nkey_seed_stand_where_others_can_read(tmp_path, e2b_standin):
    with locked_server(tmp_path / "nats") as (url, seed):
        async with asyncio.timeout(GUARD_S):
            while not list((tmp_path / "nats" / "ports").iterdir()):
                await asyncio.sleep(0.05)
        file = tmp_path / "far.nk"
        write_seed(file, seed)
        async with RemoteSwarm(tmp_path / "swarm", e2b_standin) as swarm:
            swarm.environment["SIGNALMESH_NATS_NKEY"] = str(file)
            there = await swarm.started(url, "--nats", url)
            await there.subscriber.more_decisions(3)
            await assert_hidden(there, seed)
            await swarm.down()
