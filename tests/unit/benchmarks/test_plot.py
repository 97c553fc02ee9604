from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

import pytest

from benchmarks.plot import BAR_WIDTH, LEFT, OURS, PANELS, svg

SVG = "{http://www.w3.org/2000/svg}"


def row(system: str, value: float | None) -> dict[str, Any]:
    return {"system": system, **{name: value for name, _ in PANELS}, "p99, ms": value}


def bars(text: str) -> list[dict[str, str]]:
    return [bar.attrib for bar in ET.fromstring(text).iter(f"{SVG}rect")][1:]


def test_bars_are_as_long_as_their_values():
    found = bars(svg([row("ours", 10.0), row("other", 5.0)]))
    assert [float(bar["width"]) for bar in found] == [BAR_WIDTH, BAR_WIDTH / 2] * len(PANELS)
    assert [bar["fill"] == OURS for bar in found] == [True, False] * len(PANELS)
    assert {bar["x"] for bar in found} == {str(LEFT)}


def test_what_was_not_measured_has_no_bar_and_says_why():
    text = svg([row("ours", 10.0), {**row("other", 5.0), "SIGKILL to vote p50, ms": None}, {"system": "absent"}])
    assert len(bars(text)) == 2 * len(PANELS) - 1
    assert text.count("no vote again") == 1
    assert "absent" not in text


@pytest.mark.parametrize("name", ["a & b", "<script>"])
def test_names_are_text(name):
    words = [text.text for text in ET.fromstring(svg([row(name, 1.0)])).iter(f"{SVG}text")]
    assert words.count(name) == len(PANELS)


def test_a_system_of_which_every_run_failed_says_so():
    assert svg([row("ours", 10.0), row("other", None)]).count("not measured") == len(PANELS)
