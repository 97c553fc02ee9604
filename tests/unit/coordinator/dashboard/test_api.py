"""Every error that a request can meet has a status that was chosen for it."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from bus.durable.snapshots import SnapshotUnreadable
from bus.errors import (
    BusError,
    BusTimeout,
    Disconnected,
    MeshError,
    MessageError,
    MirrorDamaged,
    MirrorUnusable,
    NoResponders,
    PermissionDenied,
    Refused,
    UsageError,
)
from coordinator.dashboard.api import STATUS_OF, NotThere, status_of_error
from coordinator.explain.errors import AmbiguousRound, RoundOpen, RoundRemoved, RowChanged, UnknownRound
from tests.support.repository import ROOT

ELSEWHERE = frozenset({"CommandFailed", "ConfigError", "DataError", "Flooding", "OtherHistory"})
"""Errors in the modules that a dashboard imports which no request raises: of an agent, a start or a restore."""
LISTING = """
from bus.errors import MeshError
import coordinator.dashboard.server

def below(kind):
    for each in kind.__subclasses__():
        yield each
        yield from below(each)

for each in below(MeshError):
    print(each.__module__, each.__qualname__)
"""


@pytest.fixture(scope="module")
def kinds() -> list[type[MeshError]]:
    """Every class of error that a process which serves the dashboard has; this process may have more."""
    done = subprocess.run([sys.executable, "-c", LISTING], cwd=ROOT, capture_output=True, text=True, check=True)
    found = [line.split() for line in done.stdout.splitlines()]
    return [getattr(importlib.import_module(module), name) for module, name in found]


def ancestors(kind: type[MeshError]) -> Iterator[type[MeshError]]:
    yield from (one for one in kind.__mro__ if issubclass(one, MeshError))


def test_no_error_gets_the_status_of_all_others_by_chance(kinds):
    assert len(kinds) > 20
    general = {MeshError, UsageError}
    for kind in kinds:
        chosen = next(one for one in ancestors(kind) if one in STATUS_OF)
        assert kind in STATUS_OF or chosen not in general or kind.__name__ in ELSEWHERE, kind


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MeshError("agent 'a' does not run"), 409),
        (UsageError("limit: expected a number"), 400),
        (UnknownRound("nothing"), 404),
        (AmbiguousRound("1", ["a", "b"]), 409),
        (RoundOpen("open"), 409),
        (RoundRemoved("gone"), 410),
        (RowChanged("file", 7), 503),
        (MessageError("subject", "malformed"), 503),
        (MirrorUnusable("file", "there is no such file"), 503),
        (MirrorDamaged("file", "broken"), 503),
        (SnapshotUnreadable("snapshot"), 503),
        (BusError("bus"), 503),
        (Disconnected("away"), 503),
        (BusTimeout("late"), 503),
        (NoResponders("subject"), 503),
        (Refused("subject", 10059, "no stream"), 503),
        (PermissionDenied("denied"), 503),
        (NotThere(410, "gone"), 410),
    ],
)
def test_the_status_of_an_error(error, status):
    assert status_of_error(error) == status
