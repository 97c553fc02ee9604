"""A swarm whose processes are started one by one, each with its own keys alone, as in containers."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bus.server.binary import find_binary
from bus.utils.processes import die_with_parent
from tests.acceptance.subscriber import Subscriber
from tests.acceptance.swarm import AGENTS, ENVIRONMENT, SANDBOXES, SIGNALMESH, run_command
from tests.support.ports import free_ports

INIT = ("keys", "init", "--to", "shares", "--hosts", "1", "--authentication", "keys")


class Apart:
    """The processes of a swarm in `directory`; `url` is that of its server."""

    def __init__(self, directory: Path) -> None:
        [port] = free_ports(1)
        self.directory, self.url = directory, f"nats://127.0.0.1:{port}"
        self._processes: list[asyncio.subprocess.Process] = []
        self._config = directory / "nats.conf"
        self._config.write_text(
            f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{directory}/store" }}\n'
            'include "shares/nats/users.conf"\n'
        )

    async def start_server(self) -> None:
        await self._start(str(find_binary()), "-c", str(self._config), environment={})

    async def start(self, *arguments: str, **environment: str) -> None:
        """A role."""
        await self._start(str(SIGNALMESH), *arguments, "--nats", self.url, environment=environment)

    async def _start(self, *command: str, environment: dict[str, str]) -> None:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=self.directory,
            env={**ENVIRONMENT, "SIGNALMESH_SPEED": "20", **environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            preexec_fn=functools.partial(die_with_parent, os.getpid()),
        )
        self._processes.append(process)

    def share(self, name: str) -> str:
        return str(self.directory / "shares" / name)

    async def stop(self) -> None:
        for process in reversed(self._processes):
            if process.returncode is None:
                process.terminate()
            await process.wait()


@pytest.fixture
async def apart(tmp_path: Path) -> AsyncIterator[Apart]:
    swarm = Apart(tmp_path)
    try:
        done = await run_command(tmp_path, *INIT, "--nats", swarm.url)
        assert done.code == 0, done
        assert f"no server runs at {swarm.url} yet" in done.out
        await swarm.start_server()
        watchdog = swarm.share("watchdog")
        await swarm.start("watchdog", SIGNALMESH_NATS_NKEY=f"{watchdog}/watchdog.nk", SIGNALMESH_KEYS=watchdog)
        for name in SANDBOXES:
            await swarm.start("sandbox", name, "--replica", "--keys", swarm.share(f"sandbox-{name}"))
        yield swarm
    finally:
        await swarm.stop()


@pytest.mark.slow
async def test_each_process_works_with_its_own_keys_alone(apart: Apart):
    subscriber = await Subscriber.open(apart.url, "swarm.>", "swarm")
    try:
        heartbeats = await subscriber.live(*AGENTS)
        assert {heartbeat["sandbox"] for heartbeat in heartbeats.values()} == {f"{name}-1" for name in SANDBOXES}
        await subscriber.more_decisions(5)
        elsewhere = apart.directory / "shares"  # no swarm.toml, no state directory, no key
        health = await run_command(elsewhere, "health", "sandbox", "--nats", apart.url)
        assert health.code == 0, health
        status = await run_command(elsewhere, "status", "--nats", apart.url)
        assert (status.code, "permission denied" in status.err) == (2, True), status
        operator = {"SIGNALMESH_NATS_NKEY": f"{apart.share('operator')}/operator.nk"}
        audit = await run_command(elsewhere, "audit", "--nats", apart.url, environment=operator)
        assert audit.code == 0, audit

        base = ("sandbox", "base", "--replica", "--keys", apart.share("sandbox-base"))
        one_more = await run_command(apart.directory, *base, "--nats", apart.url)
        assert one_more.code == 2, one_more
        assert "all 1 keys of hosts of sandbox base" in one_more.err

        rotated = await run_command(apart.directory, "keys", "rotate", "agent-research-1")
        assert rotated.code == 0, rotated
        served = await run_command(apart.directory, *INIT, "--nats", apart.url)
        assert (served.code, "has read its users again" in served.out) == (0, True), served
        await subscriber.back({"research-1": heartbeats["research-1"]["epoch"]})
        await subscriber.more_decisions(5)
        audit = await run_command(elsewhere, "audit", "--nats", apart.url, environment=operator)
        assert audit.code == 0, audit
    finally:
        await subscriber.close()
