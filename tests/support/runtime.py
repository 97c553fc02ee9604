"""A runtime over any bus, with the epoch that its process would have claimed."""

from __future__ import annotations

from agents.agent import Agent
from agents.runtime.checkpointer import SNAPSHOT_INPUTS
from agents.runtime.runtime import NO_HOOKS, Runtime, RuntimeHooks
from bus.durable.fencing import claim, new_agent_id
from bus.interface import Bus


async def claim_runtime(
    agent: Agent, bus: Bus, *, snapshot_inputs: int = SNAPSHOT_INPUTS, hooks: RuntimeHooks = NO_HOOKS
) -> Runtime:
    """A runtime of `agent`, not yet run."""
    agent_id = new_agent_id()
    epoch = await claim(bus, agent.name, agent_id=agent_id, claimed_by=agent.name, sandbox="")
    return Runtime(
        agent,
        bus,
        epoch,
        agent_id=agent_id,
        snapshot_inputs=snapshot_inputs,
        hooks=hooks,
    )
