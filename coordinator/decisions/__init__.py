"""The coordinator agent: votes into decisions, with risk and size."""
