"""Keys of a state directory, and the permissions that follow from a configuration."""

from __future__ import annotations

import os

import pytest

from bus.errors import UsageError
from bus.messages.subjects import Subjects
from bus.nats.credentials import CREDS_VARIABLE, SEED_VARIABLE, public_key_of
from bus.nats.key_files import KEYS_VARIABLE, new_seed, write_seed
from coordinator.config.changes import AddedAgent, Changes
from coordinator.config.live_swarm import LiveSwarm
from coordinator.config.loader import parse_swarm
from coordinator.security.keys import (
    KeyChanges,
    KeyStore,
    ServedKeys,
    authorization,
    identities,
    key_environment,
    use_operator_key,
)
from coordinator.security.permissions import UNNAMED

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
    text = authorization(Subjects(DEFAULT.swarm), store.public_keys(granted), granted)
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
    allowed = identities(parse_swarm(raw, "x.toml", "").resolve())["voter-theirs"]
    assert allowed.publish == ("in.swarm.signal.*.theirs", "in.swarm.sentiment.*.theirs", "swarm.heartbeat.theirs")
    assert (allowed.subscribe, allowed.never_subscribe) == (("swarm.>",), ("swarm.control.>",))


def test_a_voter_with_the_name_of_an_agent_is_refused_by_where_that_is_from():
    with pytest.raises(UsageError, match=r"x.toml has an agent of that name.* or set external = true there"):
        identities(parse_swarm({"agents": {"one": {"kind": "coordinator"}}}, "x.toml", "").resolve(), ["voter-one"])
    added = AddedAgent(table={"kind": "momentum"}, after=7)
    swarm = LiveSwarm(DEFAULT, Changes(revision=1, agents={"new": added}))
    with pytest.raises(
        UsageError, match=r"was added at run time .*or remove the agent .*`signalmesh remove new`"
    ) as error:
        identities(swarm.config, ["voter-new"])
    assert "`signalmesh keys revoke voter-new` removes a key that is there" in str(error.value)


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
    served = ServedKeys(store, DEFAULT, "up")
    assert set(served.made) == set(granted) - {UNNAMED}
    before = served.authorization
    assert not served.update()
    write_seed(store.file("mirror"), new_seed())
    store.file("agent-coordinator").unlink()
    write_seed(store.file("up"), new_seed())
    assert served.update() == KeyChanges(new=frozenset({"mirror", "agent-coordinator"}))
    assert not served.update()
    after = served.authorization
    assert public_key_of(store.seed("mirror")) in after
    assert public_key_of(store.seed("mirror")) not in before
    assert public_key_of(store.seed("up")) not in after, "this process is connected with the old one"
    assert len({*before.splitlines()} - {*after.splitlines()}) == 4, "a key and its inbox, of two identities"


def test_a_replaced_key_that_cannot_be_used_changes_nothing(tmp_path):
    store = KeyStore(tmp_path)
    served = ServedKeys(store, DEFAULT, "up")
    before = served.authorization
    store.file("mirror").unlink()
    store.file("mirror").write_text("nonsense")
    with pytest.raises(UsageError, match=r"mirror\.nk"):
        served.update()
    assert not served.update()  # reported once
    assert served.authorization == before
    write_seed(store.file("mirror"), new_seed())
    assert served.update() == KeyChanges(new=frozenset({"mirror"}))


def test_keys_outside_the_swarm_are_served_until_they_are_removed(tmp_path):
    store = KeyStore(tmp_path)
    served = ServedKeys(store, DEFAULT, "up")
    store.ensure("subscriber-acme", "voter-theirs", "operator-ann")
    assert store.added() == ["operator-ann", "subscriber-acme", "voter-theirs"]
    assert served.update() == KeyChanges(new=frozenset(store.added()))
    key = public_key_of(store.seed("subscriber-acme"))
    assert f"nkey: {key}" in served.authorization
    assert served.owner(key) == "subscriber-acme"
    assert f"nkey: {key}" in ServedKeys(store, DEFAULT, "up").authorization, "also after a restart"
    store.file("subscriber-acme").unlink()
    assert served.update() == KeyChanges(revoked=frozenset({"subscriber-acme"}))
    assert key not in served.authorization
    assert served.owner(key) == "the revoked key of subscriber-acme", "what tries it again is reported at once"
    store.file("voter-theirs").unlink()
    store.ensure("subscriber-acme")
    assert served.update() == KeyChanges(frozenset({"subscriber-acme"}), frozenset({"voter-theirs"}))


def test_a_subscriber_receives_decisions_and_a_voter_publishes_its_votes():
    granted = identities(DEFAULT, ["subscriber-acme", "voter-theirs", "operator-ann"])
    acme = granted["subscriber-acme"]
    assert (acme.publish, acme.subscribe, acme.answers) == ((), ("swarm.decision.>",), False)
    votes = ("in.swarm.signal.*.theirs", "in.swarm.sentiment.*.theirs")
    assert granted["voter-theirs"].publish == (*votes, "swarm.heartbeat.theirs")
    assert granted["operator-ann"] == granted["operator"]


def test_no_added_voter_has_the_name_of_an_agent_of_the_swarm(tmp_path):
    store = KeyStore(tmp_path)
    store.ensure("voter-coordinator")
    with pytest.raises(UsageError, match="voter 'coordinator': built-in defaults has an agent of that name"):
        ServedKeys(store, DEFAULT, "up")


def test_a_file_whose_name_no_identity_may_have_is_refused(tmp_path):
    store = KeyStore(tmp_path)
    store.ensure("voter-a b")
    with pytest.raises(UsageError, match=r"voter-a b\.nk: voter 'a b': expected 1 to 64"):
        store.added()


def test_a_directory_of_others_is_refused(tmp_path, monkeypatch):
    KeyStore(tmp_path).ensure("up")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(UsageError, match=r"keys: belongs to another user \(uid \d+\); .*--state-dir"):
        KeyStore(tmp_path).ensure("mirror")


def test_two_files_with_the_same_key_are_named(tmp_path):
    store = KeyStore(tmp_path)
    keys = ServedKeys(store, DEFAULT, "up")
    copied = store.file("metrics").read_text()
    store.file("mirror").write_text(copied)  # in place: no file is made or removed
    with pytest.raises(UsageError, match=r"keys .*metrics\.nk and mirror\.nk|keys .*mirror\.nk and metrics\.nk"):
        keys.update()
    with pytest.raises(UsageError, match="the same one twice; remove the file that is a copy"):
        ServedKeys(store, DEFAULT, "up")
    store.file("mirror").unlink()
    assert keys.update().new == {"mirror"}


def test_a_link_to_nothing_is_named(tmp_path):
    store = KeyStore(tmp_path)
    store.ensure("mirror")
    store.file("mirror").unlink()
    store.file("mirror").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"mirror\.nk: a link to a file that does not exist; remove it"):
        store.seed("mirror")
