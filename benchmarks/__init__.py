"""Benchmarks of signalmesh (`make bench`), and of other software beside it (`make bench-peers`)."""
