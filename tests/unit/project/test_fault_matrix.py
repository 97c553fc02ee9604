"""The table of a provider's faults names tests that are there, and every test of a fault is in it."""

from __future__ import annotations

import re

from tests.support.repository import ROOT

NO_FAULTS = {
    "test_up_needs_an_address_that_a_sandbox_can_reach",
    "test_an_address_for_sandboxes_that_is_none_is_named_by_its_flag",
    "test_a_file_that_is_not_there_is_named_by_its_key",
    "test_a_sandbox_is_requested_as_it_is_configured",
    "test_down_waits_for_the_sandbox_that_was_just_requested_and_ends_it",
    "test_files_and_packages_are_there_before_the_agents_are",
    "test_an_empty_template_gets_our_wheel_and_what_it_needs",
    "test_agents_move_from_here_to_there_and_back_with_their_state",
    "test_a_server_of_others_is_refused",
}


def test_the_table_of_a_providers_faults():
    text = (ROOT / "docs/fault-matrix.md").read_text().partition("## Faults of a sandbox provider")[2]
    named = set(re.findall(r"`(test_\w+)`", text))
    modules = (ROOT / "tests/e2b").glob("test_provider_*.py")
    there = {
        name for module in modules for name in re.findall(r"^async def (test_\w+)", module.read_text(), re.MULTILINE)
    }
    assert named == there - NO_FAULTS
