"""swarm.toml and overrides into frozen settings."""
