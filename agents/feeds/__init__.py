"""Recorded data and the readers of it."""
