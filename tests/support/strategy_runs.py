"""Ticks for a strategy, and what it publishes of them."""

from __future__ import annotations

from datetime import UTC, datetime

from bus.messages import MarketData

START = datetime(2020, 1, 1, tzinfo=UTC)


def ticks(closes, symbol="BTC/USD"):
    return [
        MarketData(symbol=symbol, price=close, volume=1.0, timestamp=START, source="research-1", sequence=number)
        for number, close in enumerate(closes, 1)
    ]


def run(agent, events):
    return [agent.on_market(event) for event in events]
