"""The certificates in a state directory: made, renewed, and refused with what is wrong."""

from __future__ import annotations

import dataclasses
import os
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bus.errors import UsageError
from bus.nats.credentials import CA_VARIABLE, CERTIFICATE_KEY_VARIABLE, CERTIFICATE_VARIABLE
from coordinator.config.settings import NatsSettings
from coordinator.security.issuing import issue, new_authority
from coordinator.security.tls_files import (
    AUTHORITY,
    CERTIFICATES,
    LOOK_S,
    ServedTls,
    TlsFiles,
    cli_options,
    found_names,
    plain_remarks,
    serve_tls,
    use_authority,
)
from tests.support.secured import default_swarm

NOW = datetime(2030, 5, 1, 12, tzinfo=UTC)


class Clock:
    """Both clocks of the certificates, set by hand."""

    def __init__(self) -> None:
        self.now, self.monotonic_s = NOW, 0.0

    def __call__(self) -> datetime:
        return self.now

    def monotonic(self) -> float:
        return self.monotonic_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def files(tmp_path: Path, clock: Clock) -> TlsFiles:
    return TlsFiles(tmp_path, clock)


def test_everything_is_made_once_and_keys_are_for_their_owner_alone(files: TlsFiles):
    assert not files.exists()
    assert files.ensure(["Broker.Example.org", "10.0.0.7"]) == (AUTHORITY, *CERTIFICATES)
    assert files.exists()
    assert stat.S_IMODE(files.directory.stat().st_mode) == 0o700
    for name in (AUTHORITY, *CERTIFICATES):
        assert stat.S_IMODE(files.key(name).stat().st_mode) == 0o600
        files.check(name)
    assert files.ensure(["broker.example.org"]) == ()
    names = {"localhost", "127.0.0.1", "::1", "broker.example.org", "10.0.0.7"}
    assert set(files.info("server").names) == set(files.info("route").names) == names
    assert files.info("client").names == ()


def test_further_names_are_added_to_those_that_are_there(files: TlsFiles):
    files.ensure(["one.example"])
    authority = files.authority.read_bytes()
    assert files.ensure(["two.example"]) == ("server", "route")
    assert {"one.example", "two.example"} < set(files.info("server").names)
    assert files.authority.read_bytes() == authority


@pytest.mark.parametrize("name", ["", "tls://x:4222", "a b", "-x", "x:4222", "x\n", "*", "1.2.3.4/8", "a" * 254])
def test_what_is_no_name_is_refused(files: TlsFiles, name: str):
    with pytest.raises(UsageError, match=r"--name .*: expected a host name or an IP address"):
        files.ensure([name])


def test_names_of_this_machine_are_found():
    found = found_names("tls://u:p@broker.example:4222,wss://[2001:db8::1]:443", None, "[")
    assert {"localhost", "127.0.0.1", "::1", "broker.example", "2001:db8::1"} <= set(found)
    assert not any("%" in name for name in found)


def test_a_certificate_is_renewed_before_it_expires_with_its_names(files: TlsFiles, clock: Clock):
    files.ensure(["one.example"])
    before, names = files.info("server"), set(files.info("server").names)
    clock.now += timedelta(days=59)
    assert files.ensure() == ()
    clock.now += timedelta(days=2)
    assert files.ensure() == tuple(CERTIFICATES)
    assert files.info("server").not_after > before.not_after
    assert set(files.info("server").names) == names
    clock.now += timedelta(days=400)  # it has expired: no swarm ran
    assert files.ensure() == tuple(CERTIFICATES)


def test_a_clock_that_is_off_is_named_with_both_dates(files: TlsFiles, clock: Clock):
    files.ensure()
    clock.now = NOW - timedelta(days=3)
    text = r"ca.pem is not valid yet: it is valid from 2030-05-01 11:00 UTC to 2040-\S+ 12:00 UTC, and this machine's "
    with pytest.raises(UsageError, match=text + "clock says 2030-04-28 12:00 UTC; set the clock"):
        files.ensure()
    clock.now = NOW + timedelta(days=4000)
    with pytest.raises(
        UsageError, match=r"ca.pem has expired: .* clock says 2041-.*for another authority end the swarm"
    ):
        files.ensure()


def damage(files: TlsFiles, what: str) -> None:
    other = new_authority("another", NOW)
    match what:
        case "empty":
            files.certificate("server").write_bytes(b"")
        case "text":
            files.certificate("server").write_text("nothing of the kind")
        case "no key":
            files.key("server").unlink()
        case "empty key":
            files.key("server").write_bytes(b"")
        case "readable":
            files.key("server").chmod(0o644)
        case "swapped":
            files.key("server").write_bytes(files.key("client").read_bytes())
        case "foreign":
            issued = issue(other, "x", ["localhost"], ["server"], NOW)
            files.certificate("server").write_bytes(issued.certificate)
            files.key("server").write_bytes(issued.key)
        case "other authority":
            files.authority.write_bytes(other.certificate)
        case "readable authority":
            files.key(AUTHORITY).chmod(0o640)
            files.certificate("server").unlink()
        case "no authority's key":
            files.key(AUTHORITY).unlink()
            files.certificate("server").unlink()


@pytest.mark.parametrize(
    ("what", "problem"),
    [
        ("empty", "server.pem: expected a certificate in PEM; remove"),
        ("text", "server.pem: expected a certificate in PEM; remove"),
        ("no key", "server-key.pem: cannot be read: No such file"),
        ("empty key", "server-key.pem: expected a private key in PEM"),
        ("readable", r"server-key.pem: others may read or write it \(mode 0644\): chmod 600"),
        ("swapped", "server-key.pem: the key is not that of the certificate; remove"),
        ("foreign", "server.pem: its issuer is 'CN=another', which is not the authority in .*ca.pem"),
        ("other authority", r"server.pem: its issuer is 'CN=signalmesh .*', which is not .* \('CN=another'\)"),
        ("readable authority", r"ca-key.pem: others may read or write it \(mode 0640\)"),
        ("no authority's key", "ca-key.pem: there is no such file, and .*server.pem has to be issued again"),
    ],
)
def test_what_is_wrong_with_a_file_is_named_with_the_remedy(files: TlsFiles, what: str, problem: str):
    files.ensure()
    damage(files, what)
    with pytest.raises(UsageError, match=problem) as caught:
        files.ensure()
    assert "\n" not in str(caught.value)


def test_the_authority_s_key_may_be_elsewhere_while_nothing_is_issued(files: TlsFiles):
    files.ensure()
    files.key(AUTHORITY).unlink()
    assert files.ensure() == ()


def test_a_running_swarm_notices_new_files_and_renews_old_ones(files: TlsFiles, clock: Clock):
    served = ServedTls(files, mutual=False, names=(), clock=clock.monotonic)
    assert served.made == (AUTHORITY, *CERTIFICATES)
    assert served.update() is None
    files.ensure(["new.example"])  # `keys init --tls` beside it
    assert served.update() == ()
    assert served.update() is None
    clock.now += timedelta(days=70)
    assert served.update() is None  # dates are looked at now and then
    clock.monotonic_s += LOOK_S
    assert served.update() == tuple(CERTIFICATES)
    assert served.update() is None
    damage(files, "swapped")
    os.utime(files.key("server"))
    with pytest.raises(UsageError, match="not that of the certificate"):
        served.update()
    assert served.update() is None  # said once


def test_the_server_demands_a_client_s_certificate_with_mutual_tls_alone(files: TlsFiles):
    assert "verify" not in files.server_block(mutual=False)
    assert "verify: true" in files.server_block(mutual=True)
    assert set(files.environment(mutual=False)) == {CA_VARIABLE}
    assert set(files.environment(mutual=True)) == {CA_VARIABLE, CERTIFICATE_VARIABLE, CERTIFICATE_KEY_VARIABLE}


def test_tls_is_on_by_the_directory_the_option_or_the_setting(tmp_path: Path):
    config = default_swarm()

    def serve(
        state_dir: Path, *, asked: bool = False, url: str | None = None, tls: bool = False, mutual: bool = False
    ) -> ServedTls | None:
        changed = dataclasses.replace(config, nats=NatsSettings(tls=tls, tls_verify_clients=mutual))
        return serve_tls(changed, state_dir, asked=asked, url=url, public=None)

    assert serve(tmp_path / "none") is None
    assert not (tmp_path / "none").exists()
    assert serve(tmp_path / "asked", asked=True) is not None
    assert serve(tmp_path / "asked") is not None  # the directory decides from now on
    assert serve(tmp_path / "set", tls=True) is not None
    assert serve(tmp_path / "asked", url="nats://127.0.0.1:4222") is None
    with pytest.raises(UsageError, match="--tls: is about the embedded server"):
        serve(tmp_path / "asked", asked=True, url="nats://127.0.0.1:4222")
    with pytest.raises(UsageError, match=r"nats\.tls_verify_clients: expected with TLS"):
        serve(tmp_path / "none", mutual=True)
    mutual = serve(tmp_path / "asked", mutual=True)
    assert mutual is not None
    assert "verify: true" in mutual.block


def test_commands_trust_the_authority_of_the_state_directory(files: TlsFiles, monkeypatch: pytest.MonkeyPatch):
    for variable in (CA_VARIABLE, CERTIFICATE_VARIABLE, CERTIFICATE_KEY_VARIABLE):
        monkeypatch.setenv(variable, "")
    state_dir = files.directory.parent
    use_authority(state_dir, "tls://127.0.0.1:4222")
    assert not os.environ[CA_VARIABLE]
    files.ensure()
    use_authority(state_dir, "nats://127.0.0.1:4222")
    assert not os.environ[CA_VARIABLE]
    use_authority(state_dir, "tls://127.0.0.1:4222")
    assert os.environ[CA_VARIABLE] == str(files.authority)
    ssl.create_default_context(cafile=os.environ[CA_VARIABLE]).load_cert_chain(
        os.environ[CERTIFICATE_VARIABLE], os.environ[CERTIFICATE_KEY_VARIABLE]
    )
    assert f"--tlsca {files.authority}" in cli_options("tls://x")
    assert cli_options("nats://x") == ""
    monkeypatch.setenv(CA_VARIABLE, "mine.pem")
    use_authority(state_dir, "tls://127.0.0.1:4222")
    assert os.environ[CA_VARIABLE] == "mine.pem"


def test_an_address_of_another_machine_without_tls_is_said():
    assert (
        list(plain_remarks(None, "nats://127.0.0.1:1", "nats://localhost", "tls://a.example", "wss://b.example")) == []
    )
    [remark] = plain_remarks("tls://a.example,nats://user:secret@b.example:4222")
    assert remark.startswith("nats://b.example:4222: messages pass there without TLS")
