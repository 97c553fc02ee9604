"""What an attacker on the way, or one without TLS, can do to a server with TLS; without TLS all of it works."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from bus.errors import BusUnreachable
from bus.nats.bus import NatsBus
from bus.nats.credentials import Credentials, credentials_from
from bus.testing.tcp_proxy import Proxy, ProxyTls
from bus.utils.aio import start_tls
from coordinator.security.connections import HandshakeWatch
from coordinator.security.issuing import Issued, issue, new_authority
from coordinator.security.tls_files import TlsFiles
from coordinator.security.violations import Violation, ViolationLog
from tests.support.secured import pid_of, served

pytestmark = pytest.mark.slow

GUARD_S = 20.0
REFUSED_S = 1.0
CLIENT = "victim"


@dataclass
class Server:
    url: str
    files: TlsFiles
    log: Path
    is_open: bool
    mutual: bool

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0

    def credentials(self) -> Credentials:
        """Those of an honest client."""
        return Credentials() if self.is_open else credentials_from(self.files.environment(mutual=self.mutual))


@pytest.fixture(scope="module", params=["tls", "mutual", "open"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory, kind = tmp_path_factory.mktemp(request.param), request.param
    files = TlsFiles(directory)
    files.ensure()
    with served(directory, "" if kind == "open" else files.server_block(mutual=kind == "mutual")) as address:
        url = f"{'nats' if kind == 'open' else 'tls'}://127.0.0.1:{urlsplit(address).port}"
        yield Server(url, files, directory / "nats.log", kind == "open", kind == "mutual")


async def test_an_honest_client_connects(server: Server):
    bus = await NatsBus.connect(server.url, "swarm", CLIENT, REFUSED_S * 10, server.credentials())
    await bus.close()


# -- clients that do not protect their connection


def context_of(
    newest: ssl.TLSVersion | None = None, ciphers: str = "", certificate: tuple[str, str] | None = None
) -> ssl.SSLContext:
    """Of an attacker: it trusts everybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if newest is not None:
        context.minimum_version = context.maximum_version = newest
        context.set_ciphers("ALL:@SECLEVEL=0")
    if ciphers:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(ciphers)
    if certificate is not None:
        context.load_cert_chain(*certificate)
    return context


async def is_answered(server: Server, context: ssl.SSLContext | None) -> bool:
    """Whether the server answers a client that connects like this; without TLS if the server has none."""
    reader, plain = await asyncio.open_connection("127.0.0.1", server.port)
    writer = plain
    try:
        async with asyncio.timeout(GUARD_S):
            info = json.loads((await reader.readline()).removeprefix(b"INFO "))
            if context is not None and info.get("tls_required"):
                writer = await start_tls(reader, plain, context, "127.0.0.1")
            writer.write(b'CONNECT {"verbose":false}\r\nPING\r\n')
            return (await reader.readline()).startswith(b"PONG")
    except OSError:
        return False
    finally:
        plain.transport.abort()


async def test_a_client_without_tls_is_cut_off_and_counted(server: Server):
    log, watch, directory = ViolationLog(server.log), HandshakeWatch(), server.log.parent
    await watch.look(directory, pid_of(directory))
    _, gone = await asyncio.open_connection("127.0.0.1", server.port)
    gone.close()  # as whoever looks whether the port is open: no attempt
    assert await is_answered(server, None) is server.is_open
    if not server.is_open:
        found: list[Violation] = []
        async with asyncio.timeout(GUARD_S):
            while not found:
                found += log.read(await watch.look(directory, pid_of(directory)))
        assert [(each.address.rpartition(":")[0], each.key, each.attempt, each.subject) for each in found] == [
            ("127.0.0.1", "", "connect", "without TLS")
        ]
        assert log.read(await watch.look(directory, pid_of(directory))) == []


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
async def test_a_client_with_old_tls(server: Server, version: str):
    log = ViolationLog(server.log)
    assert await is_answered(server, context_of(ssl.TLSVersion[version])) is server.is_open
    if not server.is_open:
        async with asyncio.timeout(GUARD_S):
            while "with TLS older than 1.2" not in [violation.subject for violation in log.read({})]:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("ciphers", ["aNULL:@SECLEVEL=0", "eNULL:@SECLEVEL=0", "AES128-SHA256:@SECLEVEL=0"])
async def test_a_client_with_a_cipher_that_proves_or_hides_nothing(server: Server, ciphers: str):
    assert await is_answered(server, context_of(ciphers=ciphers)) is server.is_open


@pytest.mark.parametrize("kind", ["none", "foreign", "server's"])
async def test_a_client_without_a_client_certificate_of_the_authority(server: Server, tmp_path: Path, kind: str):
    if not (server.mutual or server.is_open):
        pytest.skip("it is mutual TLS that demands one")
    certificate = None
    if kind != "none":
        now = datetime.now(UTC)
        foreign = issue(new_authority("foreign", now), "x", [], ["client"], now)
        certificate = write(tmp_path, foreign)
    if kind == "server's":
        certificate = str(server.files.certificate("server")), str(server.files.key("server"))
    assert await is_answered(server, context_of(certificate=certificate)) is server.is_open


def write(directory: Path, issued: Issued) -> tuple[str, str]:
    files = directory / "attacker.pem", directory / "attacker-key.pem"
    files[0].write_bytes(issued.certificate)
    files[1].write_bytes(issued.key)
    return str(files[0]), str(files[1])


# -- an attacker between client and server

Presented = Callable[[TlsFiles, datetime], Issued]


def authority_of(files: TlsFiles) -> Issued:
    return Issued(files.authority.read_bytes(), files.key("ca").read_bytes())


def foreign(_: TlsFiles, now: datetime) -> Issued:
    return issue(new_authority("foreign", now), "x", ["127.0.0.1"], ["server"], now)


def same_name(files: TlsFiles, now: datetime) -> Issued:
    subject = files.info("ca").subject.removeprefix("CN=")
    return issue(new_authority(subject, now), "x", ["127.0.0.1"], ["server"], now)


def self_signed(_: TlsFiles, now: datetime) -> Issued:
    return new_authority("127.0.0.1", now)


def other_name(files: TlsFiles, now: datetime) -> Issued:
    return issue(authority_of(files), "x", ["broker.example.org", "127.0.0.2"], ["server"], now)


def expired(files: TlsFiles, now: datetime) -> Issued:
    return issue(authority_of(files), "x", ["127.0.0.1"], ["server"], now - timedelta(days=9), timedelta(days=8))


def not_yet(files: TlsFiles, now: datetime) -> Issued:
    return issue(authority_of(files), "x", ["127.0.0.1"], ["server"], now + timedelta(days=9))


def clients(files: TlsFiles, now: datetime) -> Issued:
    return issue(authority_of(files), "x", ["127.0.0.1"], ["client"], now)


@asynccontextmanager
async def between(server: Server, accepting: ssl.SSLContext) -> AsyncIterator[Proxy]:
    """An attacker who is the server to clients; of a server without TLS it needs no certificate."""
    certificate = None if not server.mutual else server.credentials().certificate
    tls = None if server.is_open else lambda: ProxyTls(accepting, context_of(certificate=certificate))
    async with Proxy(server.url, None, tls) as proxy:
        yield proxy


async def is_deceived(proxy_url: str, server: Server) -> bool:
    """Whether an honest client takes the attacker for the server."""
    try:
        bus = await NatsBus.connect(proxy_url, "swarm", CLIENT, REFUSED_S, server.credentials())
    except BusUnreachable:
        return False
    await bus.close()
    return True


@pytest.mark.parametrize(
    "presented",
    [foreign, same_name, self_signed, other_name, expired, not_yet, clients],
    ids=lambda value: value.__name__,
)
async def test_an_attacker_with_a_wrong_certificate(server: Server, tmp_path: Path, presented: Presented):
    accepting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    accepting.load_cert_chain(*write(tmp_path, presented(server.files, datetime.now(UTC))))
    async with between(server, accepting) as proxy:
        assert await is_deceived(proxy.url, server) is server.is_open


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_an_attacker_who_offers_only_old_tls_with_the_server_s_own_certificate(server: Server):
    accepting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    accepting.load_cert_chain(server.files.certificate("server"), server.files.key("server"))
    accepting.minimum_version = accepting.maximum_version = ssl.TLSVersion.TLSv1_1
    accepting.set_ciphers("ALL:@SECLEVEL=0")
    async with between(server, accepting) as proxy:
        assert await is_deceived(proxy.url, server) is server.is_open


@pytest.mark.parametrize("changed", [{"tls_required": False}, {"tls_required": False, "tls_available": True}, None])
async def test_an_attacker_who_takes_tls_out_of_the_first_line(server: Server, changed: dict[str, bool] | None):
    """The client must send nothing: its CONNECT has its name, and the signature of a nonce that the attacker chose."""
    sent = bytearray()
    handlers: set[asyncio.Task[None] | None] = set()

    async def strip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.current_task())
        upstream, to_server = await asyncio.open_connection("127.0.0.1", server.port)
        info = json.loads((await upstream.readline()).removeprefix(b"INFO "))
        to_server.transport.abort()
        for field in ("tls_required", "tls_verify"):
            info.pop(field, None)
        writer.write(b"INFO " + json.dumps({**info, **(changed or {})}).encode() + b"\r\n")
        with contextlib.suppress(OSError):
            while data := await reader.read(4096):
                sent.extend(data)
                if b"PING\r\n" in data:
                    writer.write(b"PONG\r\n")
        writer.transport.abort()

    listener = await asyncio.start_server(strip, "127.0.0.1", 0)
    async with listener:
        url = f"{urlsplit(server.url).scheme}://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        assert await is_deceived(url, server) is server.is_open
        assert (b"CONNECT" in sent) is server.is_open
        await asyncio.gather(*(task for task in handlers if task is not None))
