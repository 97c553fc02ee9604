"""`keys list` and `keys rotate` on files, without a server."""

from __future__ import annotations

import orjson
import pytest

from bus.errors import UsageError
from bus.nats.credentials import public_key_of
from coordinator.security.keys import KeyStore
from coordinator.security.listing import list_keys, rotate_keys


def test_no_seed_is_listed(tmp_path):
    store = KeyStore(tmp_path)
    store.ensure("up", "agent-a")
    found = list_keys(tmp_path)
    assert [key.identity for key in found.keys] == ["agent-a", "up"]
    assert found.keys[1].public_key == public_key_of(store.seed("up"))
    assert found.keys[1].inbox == f"_INBOX.{found.keys[1].public_key}"
    text = orjson.dumps(found).decode()
    assert store.seed("up") not in text
    assert [key.identity for key in list_keys(tmp_path, ["up"]).keys] == ["up"]


def test_a_file_that_cannot_be_used_is_listed_with_its_problem(tmp_path):
    store = KeyStore(tmp_path)
    store.ensure("up")
    store.file("up").chmod(0o644)
    [key] = list_keys(tmp_path).keys
    assert (key.public_key, key.inbox) == ("", "")
    assert f"key {store.file('up')}: others may read or write it (mode 0644)" in key.problem


def test_only_the_named_keys_are_replaced(tmp_path):
    store = KeyStore(tmp_path)
    store.ensure("up", "mirror")
    before = [store.seed(name) for name in ("up", "mirror")]
    [key] = rotate_keys(tmp_path, ["mirror"]).keys
    assert store.seed("up") == before[0]
    assert store.seed("mirror") != before[1]
    assert key.public_key == public_key_of(store.seed("mirror"))
    rotate_keys(tmp_path, ())
    assert store.seed("up") != before[0]


def test_an_unknown_name_and_an_empty_directory_are_refused(tmp_path):
    with pytest.raises(UsageError, match="there are no keys"):
        list_keys(tmp_path)
    KeyStore(tmp_path).ensure("up")
    with pytest.raises(UsageError, match=r"keys: mirrow: there is no such key in .*; it has: up"):
        rotate_keys(tmp_path, ["mirrow"])
