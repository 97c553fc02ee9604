"""The console script: interrupted before a command runs, given empty values, and asked for help."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import typer
from rich.text import Text

from coordinator.cli.app import app
from signalmesh import python_command

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


@pytest.mark.parametrize("arguments", [("--state-dir", ""), ("--state-dir=",), ("--nats", ""), ("--swarm", "")])
def test_an_empty_value_is_refused_by_its_option(tmp_path, arguments):
    done = subprocess.run(
        python_command("status", *arguments), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"signalmesh: {arguments[0].removesuffix('=')}: expected a value, not an empty text")
    assert done.stderr.count("\n") == 1


def test_no_part_of_a_help_text_is_taken_for_markup():
    """`[metrics]` would be a style, and vanish."""
    program: Any = typer.main.get_command(app)
    texts = [program.help, *(option.help for option in program.params)]
    for command in program.commands.values():
        texts += [command.help, *(getattr(option, "help", None) for option in command.params)]
    assert len(texts) > 100
    for text in filter(None, texts):
        assert Text.from_markup(text).plain == text
