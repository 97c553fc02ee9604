"""Older candles, and decisions with odd names, in Chromium: over a mirror's file at rest, and live."""

from __future__ import annotations

import urllib.parse

import pytest
from playwright.async_api import Page, expect

from bus.messages.subjects import escape_topic
from tests.browser.conftest import ODD, RESTED_ROUNDS
from tests.browser.looking import figures_without_source, overflow, press, serious_violations, until, visit

FIRST = RESTED_ROUNDS - 600 + 1
"""The oldest round that the overview has at first."""

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


async def open_candle(page: Page, key: str, steps: int = 1) -> str:
    """Go along the chart by the keyboard, and open the decision there; its title."""
    await page.locator("#chart").focus()
    for _ in range(steps):
        await page.keyboard.press(key)
    await page.keyboard.press("Enter")
    await page.wait_for_url("**/decisions/*")
    await expect(page.locator(".check")).to_contain_text("the same to the last digit")
    return await page.locator("h1").inner_text()


async def test_older_candles_and_their_decisions_are_paged_to_by_the_keyboard(rested):
    await visit(rested, "/?symbol=BTC/USD")
    await expect(rested.locator("#chart-newer")).to_be_disabled()
    await press(rested, "#chart-older")
    span = rested.locator("#chart-note")
    await expect(span).to_contain_text("older: 2019-05-13 13:00:00 to")
    await expect(rested.locator("#chart-older")).to_be_disabled()
    assert await rested.locator("#chart-live").get_attribute("aria-pressed") == "false"
    assert await open_candle(rested, "Home") == "BTC/USD, round 1"
    await visit(rested, "/?symbol=BTC/USD")
    await press(rested, "#chart-older")
    await expect(span).to_contain_text("older")
    assert await open_candle(rested, "End") == f"BTC/USD, round {FIRST - 1}"


@pytest.mark.parametrize("button", ["#chart-newer", "#chart-live"])
async def test_the_newest_candles_are_shown_again(rested, button):
    await visit(rested, "/?symbol=BTC/USD")
    await press(rested, "#chart-older")
    await expect(rested.locator("#chart-note")).to_contain_text("older")
    await press(rested, button, " ")
    await expect(rested.locator("#chart-note")).to_be_empty()
    await expect(rested.locator("#chart-live")).to_have_attribute("aria-pressed", "true")
    assert await open_candle(rested, "End") == f"BTC/USD, round {RESTED_ROUNDS}"


async def test_where_nothing_is_older_that_is_said(rested):
    await visit(rested, f"/?symbol={urllib.parse.quote(ODD)}")
    await press(rested, "#chart-older")
    await expect(rested.locator("#chart-note")).to_have_text("no older ones are stored")


async def test_what_a_feed_had_before_it_began_anew_is_paged_to_while_others_go_on(page, shown):
    symbol = "OLD/NEW"

    async def publish(minute: int, price: float) -> None:
        tick = {
            "symbol": symbol, "price": price, "volume": 1.0, "timestamp": f"2026-01-01T00:0{minute}:00Z",
            "source": "stranger",
        }  # fmt: skip
        await shown.subscriber.publish(f"market.{escape_topic(symbol)}.stranger", tick)

    for minute, price in ((0, 1.0), (1, 2.0), (2, 3.0), (0, 4.0), (1, 5.0)):
        await publish(minute, price)
    await page.goto(f"/?symbol={symbol}")
    close = page.locator("#readout .fig").nth(4)
    await expect(close).to_have_text("5.00")
    await press(page, "#chart-older")
    await expect(close).to_have_text("3.00")
    await expect(page.locator("#chart-note")).to_contain_text("older: 2026-01-01 00:00:00 to 2026-01-01 00:02:00")
    await publish(1, 6.0)
    await press(page, "#chart-live")
    await expect(close).to_have_text("6.00")


async def test_a_decision_with_an_odd_symbol_is_opened_from_its_row(rested):
    await visit(rested, "/")
    await rested.locator("#decisions tr a").first.click()
    await expect(rested.locator(".check")).to_contain_text("the same to the last digit")
    assert await rested.locator("h1").text_content() == f"{ODD}, round 1"
    assert "research-1%3A1" in rested.url
    address = rested.url
    await rested.goto(address)
    await expect(rested.locator(".check")).to_contain_text("the same to the last digit")


@pytest.mark.parametrize("path", ["/?symbol=BTC/USD", "/timeline", "/decisions/latest", "/messages/3"])
async def test_pages_at_rest_hold_what_pages_must(rested, path):
    await visit(rested, path)
    if "symbol" in path:
        await press(rested, "#chart-older")
        await expect(rested.locator("#chart-note")).to_contain_text("older")
    await until(rested, "document.body.dataset.conn === 'file'")
    assert await figures_without_source(rested) == []
    for colours in ("dark", "light"):
        assert await serious_violations(rested, colours) == []
    assert [await overflow(rested, width) for width in (390, 320)] == [0, 0]
