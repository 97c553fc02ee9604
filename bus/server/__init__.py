"""The embedded nats-server process."""
