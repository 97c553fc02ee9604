"""What the watchdog sends to a sandbox host."""

from __future__ import annotations

from agents.host.protocol import SpawnOrder
from agents.spec import AgentSpec
from bus.nats.key_files import new_seed


def test_an_order_does_not_show_its_key():
    seed = new_seed()
    order = SpawnOrder(term=1, spec=AgentSpec(name="a", kind="momentum"), epoch=2, agent_id="x", seed=seed)
    assert seed not in repr(order)
