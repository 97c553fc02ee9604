"""What a person does with a page, and what must hold for every page."""

from __future__ import annotations

import asyncio
from typing import Any

from axe_playwright_python.async_playwright import Axe  # type: ignore[import-untyped]
from playwright.async_api import Page, expect

GUARD_S = 60.0
"""A wait that takes so long has failed."""
READY = {
    "/": "document.querySelectorAll('#decisions tr').length >= 10",
    "/timeline": "document.querySelectorAll('#lanes svg').length === 1",
    "/decisions/latest": "document.querySelectorAll('.voters tbody tr').length === 3",
    "/agents/coordinator": "document.querySelectorAll('#outputs tr').length >= 10",
    "/mesh": "document.querySelectorAll('#mesh .node').length >= 5",
    "/messages/3": "document.getElementById('payload').textContent.length > 2",
}
"""What holds once a page has its figures."""
SOURCES = """() => [...document.querySelectorAll('.fig:not(.none)')].filter((node) => node.offsetParent).map((node) => {
    node.focus();
    return [node.textContent, document.getElementById('pop').textContent];
})"""
"""The text of each figure, and what the page says about it when it has the focus."""


async def until(page: Page, condition: str, arg: str = "") -> None:
    """Wait until `condition` (of `arg`) holds in the page. Playwright's own wait uses eval, which the pages forbid."""
    async with asyncio.timeout(GUARD_S):
        await page.evaluate(
            "arg => new Promise((done) => { const look = () => ("
            + condition
            + ") ? done() : requestAnimationFrame(look); look(); })",
            arg,
        )


async def visit(page: Page, path: str) -> None:
    await page.goto(path)
    if path in READY:
        await until(page, READY[path])


async def press(page: Page, button: str, key: str = "Enter") -> None:
    """Press a button by the keyboard; one that is still disabled would not get the key."""
    await expect(page.locator(button)).to_be_enabled()
    await page.locator(button).press(key)


async def figures_without_source(page: Page) -> list[str]:
    """The figures about which the page says nothing."""
    found = await page.evaluate(SOURCES)
    return [figure for figure, source in found if not source or "has reported this yet" in source]


async def serious_violations(page: Page, colours: Any) -> list[tuple[str, ...]]:
    """What axe-core calls serious or critical."""
    await page.emulate_media(color_scheme=colours, reduced_motion="reduce")
    found = (await Axe().run(page)).response["violations"]
    return [
        (one["id"], one["help"], node["html"][:200], node.get("failureSummary", "")[:300])
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"][:3]
    ]


async def overflow(page: Page, width: int) -> int:
    """By how many pixels the page is wider than a window of `width`."""
    await page.set_viewport_size({"width": width, "height": 700})
    wide: int = await page.evaluate("document.documentElement.scrollWidth")
    return max(0, wide - width)
