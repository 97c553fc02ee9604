"""What looks like a credential, and what does not."""

from __future__ import annotations

from typing import Any

import pytest

from bus.errors import UsageError
from coordinator.config.credential_check import check_no_credentials

WORD = "hunter" + "2hunter2"
"""In place of a secret: it must not be in the error."""
CREDENTIALS: list[tuple[dict[str, Any], str]] = [
    ({"command": ["feed", f"postgres://me:{WORD}@db/x"]}, "--command: word 2 looks like a password or a user name in"),
    ({"command": ["feed", "--api-key", WORD]}, "--command: word 3 looks like the value of --api-key"),
    ({"command": ["feed", f"--access-token={WORD}"]}, "word 2 looks like a value of --access-token"),
    ({"command": ["env", f"DB_PASSWORD={WORD}", "feed"]}, "word 2 looks like a value of DB_PASSWORD"),
    ({"command": ["curl", "-H", f"Authorization: Basic {WORD}"]}, "word 3 looks like a bearer token"),
    ({"command": ["sh", "-c", f"feed --token {WORD}"]}, "word 3 looks like a value of --token"),
    ({"options": {"dsn": f"host=db user=me password={WORD}"}}, "--option dsn: looks like a value of password"),
    ({"options": {"url": f"https://h/x?a=1&api_key={WORD}"}}, "--option url: looks like a value of api_key"),
    ({"options": {"hosts": ["a", f"nats://{WORD}@b:4222"]}}, "--option hosts: looks like a password or a user name"),
    ({"options": {"api_key": WORD}}, "--option api_key: looks like a secret by its name"),
    ({"options": {"signing_key": WORD}}, "--option signing_key: looks like a secret by its name"),
    ({"options": {"password": 20422042}}, "--option password: looks like a secret by its name"),
    ({"options": {"db": {"secret": WORD}}}, "--option db.secret: looks like a secret by its name"),
    ({"options": {"text": "-----BEGIN " + "PRIVATE KEY-----"}}, "--option text: looks like a private key"),
]
PLAIN: list[dict[str, Any]] = [
    {"kind": "momentum", "options": {"rsi_period": 9, "seed": 7, "max_tokens": 100, "use_token": True}},
    {"command": ["python3", "feed.py", "--token-file", "/run/x", "--url=https://host/x?symbol=BTC", "a@b.example"]},
    {"command": ["sh", "-c", 'PASSWORD="$PASSWORD" TOKEN=$TOKEN exec feed --token "$TOKEN" --secret -v']},
    {"command": ["feed", "--password-env", "DB_PASSWORD", "--key-id", "3"], "options": {"timeout_s": 2.5}},
    {"options": {"secret_file": "/run/secrets/x", "token_env": "X", "api_key": "", "keys": ["a"], "sources": []}},
]


@pytest.mark.parametrize(("table", "words"), CREDENTIALS)
def test_what_looks_like_a_credential_is_refused_and_not_shown(table: dict[str, Any], words: str):
    with pytest.raises(UsageError) as refused:
        check_no_credentials("add new", table)
    assert str(refused.value).startswith("add new: --")
    assert words in str(refused.value)
    assert "from a variable of the environment of `up`" in str(refused.value)
    for word in (WORD, "20422042"):
        assert word not in str(refused.value)


@pytest.mark.parametrize("table", PLAIN)
def test_what_does_not_is_accepted(table: dict[str, Any]):
    check_no_credentials("add new", table)


def test_a_long_text_is_refused_and_not_looked_through():
    with pytest.raises(UsageError, match="--option x: looks like a text of 100000 characters"):
        check_no_credentials("add a", {"options": {"x": "y" * 100_000}})


def test_a_credential_in_a_list_of_tables_is_found():
    with pytest.raises(UsageError, match=r"--option x\.password: looks like a secret by its name"):
        check_no_credentials("add a", {"options": {"x": [{"password": "p" * 12}]}})
