"""Benchmarks of signalmesh beside bare nats-py. `make bench` runs all; results are committed in results/."""
