"""Pictures of the dashboard's pages, taken by Chromium: for `make pictures`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

from playwright.async_api import Browser, async_playwright

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1440, 900
GUARD_MS = 60_000
NEWEST = "/decisions/latest"
SOME_ROWS = "#decisions tr:nth-child(12)"
STAKED = "#decisions tr:has(.side.buy) a, #decisions tr:has(.side.sell) a"


def chromium_program() -> str | None:
    """The installed Chromium, or the one that SIGNALMESH_CHROMIUM names; None: there is none. Playwright's own
    download is not used.
    """
    return os.environ.get("SIGNALMESH_CHROMIUM") or next(filter(None, map(shutil.which, PROGRAMS)), None)


async def take_screenshots(address: str, directory: Path) -> None:
    """The overview in both colours, and a decision that stakes something, of the dashboard at `address`.

    Raises:
        RuntimeError: no Chromium is installed.
    """
    program = chromium_program()
    if program is None:
        raise RuntimeError("pictures of the dashboard need Chromium: install it (apt-get install chromium)")
    async with async_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = await playwright.chromium.launch(executable_path=program, args=arguments)
        try:
            await _overview(browser, address, directory / "dashboard-dark.png", "dark")
            await _overview(browser, address, directory / "dashboard-light.png", "light")
            await _decision(browser, address, directory / "dashboard-decision.png")
        finally:
            await browser.close()


async def _overview(browser: Browser, address: str, file: Path, colours: Literal["dark", "light"]) -> None:
    page = await browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=colours)
    await page.goto(address)
    await page.locator(SOME_ROWS).wait_for(timeout=GUARD_MS)
    await page.locator("#conn[data-state=live]").wait_for(timeout=GUARD_MS)
    await page.screenshot(path=file)
    await page.close()


async def _decision(browser: Browser, address: str, file: Path) -> None:
    page = await browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
    await page.goto(address)
    link = page.locator(STAKED).first
    await link.wait_for(timeout=GUARD_MS)
    path = await link.get_attribute("href")
    await page.goto(address.rstrip("/") + (path or NEWEST))
    await page.locator(".voters tbody tr").first.wait_for(timeout=GUARD_MS)
    await page.screenshot(path=file)
    await page.close()
