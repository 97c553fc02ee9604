"""Addresses of servers, and what is shown of them."""

from __future__ import annotations

import pytest

from bus.errors import UsageError
from bus.nats.urls import check_url, redacted_url


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
