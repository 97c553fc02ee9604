"""Endpoint, key and address of sandboxes, as the environment gives them."""

from __future__ import annotations

import pytest

from bus.errors import UsageError
from coordinator.sandboxes.environment import Endpoint, public_url, take_key


def test_only_e2b_is_called_so():
    assert Endpoint.of({}).label == "E2B at https://api.e2b.app"
    for environ in (
        {"E2B_API_URL": "http://127.0.0.1:1"},
        {"E2B_SANDBOX_URL": "http://127.0.0.1:1"},
        {"E2B_DOMAIN": "e2b.app.example.org"},
        {"E2B_DOMAIN": "note2b.app"},
    ):
        assert Endpoint.of(environ).label.startswith("custom endpoint"), environ


@pytest.mark.parametrize(
    ("requested", "nats", "expected"),
    [
        ("wss://bus.example.org", None, "wss://bus.example.org"),
        (None, "tls://bus.example.org:4222", "tls://bus.example.org:4222"),
        ("tls://8.8.8.8:4222", "nats://127.0.0.1:4222", "tls://8.8.8.8:4222"),
    ],
)
def test_sandboxes_get_an_address_that_they_can_reach(requested, nats, expected):
    assert public_url(requested, nats, Endpoint.of({})) == expected


@pytest.mark.parametrize(
    "url", ["nats://10.0.0.1", "nats://localhost", "nats://bus", "nats://bus.local", "nats://[::1]:1"]
)
def test_an_address_that_is_not_public_is_refused_for_e2b_alone(url):
    with pytest.raises(UsageError, match="cannot reach"):
        public_url(url, None, Endpoint.of({}))
    with pytest.raises(UsageError, match="needs a URL"):
        public_url(None, url, Endpoint.of({}))
    assert public_url(url, None, Endpoint("http://127.0.0.1:1")) == url


def test_taking_the_key_removes_it_from_the_environment():
    environ = {"E2B_API_KEY": " a_key\n", "E2B_ACCESS_TOKEN": "x", "PATH": "y"}
    assert take_key(environ) == "a_key"
    assert environ == {"PATH": "y"}


@pytest.mark.parametrize("key", ["first_line\n# a remark", "two words", "ключ", "nul\0"])
def test_what_cannot_be_a_key_is_refused_and_not_printed(key):
    environ = {"E2B_API_KEY": key}
    with pytest.raises(UsageError, match="E2B_API_KEY: expected only the key") as refused:
        take_key(environ)
    assert key.split()[0] not in str(refused.value)
    assert environ == {}


@pytest.mark.parametrize(
    ("name", "value", "printed"),
    [
        ("E2B_DEBUG", "True", "E2B_DEBUG=true is not supported"),
        ("E2B_API_URL", "foo", "E2B_API_URL=foo: expected a URL"),
        ("E2B_API_URL", "https://somebody:hidden@", "E2B_API_URL=: expected a URL"),
        ("E2B_SANDBOX_URL", "ftp://a.example.org", "E2B_SANDBOX_URL=ftp://a.example.org: expected a URL"),
    ],
)
def test_a_variable_that_would_redirect_the_sdk_is_refused(name, value, printed):
    with pytest.raises(UsageError) as refused:
        take_key({"E2B_API_KEY": "a_key", name: value})
    assert printed in str(refused.value)
    assert "hidden" not in str(refused.value)
