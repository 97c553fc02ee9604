"""Every kind of fault of a plan can be injected."""

from __future__ import annotations

from typing import Any

from coordinator.chaos.faults import FaultInjector
from coordinator.chaos.plan import KINDS
from tests.support.silent_bus import silent


def test_every_kind_of_the_plan_can_be_done():
    nothing: Any = None
    assert set(FaultInjector(silent(), nothing, nothing, (), nothing, 1.0)._kinds) == set(KINDS)
