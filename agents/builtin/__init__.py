"""The kinds of agents that come with the project, by name. swarm.toml names a user's own as `module:Class`.

Strings, not classes: a process imports only the one that it runs.
"""

from __future__ import annotations

KINDS: dict[str, str] = {
    "market-data": "agents.builtin.market_data:MarketDataAgent",
    "mean-reversion": "agents.builtin.mean_reversion:MeanReversionAgent",
    "momentum": "agents.builtin.momentum:MomentumAgent",
    "sentiment": "agents.builtin.sentiment:SentimentAgent",
}
"""Kind -> where its class stands, as `module:Class`."""
