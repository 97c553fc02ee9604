"""What is reported of an exception."""

from __future__ import annotations

from bus.utils.error_text import MAX_ERROR_TEXT, describe_error, shorten


class Evasive(ExceptionGroup[Exception]):
    @property
    def exceptions(self) -> tuple[Exception, ...]:
        raise RuntimeError("no")


def test_of_a_group_the_first_exception_is_reported_as_well():
    group = ExceptionGroup("two", [ExceptionGroup("one", [ValueError("bad feed 17")]), KeyError("b")])
    assert describe_error(group) == "ExceptionGroup: two (2 sub-exceptions): ValueError: bad feed 17"


def test_a_group_is_bounded_and_its_report_does_not_fail():
    assert len(describe_error(ExceptionGroup("x" * 10**6, [ValueError("y" * 10**6)]))) < MAX_ERROR_TEXT + 300
    nest: Exception = ValueError("deep")
    for _ in range(10_000):
        nest = ExceptionGroup("in", [nest])
    assert describe_error(nest) == "ExceptionGroup: in (1 sub-exception)"
    assert describe_error(Evasive("own", [ValueError("v")])).startswith("Evasive: own")


def test_halves_of_characters_are_escaped_within_the_limit():
    assert shorten("a\ud800b", 100) == "a\\ud800b"
    assert shorten("\ud800" * 500, 1000) == "\\ud800" * 166 + "\\ud8… (500 characters)"
    assert shorten("é" * 1000, 1000) == "é" * 1000
    assert shorten("é" * 1001, 1000) == "é" * 1000 + "… (1001 characters)"
