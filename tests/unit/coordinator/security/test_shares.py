"""Directories with the keys of single processes, and the key that a host takes for itself."""

from __future__ import annotations

import stat

import pytest

from bus.errors import UsageError
from bus.nats.credentials import public_key_of
from bus.nats.key_files import new_seed, read_seed, write_seed
from coordinator.config.loader import parse_swarm
from coordinator.security import keys as keys_module
from coordinator.security.keys import KeyStore
from coordinator.security.permissions import UNNAMED
from coordinator.security.shares import UsersFile, claim_host_key, make_keys, write_shares

AGENTS = {f"agent-{name}" for name in (
    "research-1", "research-2", "strategy-momentum", "strategy-mean-reversion", "coordinator"
)}  # fmt: skip


def swarm(**raw: object):
    return parse_swarm(raw, "x.toml", "").resolve()


def shared(config, tmp_path, **options):
    """Name of a directory -> the names of the keys in it."""
    store, directory = KeyStore(tmp_path), tmp_path / "shares"
    hosts = options.pop("hosts", 2)
    make_keys(config, store, hosts=hosts)
    write_shares(config, store, directory, hosts=hosts, **options)
    found = {file.name: {key.stem for key in file.glob("*.nk")} for file in directory.iterdir()}
    for share, names in found.items():
        for name in names:
            assert read_seed(directory / share / f"{name}.nk") == store.seed(name)
    return found


def test_each_process_has_its_own_key_and_the_watchdog_those_of_the_agents(tmp_path):
    found = shared(swarm(), tmp_path)
    assert found.pop("watchdog") == {"watchdog", *AGENTS}
    assert found.pop("nats") == set()
    for sandbox in ("base", "nodejs", "python"):
        assert found.pop(f"sandbox-{sandbox}") == {f"sandbox-{sandbox}-1", f"sandbox-{sandbox}-2"}
    assert found == {name: {name} for name in ("up", "operator", "mirror", "metrics", "dashboard", "proxy")}


def test_the_users_contain_no_seed_and_can_be_read_by_the_server(tmp_path):
    shared(swarm(), tmp_path)
    users = tmp_path / "shares" / "nats" / "users.conf"
    assert stat.S_IMODE(users.stat().st_mode) == 0o644
    text, store = users.read_text(), KeyStore(tmp_path)
    for file in store.directory.glob("*.nk"):
        assert store.seed(file.stem) not in text
        assert public_key_of(store.seed(file.stem)) in text
    assert "sandbox-base-2" in text
    assert "# sandbox-base\n" not in text, "no host has this name"


def test_the_users_name_the_owners_of_keys_also_of_replaced_ones(tmp_path, monkeypatch):
    shared(swarm(), tmp_path)
    store, stranger = KeyStore(tmp_path), public_key_of(new_seed())
    users = UsersFile(tmp_path / "shares" / "nats" / "users.conf")
    old = public_key_of(store.seed("mirror"))
    assert [users.owner(key) for key in (old, "", stranger)] == ["mirror", UNNAMED, f"unknown key {stranger}"]
    store.file("mirror").unlink()
    shared(swarm(), tmp_path)
    assert users.owner(public_key_of(store.seed("mirror"))) == "mirror"
    assert users.owner(old) is None, "its process is about to get the new one"
    monkeypatch.setattr(keys_module, "REPLACED_S", -1.0)
    store.file("mirror").unlink()
    once_more = public_key_of(read_seed(tmp_path / "shares" / "mirror" / "mirror.nk"))
    shared(swarm(), tmp_path)
    assert users.owner(public_key_of(store.seed("mirror"))) == "mirror"
    assert users.owner(once_more) == "the replaced key of mirror"


@pytest.mark.parametrize("text", [None, "", "authorization { users: [] }\n"])
def test_a_file_without_users_is_refused(tmp_path, text):
    file = tmp_path / "users.conf"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UsageError, match=r"users\.conf: .*expected users\.conf as `signalmesh keys init --to`"):
        UsersFile(file)


def test_written_again_keys_stay_and_those_of_removed_agents_go(tmp_path):
    agents = {name: {"kind": kind} for name, kind in (("c", "coordinator"), ("old", "momentum"))}
    shared(swarm(agents=agents), tmp_path)
    watchdog, users = tmp_path / "shares" / "watchdog", tmp_path / "shares" / "nats" / "users.conf"
    before, inode = users.read_text(), (watchdog / "agent-c.nk").stat().st_ino
    shared(swarm(agents=agents), tmp_path)
    assert users.read_text() == before, "not even the user without a key is another one"
    agents["new"] = agents.pop("old")
    assert shared(swarm(agents=agents), tmp_path)["watchdog"] == {"watchdog", "agent-c", "agent-new"}
    assert (watchdog / "agent-c.nk").stat().st_ino == inode
    assert "agent-old" not in users.read_text()


def test_a_replaced_key_replaces_the_one_in_its_directory(tmp_path):
    shared(swarm(), tmp_path)
    write_seed(KeyStore(tmp_path).file("mirror"), new_seed())
    shared(swarm(), tmp_path)
    assert public_key_of(KeyStore(tmp_path).seed("mirror")) in (tmp_path / "shares/nats/users.conf").read_text()


def test_open_lets_every_user_do_everything(tmp_path):
    shared(swarm(), tmp_path, is_open=True)
    text = (tmp_path / "shares/nats/users.conf").read_text()
    assert text.count('publish: { allow: [">"] }') == text.count("  # ")
    assert "deny" not in text


def test_the_name_of_a_host_may_not_be_that_of_a_sandbox(tmp_path):
    config = swarm(sandboxes={"a": {}, "a-2": {}}, agents={"c": {"kind": "coordinator", "sandbox": "a"}})
    with pytest.raises(UsageError, match=r"x\.toml: sandboxes\.a-2: a host of sandbox a has this name too: rename one"):
        make_keys(config, KeyStore(tmp_path), hosts=2)


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "shares").write_text("")
    make_keys(swarm(), KeyStore(tmp_path), hosts=0)
    with pytest.raises(UsageError, match=rf"{tmp_path}/shares/.*: keys cannot be written there: Not a directory"):
        write_shares(swarm(), KeyStore(tmp_path), tmp_path / "shares", hosts=0)


def test_hosts_take_one_key_each_until_none_is_left(tmp_path):
    shared(swarm(), tmp_path)
    directory = tmp_path / "shares" / "sandbox-base"
    first, second = claim_host_key(directory, "base"), claim_host_key(directory, "base")
    assert (first.name, second.name) == ("base-1", "base-2")
    assert first.seed == KeyStore(tmp_path).seed("sandbox-base-1") != second.seed
    with pytest.raises(UsageError, match=r"all 2 keys of hosts of sandbox base in .* are in use"):
        claim_host_key(directory, "base")
    first.file.close()  # as when it ends
    third = claim_host_key(directory, "base")
    assert third.name == "base-1"
    second.file.close()
    third.file.close()


def test_a_directory_without_a_key_of_the_sandbox_is_refused(tmp_path):
    shared(swarm(), tmp_path)
    for directory in (tmp_path / "shares" / "sandbox-base", tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="there is no key of a host of sandbox python: `signalmesh keys init"):
            claim_host_key(directory, "python")
