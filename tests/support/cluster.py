"""A cluster of nats-servers on this machine, of which single ones can be killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bus.nats.credentials import Credentials, credentials_from
from bus.server.binary import find_binary
from bus.utils.processes import die_with_parent
from coordinator.security.tls_files import TlsFiles
from tests.support.collecting import GUARD_S
from tests.support.plain_client import connect_plainly
from tests.support.ports import free_ports


class Cluster:
    """`nodes` by name. Servers stay as they are: no process restarts them."""

    def __init__(
        self, directory: Path, size: int, tls: TlsFiles | None, users: str, credentials: Credentials | None
    ) -> None:
        """`tls`: with these certificates, clients and routes connect with TLS alone. `users`: lines about them;
        `credentials` are then those of one that may request JetStream.
        """
        self._tls = tls
        trusted = Credentials() if tls is None else credentials_from(tls.environment(mutual=False))
        self._credentials = credentials or trusted
        ports = free_ports(2 * size)
        self.names = tuple(f"n{number}" for number in range(1, size + 1))
        self._clients = dict(zip(self.names, ports[:size], strict=True))
        routes = dict(zip(self.names, ports[size:], strict=True))
        self._directory = directory
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        all_agents = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes.values())
        route = ""
        if tls is not None:
            files = (
                f'cert_file: "{tls.certificate("route")}", key_file: "{tls.key("route")}", ca_file: "{tls.authority}"'
            )
            route = f", tls {{ {files}, verify: true }}"
            all_agents = all_agents.replace("nats://", "tls://")
        for name in self.names:
            (directory / f"{name}.conf").write_text(
                f'server_name: {name}\nhost: 127.0.0.1\nport: {self._clients[name]}\n'
                f'log_file: "{directory / name}.log"\n'
                f'jetstream {{ store_dir: "{directory / name}" }}\n'
                f'cluster {{ name: c, host: 127.0.0.1, port: {routes[name]}, routes: [{all_agents}]{route} }}\n'
                f'{tls.server_block(mutual=False) if tls is not None else ""}{users}'
            )  # fmt: skip

    def url_of(self, name: str) -> str:
        return f"{'nats' if self._tls is None else 'tls'}://127.0.0.1:{self._clients[name]}"

    @property
    def url(self) -> str:
        """All members, as `--nats` takes them."""
        return ",".join(map(self.url_of, self.names))

    async def start(self, name: str) -> None:
        self._processes[name] = await asyncio.create_subprocess_exec(
            str(find_binary()), "-c", str(self._directory / f"{name}.conf"),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
            preexec_fn=functools.partial(die_with_parent, os.getpid()),
        )  # fmt: skip

    async def kill(self, name: str) -> None:
        """SIGKILL, as a crash would; back when it has ended."""
        process = self._processes.pop(name)
        process.send_signal(signal.SIGKILL)
        await process.wait()

    async def ready(self) -> None:
        """Wait until JetStream is answered by a cluster of this size."""
        import nats.errors

        async with asyncio.timeout(GUARD_S):
            options = self._credentials.options(self.url)
            client = await connect_plainly(self.url, max_reconnect_attempts=-1, error_cb=_ignore, **options)
            try:
                while True:
                    with contextlib.suppress(nats.errors.Error):
                        answer = json.loads((await client.request("$JS.API.INFO", b"", timeout=1)).data)
                        if "error" not in answer:
                            return
                    await asyncio.sleep(0.1)
            finally:
                await client.close()

    async def end(self) -> None:
        for name in list(self._processes):
            with contextlib.suppress(ProcessLookupError):
                await self.kill(name)


async def _ignore(_: Exception) -> None:
    pass


@asynccontextmanager
async def cluster(
    directory: Path,
    size: int = 3,
    tls: TlsFiles | None = None,
    users: str = "",
    credentials: Credentials | None = None,
) -> AsyncIterator[Cluster]:
    servers = Cluster(directory, size, tls, users, credentials)
    try:
        for name in servers.names:
            await servers.start(name)
        await servers.ready()
        yield servers
    finally:
        await servers.end()
