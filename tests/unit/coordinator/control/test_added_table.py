"""The options of `add`: the table that they stand for, and which are refused."""

from __future__ import annotations

import math
import re

import pytest

from bus.errors import UsageError
from coordinator.control.added_table import added_table


def test_the_table_has_what_is_given():
    options = ["rsi_period=9", "deep = true", "name=plain text", 'list=["a"]', "equation=x=y"]
    assert added_table("new", kind="momentum", sandbox="base", weight=0.5, options=options) == {
        "kind": "momentum",
        "sandbox": "base",
        "weight": 0.5,
        "options": {"rsi_period": 9, "deep": True, "name": "plain text", "list": ["a"], "equation": "x=y"},
    }
    assert added_table("new", command="./run 'two words'", listens=["market"], publishes=["signal"]) == {
        "command": ["./run", "two words"],
        "listens": ["market"],
        "publishes": ["signal"],
    }


def test_what_is_no_table_is_refused():
    with pytest.raises(UsageError, match="--class and --kind are given"):
        added_table("new", kind="momentum", class_="a:B")
    with pytest.raises(UsageError, match="expected KEY=VALUE"):
        added_table("new", kind="momentum", options=["rsi_period"])
    with pytest.raises(UsageError, match="--option 'x=-inf': expected a finite number"):
        added_table("new", kind="momentum", options=["x=-inf"])
    for weight in (math.nan, math.inf, 1e308, -0.1):
        with pytest.raises(UsageError, match=re.escape(f"--weight {weight:g}: expected a number from 0 to 1000000")):
            added_table("new", kind="momentum", weight=weight)
    assert added_table("new", kind="momentum", weight=1e6)["weight"] == 1e6
    with pytest.raises(UsageError, match=r"--command .*: No closing quotation"):
        added_table("new", command="'a")
