"""`chaos`: random faults on a running swarm."""
