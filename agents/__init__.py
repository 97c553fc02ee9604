"""Agents: the class to derive from, the runtime that makes it exact, and the kinds that come with the project."""

from agents.agent import Agent

__all__ = ["Agent"]
