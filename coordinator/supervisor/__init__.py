"""The watchdog: detects failures, restarts agents, elects its leader."""
