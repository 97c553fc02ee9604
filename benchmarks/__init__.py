"""Benchmarks of signalmesh and of bare nats-py. `make bench` runs all; results are committed in results/."""
