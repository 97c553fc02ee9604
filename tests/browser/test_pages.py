"""The pages of the dashboard, in Chromium, over a real swarm."""

from __future__ import annotations

import signal

import pytest
from playwright.async_api import Browser, Page, expect

from bus.messages.subjects import escape_topic
from tests.acceptance.faults import kill_server
from tests.browser.conftest import Shown
from tests.browser.looking import SOURCES, figures_without_source, overflow, serious_violations, until, visit
from tests.support.repository import ROOT

STATIC = ROOT / "coordinator" / "dashboard" / "static"
LARGEST_BYTES = 500_000
PAGES = ("/", "/timeline", "/agents/coordinator", "/mesh", "/messages/3", "/login", "/nothing")
MARKUP = "<img src=x onerror='window.broken=1'><b>bold</b>"

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


async def record_states(page: Page) -> None:
    """Keep every state of the connection that the page shows from now on in `window.states`."""
    await page.evaluate("""() => {
        window.states = [];
        new MutationObserver(() => window.states.push(document.body.dataset.conn))
            .observe(document.body, { attributes: true, attributeFilter: ['data-conn'] });
    }""")


async def moves_on(page: Page) -> None:
    """Wait for a newer decision than the ones in the table."""
    newest = await page.locator("#decisions tr").first.inner_text()
    await until(page, "document.querySelector('#decisions tr').innerText !== arg", newest)


def pid_of(shown: Shown, agent: str) -> int:
    pid: int = shown.subscriber.heartbeats[agent]["pid"]
    return pid


async def test_static_files_are_small(chromium):
    assert sum(file.stat().st_size for file in STATIC.rglob("*") if file.is_file()) < LARGEST_BYTES


async def test_overview_shows_what_the_bus_carries(page, shown):
    await visit(page, "/")
    await moves_on(page)
    text = await page.locator("#agents").inner_text()
    for agent in ("research-1", "research-2", "strategy-momentum", "strategy-mean-reversion", "coordinator"):
        assert agent in text
    row = page.locator("#decisions tr").first
    await page.locator("#decisions-h").hover()  # the rows stay where they are while the panel is pointed at
    await expect(page.locator("#decisions-state")).to_contain_text("held")
    number = int((await row.locator("a").inner_text()).split()[-1].replace(",", ""))
    [decision] = [one for one in shown.subscriber.decisions if one["round"] == number]
    assert f"{decision['consensus_level']:.3f}" in await row.inner_text()
    assert decision["final_decision"] in await row.inner_text()


async def test_the_keyboard_reaches_everything(page):
    await visit(page, "/")
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.className") == "skip"
    await page.keyboard.press("Enter")
    assert await page.evaluate("document.activeElement.id") == "main"
    await page.keyboard.press("Tab")
    first = await page.evaluate("document.activeElement.textContent")
    await expect(page.locator("#pop")).to_be_visible()
    await page.keyboard.press("ArrowRight")
    assert await page.evaluate("document.activeElement.className") == "fig"
    assert await page.evaluate("document.activeElement.textContent") != first
    await page.keyboard.press("Escape")
    await expect(page.locator("#pop")).to_be_hidden()
    await page.keyboard.press("?")
    await expect(page.locator("#keys")).to_be_visible()
    await page.keyboard.press("Escape")
    await page.locator("#chart").focus()
    await page.keyboard.press("ArrowLeft")
    await page.keyboard.press("ArrowLeft")
    await page.keyboard.press("Enter")
    await page.wait_for_url("**/decisions/*")
    await page.keyboard.press("g")
    await page.keyboard.press("t")
    await page.wait_for_url("**/timeline")


async def test_a_death_is_a_bar_with_an_account(page, shown):
    await visit(page, "/timeline")
    agent = "strategy-momentum"
    epoch = shown.subscriber.claims[agent]
    shown.swarm.send(pid_of(shown, agent), signal.SIGKILL)
    await shown.subscriber.back({agent: epoch})
    death = page.locator(f".death[aria-label^='Death of {agent}'][aria-label*='ready after']").first
    await death.wait_for(state="attached")
    await death.focus()
    await page.keyboard.press("Enter")
    await expect(page.locator("#account-body")).to_contain_text("Ready again after")
    await expect(page.locator("#account-body")).to_contain_text("signal 9")
    for name in ("outputs lost", "outputs duplicated"):  # counted in the stream for the death that is opened
        await expect(page.locator(f"#account-body dt:text-is('{name}') + dd")).to_have_text("0")
    await expect(page.locator("#account-body .steps")).to_contain_text("first output")
    before = await page.locator("#span-text").inner_text()
    await page.locator("#lanes").focus()
    await page.keyboard.press("+")
    await page.keyboard.press("ArrowLeft")
    await until(page, "document.getElementById('span-text').innerText !== arg", before)
    assert await page.locator("#zoom-live").get_attribute("aria-pressed") == "false"


async def test_it_is_cut_off_and_comes_back_when_the_server_was_killed(page, shown):
    await visit(page, "/")
    await record_states(page)
    await kill_server(shown.swarm, shown.subscriber)
    await until(page, "window.states.includes('cut') && window.states.at(-1) === 'live'")
    await moves_on(page)
    await expect(page.locator("#banner")).to_be_hidden()


async def test_it_comes_back_when_the_dashboard_was_killed(page, shown):
    await visit(page, "/")
    await record_states(page)
    shown.swarm.send(pid_of(shown, "dashboard"), signal.SIGKILL)
    await until(page, "window.states.includes('cut') && window.states.at(-1) === 'live'")
    await moves_on(page)


async def test_it_says_that_it_is_stale(page, shown):
    await visit(page, "/")
    pid = pid_of(shown, "dashboard")
    shown.swarm.send(pid, signal.SIGSTOP)
    try:
        await until(page, "['stale', 'cut'].includes(document.body.dataset.conn)")
        await expect(page.locator("#banner")).to_contain_text("The figures are from before")
    finally:
        shown.swarm.send(pid, signal.SIGCONT)
    await until(page, "document.body.dataset.conn === 'live'")
    await moves_on(page)


async def test_a_wrong_token_is_refused(page):
    await visit(page, "/agents/research-2")
    await expect(page.locator("#act-kill")).to_be_disabled()
    await expect(page.locator("#act-note")).to_contain_text("token")
    assert await page.evaluate("fetch('/api/agents/research-2/kill', { method: 'POST' }).then((r) => r.status)") in (
        401,
        403,
    )
    await page.goto("/login?next=/agents/research-2")
    await page.locator("#token").fill("wrong")
    await page.get_by_role("button", name="Use this token").click()
    await expect(page.get_by_role("alert")).to_contain_text("token")


async def test_with_the_token_an_agent_is_killed_and_recovers(page, shown):
    await page.goto("/login?next=/agents/research-2")
    await page.locator("#token").fill(shown.token)
    await page.get_by_role("button", name="Use this token").click()
    await page.wait_for_url("**/agents/research-2")
    await page.locator("#act-kill").click()
    await page.get_by_role("button", name="Cancel").click()
    await page.locator("#act-kill").click()
    await page.locator("#confirm-yes").click()
    await expect(page.locator("#act-note")).to_contain_text("recovered")
    await expect(page.locator("#life")).to_contain_text("declared_dead")


async def test_the_link_with_the_token_leads_to_the_clean_address(page, shown):
    await page.goto(shown.link)
    assert page.url == f"{shown.address}/"
    await page.goto("/agents/research-2")
    await expect(page.locator("#act-kill")).to_be_enabled()


async def test_the_chosen_colours_are_kept(page):
    await page.emulate_media(color_scheme="light")
    await visit(page, "/")
    light = await page.evaluate("getComputedStyle(document.body.parentNode).backgroundColor")
    await page.keyboard.press("c")
    dark = await page.evaluate("getComputedStyle(document.body.parentNode).backgroundColor")
    assert light != dark
    await page.goto("/mesh")
    assert await page.evaluate("getComputedStyle(document.body.parentNode).backgroundColor") == dark


async def test_markup_stays_text(page, shown):
    subscriber = shown.subscriber
    at = "2026-01-01T00:00:00Z"
    alert = {
        "severity": "warning",
        "code": MARKUP,
        "message": MARKUP,
        "agent": MARKUP,
        "timestamp": at,
        "source": "stranger",
    }
    tick = {"symbol": MARKUP, "price": 1.0, "volume": 1.0, "timestamp": at, "source": "stranger", "sequence": 1}
    sequence = await subscriber.publish("alert.warning.stranger", alert)
    await subscriber.publish(f"market.{escape_topic(MARKUP)}.stranger", tick)
    await visit(page, "/")
    await expect(page.locator("#alerts")).to_contain_text(MARKUP)
    for path in (
        "/timeline",
        "/mesh",
        f"/messages/{sequence}",
        f"/agents/{MARKUP}",
        f"/decisions/{MARKUP}",
        f"/?symbol={MARKUP}",
    ):
        await page.goto(path)
        await page.wait_for_load_state("networkidle") if "message" in path else await page.wait_for_load_state()
        assert await page.locator("img, main b").count() == 0
    assert await page.evaluate("window.broken") is None


async def test_two_viewers_see_the_same(page, browser: Browser, shown):
    await visit(page, "/")
    other = await browser.new_page(base_url=shown.address)
    try:
        await visit(other, "/")
        newest = await other.locator("#decisions tr a").first.inner_text()
        await until(
            page, "[...document.querySelectorAll('#decisions a')].some((link) => link.textContent === arg)", newest
        )
    finally:
        await other.close()


@pytest.mark.parametrize("path", ["/", "/timeline", "/agents/coordinator", "/mesh"])
async def test_every_figure_names_its_source(page, path):
    await visit(page, path)
    assert await figures_without_source(page) == []
    if path == "/":
        sources = " ".join(source for _, source in await page.evaluate(SOURCES))
        assert "heartbeat of coordinator" in sources
        assert "message " in sources


@pytest.mark.parametrize("colours", ["dark", "light"])
@pytest.mark.parametrize("path", PAGES)
async def test_axe_finds_nothing_serious(page, path, colours):
    await visit(page, path)
    assert await serious_violations(page, colours) == []


@pytest.mark.parametrize("path", PAGES)
async def test_a_phone_shows_all_of_it_and_axe_finds_nothing_serious(page, path):
    await visit(page, path)
    assert [await overflow(page, width) for width in (390, 320)] == [0, 0]
    assert await serious_violations(page, "light") == []
