"""Which proxy the environment names for an address."""

from __future__ import annotations

import os

import pytest

from bus.utils.proxies import proxy_note

COLLECTOR = "http://collector.example.com:4318/v1/traces"


@pytest.mark.parametrize(
    ("variables", "url", "named"),
    [
        ({"HTTP_PROXY": "p:1"}, COLLECTOR, "HTTP_PROXY"),
        ({"http_proxy": "p:1", "HTTP_PROXY": "q:1"}, COLLECTOR, "http_proxy"),
        ({"all_proxy": "p:1", "HTTPS_PROXY": "q:1"}, COLLECTOR, "all_proxy"),
        ({"HTTPS_PROXY": "q:1"}, "https://api.example.com", "HTTPS_PROXY"),
        ({"HTTPS_PROXY": "q:1"}, COLLECTOR, None),
        ({"http_proxy": "p:1", "no_proxy": "127.0.0.1,example.com"}, COLLECTOR, None),
        ({"http_proxy": "p:1", "no_proxy": "127.0.0.1"}, "http://127.0.0.1:4318", None),
        ({"http_proxy": ""}, COLLECTOR, None),
        ({"http_proxy": "p:1"}, "", None),
        ({"http_proxy": "p:1"}, "http://[", None),
        ({}, COLLECTOR, None),
    ],
)
def test_the_variable_that_holds_for_an_address_is_named(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], url: str, named: str | None
):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy_note(url) == (f" (through the proxy in {named})" if named else "")
