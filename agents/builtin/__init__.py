"""The agent kinds that ship with the project, by name."""

from __future__ import annotations

# Strings, not classes: a process imports only the one that it runs.
KINDS: dict[str, str] = {
    "market-data": "agents.builtin.market_data:MarketDataAgent",
    "mean-reversion": "agents.builtin.mean_reversion:MeanReversionAgent",
    "momentum": "agents.builtin.momentum:MomentumAgent",
    "sentiment": "agents.builtin.sentiment:SentimentAgent",
}
"""Kind -> `module:Class`, the form in which swarm.toml names a user's own class."""
