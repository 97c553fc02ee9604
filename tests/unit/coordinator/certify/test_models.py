"""When a target of a report is met."""

from __future__ import annotations

from coordinator.certify.markdown import target_text
from coordinator.certify.models import (
    judged,
)


def test_a_limit_is_not_met_by_what_equals_it():
    assert not judged("detection", 1.0, "s", 1.0, "", "").ok
    assert judged("loss", 0.0, "outputs", 0.0, "", "", exactly=True).ok
    assert not judged("loss", 1.0, "outputs", 0.0, "", "", exactly=True).ok
    assert target_text(judged("a", None, "s", 1.0, "", "the bus was down")) == (
        "< 1.0 s",
        "not measured: the bus was down",
    )
