"""Addresses of servers, and what is shown of them."""

from __future__ import annotations

import pytest

from bus.errors import UsageError
from bus.nats.urls import check_url, is_same_server, redacted_url


@pytest.mark.parametrize(
    ("url", "result"),
    [
        ("nats://u:p@h:4222", "nats://h:4222"),
        ("nats://token@h", "nats://h"),
        ("u:p@h", "nats://h"),
        ("nats://a,nats://u:p@b", "nats://a,nats://b"),
        ("nats://u:a@b@h", "nats://h"),
        ("nats://u:secret,more@h", "***"),
    ],
)
def test_no_user_password_or_token_is_shown(url, result):
    assert redacted_url(url) == result


def test_a_comma_in_a_password_is_refused_with_its_escape():
    with pytest.raises(UsageError, match="%2C") as refused:
        check_url("nats://user:123,more@host")
    assert "123" not in str(refused.value)
    assert check_url("nats://user:123%2Cmore@host") == "nats://user:123%2Cmore@host"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("nats://localhost:4222", "nats://127.0.0.1:4222", True),
        ("127.0.0.1", "nats://127.0.0.1:4222", True),
        ("nats://a:1,nats://b:2", "nats://b:2, nats://a:1", True),
        ("nats://127.0.0.1:4223", "nats://127.0.0.1:4222", False),
        ("tls://a:1", "nats://a:1", True),
        ("wss://a:1", "nats://a:1", False),
        ("nats://user:secret@127.0.0.1:4222", "nats://127.0.0.1:4222", False),
    ],
)
def test_two_addresses_may_be_of_one_server(one: str, other: str, same: bool):
    assert is_same_server(one, other) is same
