"""Changes of a swarm while it runs: what the leading watchdog does on request."""
