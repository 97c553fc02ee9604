"""The parsers of bytes that come from the bus, from files and over HTTP, each with what it may do with them.

A target takes any bytes. It fails by an exception that the parser does not document, or that of a check of its own.
"""

from __future__ import annotations

from tests.fuzz import bus_targets, file_targets
from tests.fuzz.target import TARGETS, run_for

__all__ = ["TARGETS", "bus_targets", "file_targets", "run_for"]
