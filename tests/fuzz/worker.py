"""Fuzzes one target until its time is over or it fails: `python -m tests.fuzz.worker NAME CORPUS SECONDS`."""

from __future__ import annotations

import importlib
import sys
from typing import Any

MAX_INPUT_BYTES = 300_000
"""A little more than the largest payload."""
INPUT_S = 10
"""An input that takes longer hangs."""
MEMORY_MB = 2048
"""A process that holds more has no bound."""


def main(name: str, corpus: str, seconds: str) -> None:
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["agents", "bus", "coordinator"]):
        targets = importlib.import_module("tests.fuzz.targets")
    arguments = [
        sys.argv[0], corpus, f"-max_total_time={seconds}", f"-timeout={INPUT_S}", f"-rss_limit_mb={MEMORY_MB}",
        f"-max_len={MAX_INPUT_BYTES}", f"-artifact_prefix={corpus}.", "-print_final_stats=1", "-verbosity=0",
    ]  # fmt: skip
    atheris.Setup(arguments, targets.TARGETS[name].run)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
