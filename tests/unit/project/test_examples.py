"""The examples are what they say: their swarm.toml resolve, and a stranger's agent is as small as promised."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import pytest

from agents.builtin.command import CommandAgent, command_class
from agents.spec import load_class
from bus.messages import MarketData, encode
from coordinator.config.loader import load_swarm
from tests.support.repository import ROOT

EXAMPLES = ROOT / "examples"
LONGEST_AGENT_LINES = 15
LONGEST_SCRIPT_LINES = 40
DEFAULT_VOTERS = {"research-2": 1.0, "strategy-momentum": 1.0, "strategy-mean-reversion": 1.0}


@pytest.fixture(autouse=True)
def _own_modules():
    """The examples' modules are forgotten after each test."""
    path = list(sys.path)
    yield
    sys.path[:] = path
    sys.modules.pop("my_agents", None)


def ticks(*prices):
    stamp = datetime(2020, 1, 1, tzinfo=UTC)
    return [
        MarketData(symbol="BTC/USD", price=price, volume=1.0, timestamp=stamp, source="research-1", sequence=number)
        for number, price in enumerate(prices, 1)
    ]


@pytest.mark.parametrize(
    ("example", "added", "kind"),
    [("my_agent", "strategy-breakout", "breakout"), ("node-agent", "strategy-crossover", "command")],
)
def test_it_is_the_default_swarm_and_one_voter(example, added, kind):
    config = load_swarm(directory=EXAMPLES / example).resolve()
    built_in = load_swarm(directory=EXAMPLES).resolve()
    assert [a for a in config.agents if a.spec.name != added] == list(built_in.agents)
    assert config.agent(added).spec.kind == kind
    assert config.voters == {**DEFAULT_VOTERS, added: 1.0}
    assert config.max_agents == 6


def test_a_users_agent_is_one_small_class():
    lines = [line for line in (EXAMPLES / "my_agent" / "my_agents.py").read_text().splitlines() if line.strip()]
    assert len(lines) <= LONGEST_AGENT_LINES
    spec = load_swarm(directory=EXAMPLES / "my_agent").agent("strategy-breakout").spec
    agent = load_class(spec)(spec.name, spec.options)
    votes = [agent.on_market(tick) for tick in ticks(*range(100, 120), 119, 121)]  # type: ignore[attr-defined]
    assert [vote.signal for vote in votes] == ["hold"] * 21 + ["buy"]
    assert (votes[-1].source, votes[-1].symbol, votes[-1].round) == ("strategy-breakout", "BTC/USD", 22)
    assert encode(votes[-1])


def test_the_script_needs_a_page_only_and_no_packages():
    text = (EXAMPLES / "node-agent" / "agent.mjs").read_text()
    assert len(text.splitlines()) <= LONGEST_SCRIPT_LINES
    assert [line for line in text.splitlines() if line.startswith("import")] == [
        'import { createInterface } from "node:readline";'
    ]
    spec = load_swarm(directory=EXAMPLES / "node-agent").agent("strategy-crossover").spec
    agent = command_class(spec)(spec.name, spec.options)
    assert isinstance(agent, CommandAgent)
    assert (agent.listens, agent.publishes, agent.options.timeout_s) == (("market",), ("signal",), 5.0)
    assert agent.directory == str(EXAMPLES / "node-agent")
    assert agent.pid is None
