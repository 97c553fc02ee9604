"""The parts of the provider of E2B that need no service: verdicts, prices, endpoints, our own wheel."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import re
import subprocess
import sys
import zipfile
from io import BytesIO

import e2b.exceptions
import httpx
import pytest

from bus.errors import ConfigError, UsageError
from coordinator.config.e2b import E2bSettings, check_settings
from coordinator.sandboxes import wheel
from coordinator.sandboxes.e2b_client import Service
from coordinator.sandboxes.e2b_errors import GivenUp, Gone, is_illness, shown, verdict_on
from coordinator.sandboxes.environment import Endpoint, public_url, take_key
from tests.support.repository import ROOT

RAISED = {
    "AuthenticationException": "give up",
    "GitAuthException": "give up",
    "InvalidArgumentException": "give up",
    "TemplateException": "give up",
    "SandboxNotFoundException": "replace",
    "SandboxNotRunningException": "replace",
    "NotEnoughSpaceException": "replace",
    "SandboxUnreachableException": "retry",
    "TimeoutException": "retry",
    "RateLimitException": "retry",
    "ServiceBusyException": "retry",
    "GuestUnresponsiveException": "give up",
}


@pytest.mark.parametrize(("name", "verdict"), RAISED.items())
def test_each_exception_of_the_sdk_has_its_verdict(name, verdict):
    assert verdict_on(getattr(e2b.exceptions, name)("x")) == verdict


def test_no_exception_that_a_sandbox_can_raise_is_forgotten():
    """Those of modules that we do not use: git, builds, volumes, secrets; files are judged where they are read."""
    others = ("Git", "Build", "FileUpload", "Volume", "Secret", "FileNotFound")
    found = {
        name
        for name, kind in inspect.getmembers(e2b.exceptions, inspect.isclass)
        if issubclass(kind, Exception) and not name.startswith(others)
    }
    assert found - set(RAISED) == {"SandboxException", "NotFoundException"}


@pytest.mark.parametrize(
    ("status", "verdict"), [(400, "give up"), (403, "give up"), (404, "give up"), (500, "retry"), (None, "retry")]
)
def test_a_status_that_stays_is_not_asked_for_again(status, verdict):
    assert verdict_on(e2b.exceptions.SandboxException("x", status_code=status)) == verdict


def test_a_request_that_cannot_be_made_is_not_tried_again():
    with pytest.raises(UnicodeError) as raised:
        "ключ".encode("ascii")
    for error in (httpx.UnsupportedProtocol("x"), httpx.InvalidURL("x"), raised.value):
        assert verdict_on(error) == "give up"
    assert verdict_on(httpx.ConnectError("x")) == "retry"


def test_a_full_quota_is_no_illness_of_the_service():
    for error, unhealthy in (
        (httpx.ConnectError("x"), True),
        (e2b.exceptions.ServiceBusyException("x"), True),
        (e2b.exceptions.RateLimitException("x"), False),
        (e2b.exceptions.SandboxNotFoundException("x"), False),
    ):
        assert is_illness(type(error), error) is unhealthy


@pytest.mark.parametrize(
    ("error", "raised"),
    [(e2b.exceptions.AuthenticationException("x"), GivenUp), (e2b.exceptions.SandboxNotFoundException("x"), Gone)],
)
async def test_what_is_no_use_to_repeat_is_asked_once(error, raised):
    asked = 0

    async def call():
        nonlocal asked
        asked += 1
        raise error

    with pytest.raises(raised, match=r"^looking: x$"):
        await Service("key", lambda *_: None).ask("looking", call)
    assert asked == 1


async def test_an_ill_service_is_told_of_once_and_left_in_peace_after_six_failures(monkeypatch):
    monkeypatch.setattr("coordinator.sandboxes.e2b_client.FIRST_WAIT_S", 0.001)
    monkeypatch.setattr("coordinator.sandboxes.e2b_client.LONGEST_WAIT_S", 0.001)
    monkeypatch.setattr("coordinator.sandboxes.e2b_client.JITTER_S", 0.0)
    told: list[tuple[str, str]] = []
    asked = 0
    refused = asyncio.Event()

    async def call():
        nonlocal asked
        asked += 1
        raise httpx.ConnectError("nobody there")

    service = Service("key", lambda code, text: told.append((code, text)))
    unhealthy = service._unhealthy

    def watch(what, error):
        unhealthy(what, error)
        if type(error).__name__ == "CircuitBreakerError":
            refused.set()

    monkeypatch.setattr(service, "_unhealthy", watch)
    asking = asyncio.create_task(service.ask("looking", call))
    await refused.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert asked == 6
    assert len(told) == 1
    assert told[0] == (
        "provider_unavailable",
        "looking failed at E2B at https://api.e2b.app, and is tried again: nobody there",
    )


def test_the_price_is_that_of_the_configured_size():
    assert E2bSettings().price() == (None, "")
    price, source = E2bSettings(cpu=2, memory_mb=512).price()
    assert price == pytest.approx(2 * 0.0504 + 0.5 * 0.0162)
    assert "https://e2b.dev/pricing" in source
    assert E2bSettings(cpu=2, memory_mb=512, price_per_hour=1.0, price_source="x").price() == (1.0, "x")


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (E2bSettings(python="-c"), "k.python"),
        (E2bSettings(python="a\0b"), "k.python"),
        (E2bSettings(template="a\0"), "k.template"),
        (E2bSettings(env={"A": "x\0y"}), "k.env.A"),
    ],
)
def test_what_no_process_can_be_given_is_refused_by_its_key(settings, key):
    with pytest.raises(ConfigError, match=re.escape(key)):
        check_settings("f", "k", "far", settings)


def test_addresses_are_taken_as_e2b_takes_them():
    allow = (
        "203.0.113.7",
        "203.0.113.9/24",
        "2001:db8::/32",
        "example.org",
        "*.Example.org",
        "*.com",
        "xn--bcher-kva.de",
    )
    check_settings("f", "k", "far", E2bSettings(allow=allow, deny=("0.0.0.0/0", "::/0")))
    check_settings("f", "k", "far", E2bSettings(allow=allow[:3]))
    check_settings("f", "k", "far", E2bSettings(timeout_s=3, max_age_s=100))


def test_only_e2b_is_called_so():
    assert Endpoint.of({}).shown == "E2B at https://api.e2b.app"
    for environ in (
        {"E2B_API_URL": "http://127.0.0.1:1"},
        {"E2B_SANDBOX_URL": "http://127.0.0.1:1"},
        {"E2B_DOMAIN": "e2b.app.example.org"},
        {"E2B_DOMAIN": "note2b.app"},
    ):
        assert Endpoint.of(environ).shown.startswith("another endpoint than E2B's"), environ


@pytest.mark.parametrize(
    ("asked", "nats", "expected"),
    [
        ("wss://bus.example.org", None, "wss://bus.example.org"),
        (None, "tls://bus.example.org:4222", "tls://bus.example.org:4222"),
        ("tls://8.8.8.8:4222", "nats://127.0.0.1:4222", "tls://8.8.8.8:4222"),
    ],
)
def test_sandboxes_get_an_address_that_they_can_reach(asked, nats, expected):
    assert public_url(asked, nats, Endpoint.of({})) == expected


@pytest.mark.parametrize(
    "url", ["nats://10.0.0.1", "nats://localhost", "nats://bus", "nats://bus.local", "nats://[::1]:1"]
)
def test_an_address_that_is_not_public_is_refused_for_e2b_and_none_elsewhere(url):
    with pytest.raises(UsageError, match="cannot reach"):
        public_url(url, None, Endpoint.of({}))
    with pytest.raises(UsageError, match="needs an address"):
        public_url(None, url, Endpoint.of({}))
    assert public_url(url, None, Endpoint("http://127.0.0.1:1")) == url


def test_who_takes_the_key_leaves_none_behind():
    environ = {"E2B_API_KEY": " a_key\n", "E2B_ACCESS_TOKEN": "x", "PATH": "y"}
    assert take_key(environ) == "a_key"
    assert environ == {"PATH": "y"}


@pytest.mark.parametrize("key", ["first_line\n# a remark", "two words", "ключ", "nul\0"])
def test_what_cannot_be_a_key_is_refused_and_not_shown(key):
    environ = {"E2B_API_KEY": key}
    with pytest.raises(UsageError, match="E2B_API_KEY: expected the key alone") as refused:
        take_key(environ)
    assert key.split()[0] not in str(refused.value)
    assert environ == {}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("E2B_DEBUG", "True", "E2B_DEBUG=true: with it E2B's SDK asks another server"),
        ("E2B_API_URL", "foo", "E2B_API_URL=foo: expected an address"),
        ("E2B_API_URL", "https://somebody:hidden@", "E2B_API_URL=: expected an address"),
        ("E2B_SANDBOX_URL", "ftp://a.example.org", "E2B_SANDBOX_URL=ftp://a.example.org: expected an address"),
    ],
)
def test_who_would_make_the_sdk_ask_elsewhere_than_we_say_is_refused(name, value, said):
    with pytest.raises(UsageError) as refused:
        take_key({"E2B_API_KEY": "a_key", name: value})
    assert said in str(refused.value)
    assert "hidden" not in str(refused.value)


def test_what_the_sdk_raises_is_shown_without_the_key():
    assert shown(ValueError("Invalid header\nvalue 'a_key'"), "a_key") == "Invalid header value '[secret]'"


def test_our_wheel_has_the_code_that_runs_here_and_is_the_same_each_time(tmp_path):
    name, content = wheel.wheel()
    assert wheel.wheel() == (name, content)
    with zipfile.ZipFile(BytesIO(content)) as archive:
        names = archive.namelist()
        for module in ("bus/nats/connection.py", "agents/host/host.py", "coordinator/sandboxes/wheel.py"):
            assert archive.read(module) == (ROOT / module).read_bytes()
        assert not [member for member in names if "__pycache__" in member]
        recorded = [line.split(",")[0] for line in archive.read(names[-1]).decode().splitlines()]
        assert sorted(recorded) == sorted(names)
    (tmp_path / name).write_bytes(content)
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*pip, str(tmp_path / name)], check=True)
    script = "import coordinator.sandboxes.wheel as own; print(own.__file__); print(own.digest())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=True,
    )
    file, digest = done.stdout.split()
    assert file.startswith(str(target))
    assert digest == wheel.digest()
    assert (
        hashlib.sha256(wheel.lock_file()).digest() == hashlib.sha256((ROOT / "requirements.lock").read_bytes()).digest()
    )
