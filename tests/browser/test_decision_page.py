"""The page of a decision: opened from the overview, with its own address, and for ids that are not there."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from tests.browser.looking import READY, figures_without_source, overflow, serious_violations, until, visit

PATH = "/decisions/latest"

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


async def test_a_decision_is_opened_from_its_row(page, shown):
    await visit(page, "/")
    link = page.locator("#decisions tr a").first
    await page.locator("#decisions-h").hover()  # the rows stay where they are while the panel is pointed at
    number = int((await link.inner_text()).split()[-1].replace(",", ""))
    await link.click()
    await until(page, READY[PATH])
    [decision] = [one for one in shown.subscriber.decisions if one["round"] == number]
    await expect(page.locator(".verdict .side")).to_contain_text(decision["final_decision"])
    await expect(page.locator(".check")).to_contain_text("the same to the last digit")
    assert await page.locator(".formula.bind").count() == 1
    await page.locator(".links a").first.click()
    await expect(page.locator("#payload")).to_contain_text(decision["decision_id"])


async def test_an_unknown_decision_says_what_was_expected(page):
    await page.goto("/decisions/no-such-decision")
    await expect(page.get_by_role("alert")).to_contain_text("no-such-decision")


async def test_every_figure_names_its_source(page):
    await visit(page, PATH)
    assert await figures_without_source(page) == []


@pytest.mark.parametrize("colours", ["dark", "light"])
async def test_axe_finds_nothing_serious(page, colours):
    await visit(page, PATH)
    assert await serious_violations(page, colours) == []


async def test_it_is_not_wider_than_a_phone(page):
    await visit(page, PATH)
    assert [await overflow(page, width) for width in (390, 320)] == [0, 0]
