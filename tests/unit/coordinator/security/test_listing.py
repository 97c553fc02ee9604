"""`keys list` and `keys rotate` on files, without a server."""

from __future__ import annotations

import orjson
import pytest

from bus.errors import UsageError
from bus.nats.credentials import public_key_of
from coordinator.config.loader import parse_swarm
from coordinator.security.keys import KeyStore
from coordinator.security.listing import add_key, init_keys, list_keys, resume_keys, revoke_keys, rotate_keys

EXTERNAL = {"agents": {"theirs": {"external": True}, "c": {"kind": "coordinator"}}}
SWARM = parse_swarm(EXTERNAL, "x.toml", "").resolve()


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
    init_keys(SWARM, tmp_path)
    for name, near in (("mirrow", "mirror"), ("agent-d", "agent-c"), ("thiers", "theirs"), ("pyton", "python")):
        with pytest.raises(
            UsageError, match=rf"keys: {name}: there is no such key in .*; did you mean {near}( or .*)?\?"
        ):
            rotate_keys(tmp_path, [name])


def test_every_verb_takes_the_name_without_its_role(tmp_path):
    init_keys(SWARM, tmp_path)
    for name, identity in (("c", "agent-c"), ("theirs", "voter-theirs"), ("base", "sandbox-base"), ("up", "up")):
        assert [key.identity for key in list_keys(tmp_path, [name]).keys] == [identity]
        [before] = list_keys(tmp_path, [identity]).keys
        [after] = rotate_keys(tmp_path, [name]).keys
        assert (after.identity, after.public_key != before.public_key) == (identity, True)
    add_key(SWARM, tmp_path, "base", "subscriber")
    for verb in (list_keys, rotate_keys, revoke_keys):
        with pytest.raises(
            UsageError, match="keys: base: there are several such keys: sandbox-base, subscriber-base; name"
        ):
            verb(tmp_path, ["base"])


def test_init_makes_what_is_missing_once(tmp_path):
    made = {key.identity: key for key in init_keys(SWARM, tmp_path).keys}
    assert (made["voter-theirs"].role, made["agent-c"].role) == ("voter", "agent")
    assert made["agent-c"].used_by == "agent c"
    assert {key.problem for key in made.values()} == {""}
    assert init_keys(SWARM, tmp_path).keys == ()
    KeyStore(tmp_path).file("mirror").unlink()
    assert [key.identity for key in init_keys(SWARM, tmp_path).keys] == ["mirror"]


def test_a_key_is_added_rotated_and_revoked_by_its_name(tmp_path):
    init_keys(SWARM, tmp_path)
    [acme] = add_key(SWARM, tmp_path, "acme", "subscriber").keys
    assert (acme.identity, acme.role) == ("subscriber-acme", "subscriber")
    assert KeyStore(tmp_path).file("subscriber-acme").stat().st_mode & 0o777 == 0o600
    [rotated] = rotate_keys(tmp_path, ["acme"]).keys
    assert rotated.public_key != acme.public_key
    add_key(SWARM, tmp_path, "acme", "operator")
    with pytest.raises(UsageError, match="several such keys: operator-acme, subscriber-acme; name one"):
        revoke_keys(tmp_path, ["acme"])
    assert [key.identity for key in revoke_keys(tmp_path, ["subscriber-acme"]).keys] == ["subscriber-acme"]
    assert not KeyStore(tmp_path).file("subscriber-acme").exists()
    assert [key.identity for key in revoke_keys(tmp_path, ["acme"]).keys] == ["operator-acme"]


@pytest.mark.parametrize(
    ("name", "role", "problem"),
    [
        ("", "subscriber", "keys add: subscriber '': expected 1 to 64"),
        ("a.b", "subscriber", "expected 1 to 64"),
        ("watchdog", "voter", "this name is reserved"),
        ("c", "voter", "x.toml has an agent of that name"),
        ("theirs", "voter", "voter-theirs has a key already"),
        ("taken", "subscriber", "subscriber-taken has a key already, .*: choose another name"),
    ],
)
def test_a_name_that_cannot_be_added_is_refused(tmp_path, name, role, problem):
    init_keys(SWARM, tmp_path)
    add_key(SWARM, tmp_path, "taken", "subscriber")
    before = sorted(KeyStore(tmp_path).directory.iterdir())
    with pytest.raises(UsageError, match=problem):
        add_key(SWARM, tmp_path, name, role)
    assert sorted(KeyStore(tmp_path).directory.iterdir()) == before


@pytest.mark.parametrize("lift", [resume_keys, rotate_keys, revoke_keys])
def test_a_suspended_key_is_listed_until_that_is_lifted(tmp_path, lift):
    init_keys(SWARM, tmp_path)
    add_key(SWARM, tmp_path, "acme", "voter")
    store = KeyStore(tmp_path)
    with pytest.raises(UsageError, match="keys resume: voter-acme: it is not suspended"):
        resume_keys(tmp_path, ["acme"])
    store.suspend("voter-acme", "too much")
    [listed] = list_keys(tmp_path, ["acme"]).keys
    assert ": too much: `signalmesh keys resume voter-acme`" in listed.problem
    assert ([*store.suspended()], listed.public_key[:1]) == (["voter-acme"], "U")
    lift(tmp_path, ["acme"])
    assert store.suspended() == frozenset()
    if lift is not revoke_keys:
        assert [key.problem for key in list_keys(tmp_path, ["acme"]).keys] == [""]


def test_keys_of_the_swarms_processes_are_not_revoked(tmp_path):
    init_keys(SWARM, tmp_path)
    add_key(SWARM, tmp_path, "acme", "subscriber")
    for name, identity in (("mirror", "mirror"), ("operator", "operator"), ("c", "agent-c")):
        with pytest.raises(
            UsageError, match=f"keys revoke: {identity}: the swarm itself needs this key; .*keys rotate"
        ):
            revoke_keys(tmp_path, ["acme", name])
    assert KeyStore(tmp_path).file("subscriber-acme").exists(), "all or none"


def test_nothing_is_added_where_there_are_no_keys(tmp_path):
    with pytest.raises(UsageError, match="there are no keys; `signalmesh keys init` makes them"):
        add_key(SWARM, tmp_path, "acme", "subscriber")
    assert not KeyStore(tmp_path).directory.exists()
