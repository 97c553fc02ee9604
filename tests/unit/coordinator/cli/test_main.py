"""The console script, interrupted before a command runs."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "coordinator.cli.app":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from coordinator.cli.main import main
main()
"""


def test_ctrl_c_while_the_program_is_loaded_is_no_traceback():
    done = subprocess.run([sys.executable, "-c", SCRIPT, "--help"], capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")
