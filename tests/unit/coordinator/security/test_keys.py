"""Keys of a state directory, and the permissions that follow from a configuration."""

from __future__ import annotations

import os

import pytest

from bus.errors import UsageError
from bus.nats.credentials import CREDS_VARIABLE, SEED_VARIABLE, public_key_of
from bus.nats.key_files import KEYS_VARIABLE, new_seed, write_seed
from coordinator.config.loader import parse_swarm
from coordinator.security.keys import (
    UNNAMED,
    KeyStore,
    ServedKeys,
    authorization,
    identities,
    key_environment,
    use_operator_key,
)

DEFAULT = parse_swarm({}, "built-in defaults", "").resolve()


def test_keys_are_made_once(tmp_path):
    store = KeyStore(tmp_path)
    assert store.ensure("up", "watchdog", UNNAMED) == ["up", "watchdog"]
    before = store.seed("up")
    assert store.ensure("up", "mirror") == ["mirror"]
    assert store.seed("up") == before
    assert not store.file(UNNAMED).exists()


def test_every_identity_has_a_user_with_its_public_key_alone(tmp_path):
    store, granted = KeyStore(tmp_path), identities(DEFAULT)
    store.ensure(*granted)
    text = authorization(store.public_keys(granted), granted)
    for name in granted:
        assert f"# {name}\n" in text
        if name != UNNAMED:
            assert text.count(f"nkey: {public_key_of(store.seed(name))}") == 1
            assert store.seed(name) not in text
    assert text.count("nkey:") == len(granted)


def test_an_agent_may_publish_what_its_class_declares():
    allowed = identities(DEFAULT)["agent-research-2"]
    kinds = {subject.split(".")[2] for subject in allowed.publish if subject.startswith("in.")}
    assert kinds == {"headline", "sentiment", "timer", "alert", "lifecycle"}
    assert "$KV.swarm_memory.swarm/research-2/sentiment" in allowed.publish
    assert not [subject for subject in allowed.publish if subject.startswith("$JS.API")]
    assert {subject.rpartition(".")[2] for subject in allowed.publish if subject.startswith("in.")} == {"research-2"}


def test_a_command_may_publish_what_its_table_declares():
    raw = {"agents": {"a": {"command": ["cat"], "listens": ["market"], "publishes": ["signal"]}}}
    allowed = identities(parse_swarm(raw, "x.toml", "/tmp").resolve())["agent-a"]
    assert "in.swarm.signal.*.a" in allowed.publish
    assert "in.swarm.sentiment.*.a" not in allowed.publish
    assert "$KV.swarm_memory.swarm/a/signal" in allowed.publish


def test_an_external_agent_votes_and_listens():
    raw = {"agents": {"theirs": {"external": True}, "c": {"kind": "coordinator"}}}
    allowed = identities(parse_swarm(raw, "x.toml", "").resolve())["agent-theirs"]
    assert allowed.publish == ("in.swarm.signal.*.theirs", "in.swarm.sentiment.*.theirs", "swarm.heartbeat.theirs")
    assert (allowed.subscribe, allowed.never_subscribe) == (("swarm.>",), ("swarm.control.>",))


def test_children_are_given_the_names_of_their_files(tmp_path):
    assert key_environment(tmp_path, "sandbox", "base") == {
        SEED_VARIABLE: f"{tmp_path}/sandbox-base.nk", CREDS_VARIABLE: "", KEYS_VARIABLE: "",
    }  # fmt: skip
    standby = key_environment(tmp_path, "watchdog", "standby")
    assert standby == {SEED_VARIABLE: f"{tmp_path}/watchdog.nk", CREDS_VARIABLE: "", KEYS_VARIABLE: str(tmp_path)}


def test_the_operators_key_is_used_unless_another_is_named(tmp_path, monkeypatch):
    for variable in (SEED_VARIABLE, CREDS_VARIABLE, KEYS_VARIABLE):
        monkeypatch.setenv(variable, "")
    use_operator_key(tmp_path, "open")
    assert os.environ[SEED_VARIABLE] == ""
    with pytest.raises(UsageError, match=r"key .*operator\.nk: there is no such file"):
        use_operator_key(tmp_path, "keys")
    write_seed(KeyStore(tmp_path).file("operator"), new_seed())
    use_operator_key(tmp_path, "keys")
    assert os.environ[SEED_VARIABLE] == str(KeyStore(tmp_path).file("operator"))
    monkeypatch.setenv(SEED_VARIABLE, "mine.nk")
    use_operator_key(tmp_path, "keys")
    assert os.environ[SEED_VARIABLE] == "mine.nk"


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "keys").write_text("")
    with pytest.raises(UsageError, match="keys: keys cannot be written there"):
        KeyStore(tmp_path).ensure("up")


def test_replaced_keys_are_found_and_removed_ones_made_again(tmp_path):
    store, granted = KeyStore(tmp_path), identities(DEFAULT)
    served = ServedKeys(store, granted, "up")
    assert set(served.made) == set(granted) - {UNNAMED}
    before = served.authorization
    assert served.update() == set()
    write_seed(store.file("mirror"), new_seed())
    store.file("agent-coordinator").unlink()
    write_seed(store.file("up"), new_seed())
    assert served.update() == {"mirror", "agent-coordinator"}
    assert served.update() == set()
    after = served.authorization
    assert public_key_of(store.seed("mirror")) in after
    assert public_key_of(store.seed("mirror")) not in before
    assert public_key_of(store.seed("up")) not in after, "this process is connected with the old one"
    assert len({*before.splitlines()} - {*after.splitlines()}) == 4, "a key and its inbox, of two identities"


def test_a_replaced_key_that_cannot_be_used_changes_nothing(tmp_path):
    store = KeyStore(tmp_path)
    served = ServedKeys(store, identities(DEFAULT), "up")
    before = served.authorization
    store.file("mirror").unlink()
    store.file("mirror").write_text("nonsense")
    with pytest.raises(UsageError, match=r"mirror\.nk"):
        served.update()
    assert served.update() == set()  # reported once
    assert served.authorization == before
    write_seed(store.file("mirror"), new_seed())
    assert served.update() == {"mirror"}
