"""A swarm with TLS, as `up` runs it: it works, recovers and is watched as without, and renews its certificates."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from bus.nats.credentials import CA_VARIABLE
from bus.nats.key_files import write_private
from coordinator.security.issuing import Issued, issue
from coordinator.security.tls_files import TlsFiles
from tests.acceptance.faults import kill_agents, kill_server
from tests.acceptance.swarm import AGENTS, Swarm, agents_toml

GUARD_S = 30.0
MUTUAL = "\n[nats]\ntls = true\ntls_verify_clients = true\n"


def files_of(swarm: Swarm) -> TlsFiles:
    return TlsFiles(swarm.directory / ".signalmesh")


def expires_soon(files: TlsFiles) -> None:
    """As if the server's certificate had been issued long ago."""
    authority = Issued(files.authority.read_bytes(), files.key("ca").read_bytes())
    now = datetime.now(UTC)
    issued = issue(authority, "old", ["localhost", "127.0.0.1"], ["server"], now, timedelta(days=5))
    write_private(files.key("server"), issued.key.decode())
    write_private(files.certificate("server"), issued.certificate.decode())


async def presented_until(swarm: Swarm) -> datetime:
    """The end of the certificate that the server presents to a new client, which verifies it."""
    parts = urlsplit(swarm.url)
    files = files_of(swarm)
    context = ssl.create_default_context(cafile=str(files.authority))
    context.load_cert_chain(files.certificate("client"), files.key("client"))
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    await reader.readline()
    await writer.start_tls(context, server_hostname=parts.hostname)
    found = ssl.cert_time_to_seconds(writer.get_extra_info("peercert")["notAfter"])
    writer.transport.abort()
    return datetime.fromtimestamp(found, UTC)


@pytest.mark.slow
@pytest.mark.parametrize("mutual", [False, True], ids=["TLS", "mutual TLS"])
async def test_it_recovers_and_renews_its_certificate_without_losing_a_message(tmp_path: Path, mutual: bool):
    async with Swarm(tmp_path, agents_toml(speed=20) + (MUTUAL if mutual else "")) as swarm:
        if not mutual:
            made = await swarm.command("keys", "init", "--tls", "--name", "broker.example.org")
            assert made.code == 0, made
            assert "broker.example.org" in made.out
        subscriber = await swarm.up("--fault-proxy")
        assert swarm.url.startswith("tls://127.0.0.1:")
        await subscriber.live(*AGENTS)
        await subscriber.decided(5)
        await kill_agents(swarm, subscriber, *AGENTS)
        await kill_server(swarm, subscriber)

        connection = subscriber.client.connected_url
        expires_soon(files_of(swarm))
        await subscriber.until(
            "the renewal", lambda: [alert for alert in subscriber.alerts if alert["code"] == "certificates_replaced"]
        )
        async with asyncio.timeout(GUARD_S):
            while (await presented_until(swarm)) < datetime.now(UTC) + timedelta(days=80):
                await asyncio.sleep(0.05)
        assert subscriber.client.is_connected
        assert subscriber.client.connected_url == connection
        await kill_agents(swarm, subscriber, AGENTS[0])
        await subscriber.more_decisions(20)

        for command in ("status", "audit", "doctor", "replay"):
            done = await swarm.command(command)
            assert done.code == 0, done
        [finding] = [
            each for each in (await swarm.command("doctor", "--json")).json["findings"] if each["check"] == "TLS"
        ]
        assert (finding["level"], "issuer CN=signalmesh" in finding["text"]) == ("ok", True)
        killed = await swarm.command("kill", "coordinator", "--json")
        assert (killed.json["outputs_lost"], killed.json["outputs_duplicated"]) == (0, 0)
        logs = [path.read_text() for path in (tmp_path / ".signalmesh" / "logs").iterdir()]
        assert "PRIVATE KEY" not in "".join(logs)


@pytest.mark.slow
async def test_mistakes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async with Swarm(tmp_path, agents_toml(speed=50)) as swarm:
        subscriber = await swarm.up("--tls")
        monkeypatch.delenv(CA_VARIABLE)
        other = TlsFiles(tmp_path / "other")
        other.ensure()
        plain = swarm.url.replace("tls://", "nats://")
        for arguments, problem in (
            (("status", "--state-dir", "other", "--nats", swarm.url), "not in the authorities of this system"),
            (("status", "--state-dir", "other", "--nats", plain), "not in the authorities of this system"),
            (("--nats-ca", str(other.authority), "status"), f"and that is not in {other.authority}"),
            (("--nats-ca", str(other.key("ca")), "status"), "expected a file with 'BEGIN CERTIFICATE'"),
            (("--nats-cert", str(other.certificate("client")), "status"), "--nats-cert-key"),
            (
                ("--nats-cert", str(other.certificate("client")), "--nats-cert-key", str(other.key("ca")), "status"),
                "do not belong together",
            ),
        ):
            done = await swarm.command(*arguments)
            assert done.code in (2, 3), done
            assert problem in done.err, done
            assert len(done.err.strip().splitlines()) == 1
        assert (await swarm.command("status", "--nats", plain)).code == 0

        parts = urlsplit(swarm.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(b"CONNECT {}\r\nPING\r\n")
        assert len((await reader.read()).splitlines()) == 1, "the first line of the server, and then its end"
        writer.close()
        await subscriber.until(
            "an alert", lambda: [one for one in subscriber.alerts if one["code"] == "client_refused"]
        )
        refused = (await swarm.command("status", "--json")).json["refused"]
        [named] = [alert["detail"] for alert in subscriber.alerts if alert["code"] == "client_refused"]
        assert named == {"who": "clients without a key at 127.0.0.1", "attempt": "connect without TLS", "count": 1}
        [counted] = refused["by"]
        assert (counted["who"], counted["attempt"], counted["count"]) == ("clients without a key", "connect", 1)


@pytest.mark.slow
async def test_a_server_without_tls_and_wrong_files_are_refused(tmp_path: Path):
    async with Swarm(tmp_path, agents_toml(speed=50)) as swarm:
        files = files_of(swarm)
        files.ensure()
        files.key("server").chmod(0o644)
        for arguments, problem in (
            (("up", "--port", "0"), "server-key.pem: others may read or write it (mode 0644)"),
            (("up", "--tls", "--nats", "nats://127.0.0.1:1"), "--tls: is about the embedded server"),
            (("keys", "list", "--tls"), "--tls: expected with init"),
            (("keys", "init", "--name", "x"), "--name: expected with --tls"),
            (("keys", "init", "--tls", "--name", "tls://x"), "expected a host name or an IP address"),
        ):
            done = await swarm.command(*arguments)
            assert (done.code, problem in done.err) == (2, True), done
            assert len(done.err.strip().splitlines()) == 1
