"""Chromium, and a swarm with a dashboard to look at."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import pytest_asyncio
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright, expect

from docs.generate.screenshots import chromium_program
from tests.acceptance.subscriber import Subscriber
from tests.acceptance.swarm import Swarm, agents_toml
from tests.support.coordinator_rounds import CONFIG, VOTERS, tick, vote
from tests.support.copying import Recorded
from tests.support.dashboard import dashboard_process
from tests.support.mirror_files import mirrored
from tests.support.recorded_rounds import RecordedRounds

WAIT_MS = 30_000
"""A busy machine takes its time for a page."""
expect.set_options(timeout=WAIT_MS)
SPEED = 8
"""Candles a second: enough to see the pages move."""
ROUNDS = 300
"""More than the first candles, which are not paced."""

RESTED_ROUNDS = 900
"""Of the file at rest: a page of the chart has 600."""
ODD = "a/b \r\n?#%2F%\x00é\u2028\\"
"""A symbol that HTML, addresses and shells would read as something else."""


@dataclass(frozen=True)
class Shown:
    """A swarm, and where its dashboard is."""

    swarm: Swarm
    subscriber: Subscriber
    address: str
    link: str

    @property
    def token(self) -> str:
        return self.link.partition("?token=")[2]


@pytest.fixture(scope="session")
def chromium() -> str:
    """Its program; a browser that Playwright downloads is not used."""
    found = chromium_program()
    if found is None:
        pytest.skip("no Chromium: install it (apt-get install chromium), or name it in SIGNALMESH_CHROMIUM")
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shown(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shown]:
    toml = agents_toml(speed=SPEED) + '[dashboard]\nlisten = "127.0.0.1:0"\n'
    async with Swarm(tmp_path_factory.mktemp("shown"), toml) as swarm:
        subscriber = await swarm.up(dashboard=True)
        await subscriber.decided(ROUNDS)
        await subscriber.until("the dashboard's heartbeat", lambda: subscriber.heartbeats.get("dashboard"))
        link = (await swarm.command("dashboard", "--link")).out.strip()
        yield Shown(swarm, subscriber, link.partition("?")[0].rstrip("/"), link)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(chromium: str) -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = await playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield browser
        await browser.close()


@asynccontextmanager
async def visitor(browser: Browser, address: str) -> AsyncIterator[Page]:
    """A new visitor. No script may fail, and nothing may offend the Content-Security-Policy."""
    problems: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type == "error" and "Failed to load resource" not in message.text and "net::ERR" not in message.text:
            problems.append(message.text)

    context = await browser.new_context(base_url=address, viewport={"width": 1440, "height": 900})
    page = await context.new_page()
    page.set_default_timeout(WAIT_MS)
    page.on("console", note)
    page.on("pageerror", lambda error: problems.append(str(error)))
    yield page
    await context.close()
    assert problems == []


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser, shown: Shown) -> AsyncIterator[Page]:
    """A new visitor of the running swarm."""
    async with visitor(browser, shown.address) as page:
        yield page


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def at_rest(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The address of a dashboard of a mirror's file with more rounds than the overview has at first."""
    recorded, directory = RecordedRounds(), tmp_path_factory.mktemp("rested")
    recorded.play([CONFIG])
    for n in range(1, RESTED_ROUNDS + 1):
        recorded.play([tick(n, 7000.0 + n * 7 % 13), *(vote(voter, n, 0.62) for voter in VOTERS)])
    recorded.play([tick(1, symbol=ODD), *(vote(voter, 1, 0.62, ODD) for voter in VOTERS)])
    file = await mirrored(directory / "mirror.sqlite", Recorded(tuple(recorded.messages)))
    async with dashboard_process(directory, None, "--file", str(file)) as dashboard:
        yield dashboard.url


@pytest_asyncio.fixture(loop_scope="module")
async def rested(browser: Browser, at_rest: str) -> AsyncIterator[Page]:
    """A new visitor of the file at rest."""
    async with visitor(browser, at_rest) as page:
        yield page
