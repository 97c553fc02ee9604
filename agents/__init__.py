"""The class to derive an agent from, and what runs it.

builtin/  The agent kinds that ship with the project, by name.
feeds/    Recorded data and the readers of it.
runtime/  The life of one agent process: claim, restore, replay, run, drain.
state/    The State of an agent as JSON and back, exactly.
host/     The sandbox host: starts and ends agent processes where it runs.
agent     `Agent`, the class to derive from.
spec      How an agent is configured, and how its class is found.
"""

from agents.agent import Agent

__all__ = ["Agent"]
