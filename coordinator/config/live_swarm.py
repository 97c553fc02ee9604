"""The swarm as it is now: what is configured, with the changes that were made at run time."""

from __future__ import annotations

from agents.spec import AgentSpec
from coordinator.config.changes import NO_CHANGES, Changes, apply_changes, known_traits
from coordinator.config.settings import ResolvedSwarm


class LiveSwarm:
    """The settings of a term. `base` are those of swarm.toml, `config` those with the changes."""

    def __init__(self, base: ResolvedSwarm, changes: Changes = NO_CHANGES) -> None:
        """Start with `changes`.

        Raises:
            ConfigError: they do not fit `base`.
        """
        self.base = base
        self.specs: dict[str, AgentSpec] = {}
        """Agent -> its spec, of those that a host runs. The same object for the whole term."""
        self.take(changes, self.with_changes(changes))

    def with_changes(self, changes: Changes) -> ResolvedSwarm:
        """The swarm that it would be with `changes`; no class is imported whose traits they have.

        Raises:
            ConfigError: they do not fit.
        """
        if changes.is_empty:
            return self.base
        return apply_changes(self.base, changes).resolve(known_traits(self.base, changes))

    def take(self, changes: Changes, config: ResolvedSwarm) -> None:
        """Go on with `config`, which `with_changes` has returned for `changes`."""
        self.changes, self.config = changes, config
        self.specs.clear()
        self.specs |= {item.spec.name: item.spec for item in config.agents if not item.external}
