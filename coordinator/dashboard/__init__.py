"""The `dashboard` role: pages and live figures of one swarm in a browser, over the bus or a mirror's file."""
