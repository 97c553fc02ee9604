"""Logging harms nobody, whatever becomes of the place where it goes."""

from __future__ import annotations

import subprocess
import sys

ON_A_FULL_DISK = """
import logging, structlog
from bus.logs import set_up_logs
with open("/dev/full", "w") as full:
    set_up_logs("info", full)
    for _ in range(1000):
        structlog.get_logger("test").info("something", text="x" * 100)
        logging.getLogger("test").error("something else")
    print("lives on", flush=True)
    import os
    os._exit(0)
"""


def test_a_full_disk_ends_no_process():
    done = subprocess.run(
        [sys.executable, "-c", ON_A_FULL_DISK], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "lives on\n", "")
