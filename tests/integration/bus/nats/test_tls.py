"""The bus behind TLS: server-first, client-first and WebSocket, with a seed; against a real server and certificates."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import nkeys
import pytest
import trustme

from bus.errors import BusUnreachable, TlsFault, UsageError
from bus.nats.bus import NatsBus
from bus.nats.credentials import Credentials, credentials_from
from bus.nats.key_files import write_private
from bus.nats.streams import StreamLimits, ensure_streams
from bus.server.binary import find_binary
from bus.utils.processes import die_with_parent
from coordinator.security.tls_files import TlsFiles
from signalmesh import python_command
from tests.support.cluster import cluster
from tests.support.collecting import GUARD_S
from tests.support.jwts import ACCOUNT_LIMITS, UNLIMITED, key_pair, signed
from tests.support.ports import free_ports

AUTHORITY = trustme.CA()


async def do_nothing() -> None:
    pass


def new_seed() -> tuple[str, str]:
    """A user's seed, and the public key that belongs to it."""
    raw = os.urandom(32)
    seed = nkeys.encode_seed(raw, nkeys.PREFIX_BYTE_USER)
    pair = nkeys.from_seed(bytearray(seed))
    return seed.decode(), pair.public_key.decode()


@dataclass
class TlsServer:
    directory: Path
    first: bool = False
    more: str = ""
    """Further settings of TLS."""
    host: str = "127.0.0.1"
    """What the certificate is for."""
    not_before: datetime = datetime(2019, 1, 1, tzinfo=UTC)
    not_after: datetime | None = None
    seed: str = ""
    process: subprocess.Popen[bytes] | None = None
    ports: list[int] = field(default_factory=lambda: free_ports(2))

    def configure(self) -> None:
        certificate = AUTHORITY.issue_cert(self.host, "localhost", not_before=self.not_before, not_after=self.not_after)
        key, chain = self.directory / "server.key", self.directory / "server.pem"
        certificate.private_key_pem.write_to_path(str(key))
        for part in certificate.cert_chain_pems:
            part.write_to_path(str(chain), append=True)
        self.seed, public = new_seed()
        tls = f'cert_file: "{chain}", key_file: "{key}"'
        (self.directory / "nats.conf").write_text(
            f'host: 127.0.0.1\nport: {self.ports[0]}\njetstream {{ store_dir: "{self.directory}" }}\n'
            f"tls {{ {tls}, handshake_first: {str(self.first).lower()}, {self.more} }}\n"
            f"websocket {{ host: 127.0.0.1, port: {self.ports[1]}, tls {{ {tls} }} }}\n"
            f"authorization {{ users: [ {{ nkey: {public} }} ] }}\n"
        )

    def start(self) -> None:
        self.process = subprocess.Popen(
            [str(find_binary()), "-c", str(self.directory / "nats.conf")],
            stderr=subprocess.DEVNULL,
            preexec_fn=functools.partial(die_with_parent, os.getpid()),  # noqa: PLW1509 - a system call, no more
        )

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def url(self, scheme: str) -> str:
        return f"{scheme}://127.0.0.1:{self.ports[1] if scheme == 'wss' else self.ports[0]}"

    @property
    def credentials(self) -> Credentials:
        ca = AUTHORITY.cert_pem.bytes().decode()
        return Credentials(nkey_seed=self.seed, ca=ca, tls_first=self.first)


@contextmanager
def running(created: TlsServer) -> Iterator[TlsServer]:
    created.configure()
    created.start()
    try:
        yield created
    finally:
        created.kill()


@pytest.fixture(params=[False, True], ids=["server first", "client first"])
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[TlsServer]:
    with running(TlsServer(tmp_path, first=request.param)) as created:
        yield created


async def test_a_creds_file_is_a_jwt_and_a_seed(tmp_path):
    _, operator = key_pair(nkeys.PREFIX_BYTE_OPERATOR)
    _, account = key_pair(nkeys.PREFIX_BYTE_ACCOUNT)
    seed, user = key_pair(nkeys.PREFIX_BYTE_USER)
    names = [pair.public_key.decode() for pair in (operator, account, user)]
    known = signed({"type": "account", "version": 2, "limits": ACCOUNT_LIMITS}, operator, names[1])
    token = signed({"type": "user", "version": 2, **UNLIMITED, "pub": {}, "sub": {}}, account, names[2])
    server = TlsServer(tmp_path)
    (tmp_path / "nats.conf").write_text(
        f"host: 127.0.0.1\nport: {server.ports[0]}\nresolver: MEMORY\n"
        f"operator: {signed({'type': 'operator', 'version': 2}, operator, names[0])}\n"
        f"resolver_preload: {{ {names[1]}: {known} }}\n"
    )
    write_private(
        tmp_path / "far.creds",
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n",
    )
    server.start()
    try:
        credentials = credentials_from({"SIGNALMESH_NATS_CREDS": str(tmp_path / "far.creds")})
        bus = await NatsBus.connect(server.url("nats"), "swarm", "test", GUARD_S, credentials)
        await bus.close()
        with pytest.raises(BusUnreachable, match=r"(?i)authorization violation"):
            await NatsBus.connect(server.url("nats"), "swarm", "test", 2.0, Credentials())
    finally:
        server.kill()


@pytest.mark.filterwarnings("ignore:parameter 'timeout' of type:DeprecationWarning")  # nats-py's call of aiohttp
@pytest.mark.parametrize("scheme", ["tls", "wss"])
async def test_a_bus_behind_tls_works_and_comes_back_after_its_server_died(server, scheme):
    if scheme == "wss" and server.first:
        pytest.skip("a WebSocket's TLS is always first")
    async with asyncio.timeout(GUARD_S):
        bus = await NatsBus.connect(server.url(scheme), "swarm", "test", GUARD_S, server.credentials)
        try:
            await ensure_streams(bus)
            before = bus.connection.generation
            down = asyncio.Event()
            bus.watch_connection(down.set, do_nothing)
            server.kill()
            await down.wait()
            server.start()
            await bus.wait_connected()
            assert bus.connection.generation > before
            await ensure_streams(bus)
        finally:
            await bus.close()


@pytest.mark.slow
async def test_a_certificate_of_another_authority_is_refused_by_name(server):
    unknown_writer = trustme.CA().cert_pem.bytes().decode()
    credentials = Credentials(nkey_seed=server.seed, ca=unknown_writer, tls_first=server.first)
    with pytest.raises(BusUnreachable, match="certificate verify failed"):
        await NatsBus.connect(server.url("tls"), "swarm", "test", 2.0, credentials)


@pytest.mark.slow
async def test_an_unknown_user_is_refused_and_no_seed_is_printed(server):
    seed, _ = new_seed()
    wrong = Credentials(nkey_seed=seed, ca=server.credentials.ca, tls_first=server.first)
    with pytest.raises(BusUnreachable, match=r"(?i)authorization violation") as caught:
        await NatsBus.connect(server.url("tls"), "swarm", "test", 2.0, wrong)
    assert seed not in str(caught.value) + repr(wrong)


async def refusal(url: str, credentials: Credentials) -> BusUnreachable:
    """The error of a connection, once the server listens."""
    parts = urlsplit(url)
    async with asyncio.timeout(GUARD_S):
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(parts.hostname, parts.port)
                writer.close()
                break
    with pytest.raises(BusUnreachable) as caught:
        await NatsBus.connect(url, "swarm", "test", 1.5, credentials)
    return caught.value


@pytest.mark.slow
@pytest.mark.parametrize("first", [False, True], ids=["server first", "client first"])
@pytest.mark.parametrize("scheme", ["tls", "nats"])
async def test_a_server_that_demands_a_client_certificate_is_refused_by_name(tmp_path, first, scheme):
    ca = tmp_path / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(str(ca))
    with running(TlsServer(tmp_path, first=first, more=f'ca_file: "{ca}", verify: true')) as server:
        error = await refusal(server.url(scheme), server.credentials)
    assert isinstance(error, TlsFault)
    assert "the server demands a client certificate" in str(error)
    assert "--nats-cert (SIGNALMESH_NATS_CERT), --nats-cert-key (SIGNALMESH_NATS_CERT_KEY)" in str(error)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "scheme", "ca", "text"),
    [
        ({}, "tls", False, "authority that is known here.*: name a file .*--nats-ca .SIGNALMESH_NATS_CA"),
        ({}, "wss", False, "authority that is known here.*: name a file .*--nats-ca .SIGNALMESH_NATS_CA"),
        ({}, "tls", False, "its issuer is '.*trustme.*', and that is not in the authorities of this system"),
        ({"host": "example.org"}, "tls", True, "is for another host: it is for example.org, localhost .*: connect by"),
        (
            {"not_after": datetime(2020, 1, 1, tzinfo=UTC)},
            "tls",
            True,
            "has expired: it is valid from 2019-01-01 00:00 UTC to 2020-01-01 00:00 UTC, and .* clock says 20",
        ),
        (
            {"not_before": datetime(2100, 1, 1, tzinfo=UTC), "not_after": datetime(2101, 1, 1, tzinfo=UTC)},
            "tls",
            True,
            "is not valid yet: it is valid from 2100-01-01 00:00 UTC to 2101-01-01 00:00 UTC.*: set the clock",
        ),
    ],
    ids=["authority", "authority of a WebSocket", "issuer", "host", "expired", "not yet valid"],
)
@pytest.mark.filterwarnings("ignore:parameter 'timeout' of type:DeprecationWarning")  # nats-py's call of aiohttp
async def test_a_fault_of_tls_names_its_kind_and_the_option(tmp_path, settings, scheme, ca, text):
    with running(TlsServer(tmp_path, **settings)) as server:
        credentials = server.credentials if ca else replace(server.credentials, ca="")
        error = await refusal(server.url(scheme), credentials)
    assert isinstance(error, TlsFault)
    assert re.search(text, str(error))


@pytest.mark.parametrize("first", [False, True], ids=["server first", "client first"])
async def test_a_server_that_expects_the_other_one_to_begin_is_reported_with_the_option(tmp_path, first):
    with running(TlsServer(tmp_path, first=first)) as server:
        error = await refusal(server.url("tls"), replace(server.credentials, tls_first=not first))
    option = "add --nats-tls-first" if first else "leave out --nats-tls-first"
    assert f"{option} (SIGNALMESH_NATS_TLS_FIRST)" in str(error)


async def test_a_handshake_that_is_abandoned_is_not_waited_for():
    """Whoever cuts it off must not wait for the end of a stream that nobody tells of it."""
    started = asyncio.Event()

    async def says_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        started.set()
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(says_nothing, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with listener, asyncio.timeout(GUARD_S):
        with pytest.raises(BusUnreachable):
            await NatsBus.connect(f"tls://127.0.0.1:{port}", "swarm", "test", 0.3, Credentials(tls_first=True))
        assert started.is_set()


def test_files_are_named_by_the_environment_and_mistakes_by_option(tmp_path):
    seed, _ = new_seed()
    write_private(tmp_path / "seed", seed + "\n")
    assert credentials_from({"SIGNALMESH_NATS_NKEY": str(tmp_path / "seed")}).nkey_seed == seed
    assert credentials_from({}) == Credentials()
    write_private(tmp_path / "other", "nothing of the kind")
    for variable, option in (
        ("SIGNALMESH_NATS_CREDS", "--nats-creds"),
        ("SIGNALMESH_NATS_NKEY", "--nats-nkey"),
        ("SIGNALMESH_NATS_CA", "--nats-ca"),
    ):
        with pytest.raises(UsageError, match=f"^{option} .*cannot be read"):
            credentials_from({variable: str(tmp_path / "missing")})
        with pytest.raises(UsageError, match=f"^{option} .*expected a file with"):
            credentials_from({variable: str(tmp_path / "other")})


def test_a_command_reaches_a_server_by_the_files_that_its_options_name(tmp_path):
    server = TlsServer(tmp_path)
    server.configure()
    server.start()
    try:
        write_private(tmp_path / "seed", server.seed)
        AUTHORITY.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        done = subprocess.run(
            python_command("--nats-nkey", "seed", "--nats-ca", "ca.pem", "status", "--nats", server.url("tls")),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 3
        assert "no swarm named 'swarm' was started there" in done.stderr
    finally:
        server.kill()


async def test_a_cluster_has_tls_for_its_clients_and_between_its_servers(tmp_path):
    files = TlsFiles(tmp_path)
    files.ensure()
    async with cluster(tmp_path, tls=files) as servers:
        credentials = credentials_from(files.environment(mutual=False))
        bus = await NatsBus.connect(servers.url, "swarm", "test", GUARD_S, credentials)
        try:
            await ensure_streams(bus, StreamLimits(max_bytes=16 << 20, replicas=3))
            down = asyncio.Event()
            bus.watch_connection(down.set, do_nothing)
            connected = bus.connection.client.connected_url
            assert connected is not None
            [name] = [name for name in servers.names if servers.url_of(name).endswith(f":{connected.port}")]
            await servers.kill(name)
            async with asyncio.timeout(GUARD_S):
                await down.wait()
                await bus.wait_connected()
            assert bus.connection.client.connected_url != connected
        finally:
            await bus.close()


NO_AIOHTTP = """
import sys
sys.modules["aiohttp"] = None  # as where it is not installed: an import of it fails, and there is no spec
from coordinator.cli.main import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [("status",), ("up",), ("watchdog",), ("doctor",)],
    ids=" ".join,
)
@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_a_websocket_without_aiohttp_is_an_error_with_its_remedy(tmp_path, command, scheme):
    done = subprocess.run(
        [sys.executable, "-c", NO_AIOHTTP, *command, "--nats", f"{scheme}://user:hidden@127.0.0.1:1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=GUARD_S,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "pip install 'signalmesh[wss]'" in done.stderr
    assert "hidden" not in done.stderr
    assert "Traceback" not in done.stderr
