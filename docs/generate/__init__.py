"""Generates docs/reference/ from the code. Not a part of the wheel."""
