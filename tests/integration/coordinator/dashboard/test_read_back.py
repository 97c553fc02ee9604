"""Candles older than those that the model keeps, page by page from a real stream, are those that it once showed."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from bus.messages import MarketData
from bus.nats.bus import NatsBus
from coordinator.dashboard.model import END, Row, SwarmModel
from coordinator.dashboard.read_back import CandlePage, candles_before
from coordinator.explain.sources import BusSource, Filter
from tests.support.dashboard import BEGIN, put, put_round
from tests.support.nats import Connections, supervised_server

SYMBOL = "BTC/USD"
PAGE = 7


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.dashboard.read_back.MAX_CANDLES", PAGE)


async def pages_of(source: BusSource, before: int | None = END) -> list[CandlePage]:
    """All pages, the newest first."""
    found = []
    while before is not None:
        found.append(await candles_before(source, SYMBOL, (), before))
        before = found[-1].before
    return found


async def shown(bus: NatsBus) -> list[Row]:
    """What the model shows of the whole stream."""
    model = SwarmModel(bus.subjects)
    for stored in await BusSource(bus).read((Filter("market"), Filter("decision")), 1, END):
        model.take(stored)
    return model.candles_of(SYMBOL)


async def put_tick(bus: NatsBus, price: float, minutes: int, number: int | None = None) -> int:
    at = BEGIN + timedelta(minutes=minutes)
    tick = MarketData(symbol=SYMBOL, price=price, volume=1.0, timestamp=at, source="feed", sequence=number)
    return await put(bus, "market", SYMBOL, "feed", tick)


async def test_pages_join_without_a_gap_and_have_the_decisions_on_their_candles(tmp_path: Path) -> None:
    async with supervised_server(tmp_path) as server, Connections() as connections:
        bus = await connections.bus(server.url, streams=True)
        for number in range(1, 31):
            await put_round(bus, number)
            await put_round(bus, number, "ETH/USD")
        pages = await pages_of(BusSource(bus))
        assert [row for page in pages[::-1] for row in page.candles] == await shown(bus)
        for page in pages:
            assert len(page.candles) <= PAGE
            assert [row["t"] for row in page.decisions] == [row["t"] for row in page.candles]
            assert all(row["symbol"] == SYMBOL and row["latency_ms"] is not None for row in page.decisions)
        assert await candles_before(BusSource(bus), "DOGE", (), END) == CandlePage([], [], None)
        assert (await candles_before(BusSource(bus), SYMBOL, ("another",), END)).decisions == []


async def test_ticks_of_one_time_are_one_candle_also_where_pages_meet(tmp_path: Path) -> None:
    async with supervised_server(tmp_path) as server, Connections() as connections:
        bus = await connections.bus(server.url, streams=True)
        for number in range(40):
            await put_tick(bus, 100.0 + number * 7 % 11, number // 3)
        whole = await shown(bus)
        pages = await pages_of(BusSource(bus))
        assert [row for page in pages[::-1] for row in page.candles] == whole
        # From the page's own newest candles on, of which each is named by its last tick:
        middle = whole[5]
        older = await pages_of(BusSource(bus), middle["sequence"])
        assert [row for page in older[::-1] for row in page.candles] == whole[:5]


async def test_where_a_feed_has_begun_anew_a_page_ends_and_the_next_goes_on(tmp_path: Path) -> None:
    async with supervised_server(tmp_path) as server, Connections() as connections:
        bus = await connections.bus(server.url, streams=True)
        for minutes in (0, 1, 2, 3, 0, 1, 2):
            await put_tick(bus, 100.0 + minutes, minutes)
        await put(bus, "market", SYMBOL, "feed", b"no tick")
        pages = await pages_of(BusSource(bus))
        assert [[row["c"] for row in page.candles] for page in pages] == [
            [100.0, 101.0, 102.0],
            [100.0, 101.0, 102.0, 103.0],
        ]


async def test_ticks_that_are_all_of_one_time_come_to_an_end(tmp_path: Path) -> None:
    async with supervised_server(tmp_path) as server, Connections() as connections:
        bus = await connections.bus(server.url, streams=True)
        for number in range(3 * PAGE):
            await put_tick(bus, float(number + 1), 0)
        pages = await pages_of(BusSource(bus))
        assert sum(len(page.candles) for page in pages) == 1
