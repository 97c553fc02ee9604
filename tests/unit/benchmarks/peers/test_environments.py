from __future__ import annotations

import tomllib

import pytest

from benchmarks.peers import environments
from benchmarks.peers.catalogue import PEERS
from tests.support.repository import ROOT


def test_every_peer_has_an_environment_a_lock_file_with_hashes_and_its_requirements():
    assert {peer.environment for peer in PEERS} == set(environments.NAMES)
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    for name in environments.NAMES:
        assert f"peer-{name}" in groups
        locked = environments.lock_of(name).read_text()
        assert locked.count("==") <= locked.count("--hash=sha256:")


def test_one_that_is_not_there_names_the_command(tmp_path):
    why = environments.why_not("ray", tmp_path)
    assert why is not None
    assert "make bench-peers" in why


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("note\nERROR: no wheel\n", "ERROR: no wheel"),
        ("ERROR: see https://" + "example.com/x for it\nERROR: b", "ERROR: see (address) for it ERROR: b"),
        ("only\nwords\n", "words"),
        ("", "no reason was given"),
    ],
)
def test_a_reason_is_one_line_without_addresses(output, reason):
    assert environments.reason_in(output) == reason
