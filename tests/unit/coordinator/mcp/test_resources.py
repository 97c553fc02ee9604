"""Prompts."""

from __future__ import annotations

import re

import pytest

from bus.errors import MeshError
from coordinator.mcp.resources import PROMPTS, prompt_text
from coordinator.mcp.tools import READ_ONLY


def test_a_prompt_names_tools_that_exist():
    for prompt in PROMPTS:
        named = set(re.findall(r"`([a-z_]+)`", prompt.text)) - {"same"}
        assert named
        assert named <= {tool.name for tool in READ_ONLY}


def test_a_prompt_is_about_the_latest_decision_unless_one_is_given():
    assert "in the decision latest?" in prompt_text("why_this_decision", None)[1]
    assert "in the decision BTC/USD:a:1?" in prompt_text("why_this_decision", {"decision": "BTC/USD:a:1"})[1]


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("why", {}, "why: there is no such prompt; expected one of why_this_decision, what_happened"),
        ("why_this_decision", {"id": "1"}, "why_this_decision: argument id: there is no such argument; expected only"),
        ("what_happened_in_the_last_hour", {"x": "1"}, "what_happened_in_the_last_hour: argument x: there is no such"),
    ],
)
def test_a_wrong_prompt_is_refused(name, given, expected):
    with pytest.raises(MeshError) as raised:
        prompt_text(name, given)
    assert str(raised.value).startswith(expected)
