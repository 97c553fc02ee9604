"""Wrong addresses, and pages that are opened while the bus is away, in Chromium."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from bus.nats.bus import NatsBus
from bus.nats.streams import ensure_streams
from bus.server.supervisor import NatsServer
from tests.browser.conftest import visitor
from tests.browser.looking import serious_violations
from tests.support.dashboard import dashboard_process, put_round
from tests.support.ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


async def test_an_unknown_agent_has_no_figures_and_the_known_ones_are_named(page):
    answer = await page.goto("/agents/nobody")
    assert answer.status == 404
    await expect(page.get_by_role("alert")).to_contain_text("'nobody': there is none")
    await expect(page.get_by_role("alert")).to_contain_text("strategy-momentum")
    await expect(page.locator("#strip")).to_be_hidden()
    await expect(page.locator("#act-kill")).to_be_hidden()
    assert await serious_violations(page, "light") == []
    assert (await page.goto("/agents/coordinator")).status == 200
    await expect(page.locator("#strip")).to_be_visible()
    await expect(page.get_by_role("alert")).to_be_hidden()


async def test_an_unknown_symbol_is_named_and_another_is_shown(page):
    await page.goto("/?symbol=DOGE")
    await expect(page.locator("#chart-note")).to_contain_text("'DOGE': no tick of it")
    await expect(page.locator("#symbol")).to_have_value("BTC/USD")
    await expect(page.locator("#readout .fig").nth(4)).not_to_be_empty()


async def test_commands_in_errors_are_code(page):
    await page.goto("/decisions/nonsense")
    await expect(page.get_by_role("alert").locator("code")).to_have_text("signalmesh history decision")
    await page.goto("/?token=wrong")
    await expect(page.get_by_role("alert").locator("code")).to_have_text("signalmesh dashboard --link")


async def test_pages_that_are_opened_while_the_bus_is_away_come_back_with_it(tmp_path: Path, browser: Browser):
    port = free_port()
    async with NatsServer(tmp_path / "server", port=port) as server:
        bus = await NatsBus.connect(server.url, "swarm", "test")
        await ensure_streams(bus)
        _, sequence = await put_round(bus, 1)
        await bus.close()
    async with dashboard_process(tmp_path, server.url) as dashboard:
        paths = {
            "/decisions/latest": "BTC/USD, round 1", "/decisions/BTC%2FUSD:research-1:1": "BTC/USD, round 1",
            f"/messages/{sequence}": '"final_decision"', "/": "BTC/USD 1",
        }  # fmt: skip
        async with AsyncExitStack() as stack:
            pages = {path: await stack.enter_async_context(visitor(browser, dashboard.url)) for path in paths}
            for path, page in pages.items():
                await page.goto(path)
                await expect(page.get_by_text("away").or_(page.get_by_text("cut off")).first).to_be_visible()
            await stack.enter_async_context(NatsServer(tmp_path / "server", port=port))
            for path, page in pages.items():
                await expect(page.locator("main")).to_contain_text(paths[path], timeout=60_000)
