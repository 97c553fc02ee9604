"""The pages of docs/reference are those that the code gives: `make reference` writes them."""

from __future__ import annotations

import pytest

from docs.generate.pages import DIRECTORY, PAGES


def test_there_are_no_other_pages():
    assert {path.name for path in DIRECTORY.glob("*.md")} == set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_the_code_gives(name):
    assert (DIRECTORY / name).read_text("utf-8") == PAGES[name](), "run `make reference`, and commit what it writes"
