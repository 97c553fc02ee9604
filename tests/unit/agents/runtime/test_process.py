"""What an agent process reports of the exception that ends it."""

from __future__ import annotations

import pytest

from agents.runtime.process import _FirstError
from bus.errors import MeshError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MeshError("file: not there"), "file: not there"),
        (ValueError("no"), "ValueError: no"),
        (SystemExit(3), "SystemExit: 3"),
    ],
)
def test_the_first_exception_is_reported_and_no_later_one(error, text):
    reported: list[str] = []
    first = _FirstError(reported.append)
    first.report(error)
    first.report(MeshError("a consequence"))
    assert reported == [text]


def test_a_host_that_is_gone_hides_no_error():
    def sink(_: str) -> None:
        raise BrokenPipeError

    _FirstError(sink).report(MeshError("text"))
