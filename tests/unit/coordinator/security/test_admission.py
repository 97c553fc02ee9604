"""With keys unless something else was asked for; what cannot have them says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bus.errors import UsageError
from bus.server.supervisor import DIRECTORY
from coordinator.config.loader import parse_swarm
from coordinator.config.settings import SwarmConfig
from coordinator.security.admission import admission_of, describe_new_keys, is_from_before_keys
from coordinator.security.keys import KeyStore


def config(setting: str = "", *, remote: bool = False) -> SwarmConfig:
    tables: dict[str, Any] = {"nats": {"authentication": setting}} if setting else {}
    if remote:
        tables["sandboxes"] = {name: {} for name in ("base", "nodejs", "python")} | {"far": {"provider": "e2b"}}
    return parse_swarm(tables, "swarm.toml", "")


def test_keys_are_the_default_of_the_embedded_server():
    assert admission_of(config(), None, foreign=False).authentication == "keys"


def test_a_server_of_others_keeps_its_own_configuration_unless_keys_are_asked_for():
    assert admission_of(config(), None, foreign=True).authentication == "open"
    assert admission_of(config(), "keys", foreign=True).authentication == "keys"
    assert admission_of(config("keys"), None, foreign=True).authentication == "keys"


def test_the_option_overrides_the_file_and_each_is_named_as_the_reason():
    assert admission_of(config("open"), "keys", foreign=False).authentication == "keys"
    by_option = admission_of(config("keys"), "open", foreign=False)
    assert (by_option.authentication, "--open" in by_option.reason) == ("open", True)
    by_file = admission_of(config("open"), None, foreign=False)
    assert by_file.reason == "[nats] authentication in swarm.toml"
    assert by_file.warning("nats://127.0.0.1:1").startswith(
        "open ([nats] authentication in swarm.toml): whoever reaches nats://127.0.0.1:1 may do everything"
    )


def test_with_sandboxes_at_e2b_keys_need_the_server_of_up():
    assert admission_of(config(remote=True), None, foreign=False).authentication == "keys"
    assert admission_of(config(remote=True), None, foreign=True).authentication == "open"
    with pytest.raises(UsageError, match=r"sandboxes\.far: each sandbox at E2B gets a key .*: leave out --nats"):
        admission_of(config(remote=True), "keys", foreign=True)


def test_a_state_directory_is_from_before_keys_until_it_has_some(tmp_path: Path):
    assert not is_from_before_keys(tmp_path)
    (tmp_path / DIRECTORY).mkdir()
    assert is_from_before_keys(tmp_path)
    store = KeyStore(tmp_path)
    text = describe_new_keys(store, store.ensure("up", "agent-x"), ["x"], tmp_path)
    assert f"made 2 in {tmp_path}/keys (up.nk, agent-x.nk)" in text
    assert "need a key (for x: keys/voter-NAME.nk): `signalmesh keys add" in text
    assert "`signalmesh up --open` goes back" in text
    assert not is_from_before_keys(tmp_path)
