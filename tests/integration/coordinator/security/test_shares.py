"""A server with the users that `keys init` has written, which reads them again when it is asked to."""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bus.errors import NotAdmitted, UsageError
from bus.nats.bus import NatsBus
from bus.nats.credentials import Credentials
from bus.nats.key_files import new_seed, read_seed, write_seed
from bus.server.binary import find_binary
from bus.utils.processes import die_with_parent
from coordinator.config.loader import parse_swarm
from coordinator.security.keys import KeyStore
from coordinator.security.shares import make_keys, reload_server, write_shares
from tests.support.ports import free_ports

CONFIG = parse_swarm({}, "built-in defaults", "").resolve()
FORGED = "in.swarm.epoch.mirror"


def write(state_dir: Path, *, is_open: bool = False) -> KeyStore:
    store = KeyStore(state_dir)
    make_keys(CONFIG, store, hosts=1)
    write_shares(CONFIG, store, state_dir / "shares", hosts=1, is_open=is_open)
    return store


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """A server that includes the users, as the one of Docker Compose does."""
    write(tmp_path)
    [port] = free_ports(1)
    config = tmp_path / "nats.conf"
    config.write_text(
        f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{tmp_path}/store" }}\ninclude "shares/nats/users.conf"\n'
    )
    process = await asyncio.create_subprocess_exec(
        str(find_binary()),
        "-c",
        str(config),
        stderr=subprocess.DEVNULL,
        preexec_fn=functools.partial(die_with_parent, os.getpid()),
    )
    try:
        await (await connect(f"nats://127.0.0.1:{port}", wait_s=5.0)).close()  # it has read its configuration
        yield f"nats://127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()


async def connect(url: str, seed: str = "", wait_s: float = 1.0) -> NatsBus:
    return await NatsBus.connect(url, "swarm", "test", wait_s, credentials=Credentials(nkey_seed=seed))


async def may_publish(url: str, seed: str, subject: str) -> bool:
    bus = await connect(url, seed)
    denied: list[object] = []
    bus.connection.watch_denials(denied.append)
    try:
        bus.connection.write(subject, b"")
        await bus.flush()
        await bus.flush()
    finally:
        await bus.close()
    return not denied


async def test_each_key_may_do_what_its_process_does(tmp_path: Path, url: str):
    shares = tmp_path / "shares"
    host = read_seed(shares / "sandbox-base" / "sandbox-base-1.nk")
    assert await may_publish(url, host, "swarm.heartbeat.base-1")
    assert not await may_publish(url, host, "swarm.heartbeat.base")
    assert not await may_publish(url, host, FORGED)
    assert await may_publish(url, read_seed(shares / "operator" / "operator.nk"), FORGED)
    assert not await may_publish(url, "", FORGED)


@pytest.mark.slow
async def test_a_replaced_key_holds_after_the_reload_and_connections_of_others_stay(tmp_path: Path, url: str):
    store = KeyStore(tmp_path)
    unnamed, operator = await connect(url), await connect(url, store.seed("operator"))
    old, new = store.seed("mirror"), new_seed()
    write_seed(store.file("mirror"), new)
    with pytest.raises(NotAdmitted):
        await connect(url, new)
    write(tmp_path)
    assert await reload_server(url, store) == f"the server at {url} has read its users again"
    await (await connect(url, new)).close()
    with pytest.raises(NotAdmitted):
        await connect(url, old)
    assert (unnamed.connection.generation, operator.connection.generation) == (1, 1)
    await operator.flush()
    await unnamed.close()
    await operator.close()


async def test_open_and_back(tmp_path: Path, url: str):
    store = write(tmp_path, is_open=True)
    await reload_server(url, store)
    assert await may_publish(url, "", FORGED)
    await reload_server(url, write(tmp_path))
    assert not await may_publish(url, "", FORGED)


@pytest.mark.slow
async def test_what_is_wrong_with_the_server_is_told(tmp_path: Path, url: str):
    store = KeyStore(tmp_path)
    (tmp_path / "shares/nats/users.conf").write_text("authorization { users: [ { nkey: nonsense } ] }")
    with pytest.raises(UsageError, match=f"the server at {url} refuses its configuration: .*nkey"):
        await reload_server(url, store)
    write_seed(store.file("system"), new_seed())
    with pytest.raises(UsageError, match=f"the server at {url} has not the key of the system account"):
        await reload_server(url, store)
    [port] = free_ports(1)
    assert "no server runs at" in await reload_server(f"nats://127.0.0.1:{port}", store)
    operator = store.seed("operator")
    write_seed(store.file("system"), operator)
    assert "no system account of ours" in await reload_server(url, store)
