"""What `up` finds out about agents before it starts anything."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil
import pytest

from bus.errors import ConfigError
from coordinator.config.loader import load_swarm
from coordinator.runner import preflight

GOOD = """
from agents.agent import Agent
from bus.messages import MarketData

class Mine(Agent):
    kind = "mine"
    listens = ("market",)

    def on_market(self, tick: MarketData) -> None:
        pass
"""


def check(directory: Path, table: str, code: str = "", more: str = "") -> str:
    """What is said of a swarm of this one agent; empty if nothing is."""
    (directory / "mine.py").write_text(code)
    (directory / "swarm.toml").write_text(f'[agents.one]\n{table}\n[agents.two]\nkind = "momentum"\n{more}')
    try:
        preflight.check_agents(load_swarm(directory=directory))
    except ConfigError as error:
        return str(error)
    return ""


def command(program: str) -> str:
    return f'command = ["{program}", "x"]\nlistens = ["market"]\npublishes = ["signal"]'


def test_a_program_must_be_there(tmp_path):
    (tmp_path / "good.sh").write_text("#!/bin/sh\n")
    assert "agents.one.command: " in check(tmp_path, command("no-such-program-anywhere"))
    assert "PATH" in check(tmp_path, command("no-such-program-anywhere"))
    assert str(tmp_path / "bad.sh") in check(tmp_path, command("./bad.sh"))
    assert "chmod +x" in check(tmp_path, command("./good.sh"))
    (tmp_path / "good.sh").chmod(0o755)
    assert check(tmp_path, command("./good.sh")) == ""
    assert check(tmp_path, command("sh")) == ""


def test_a_good_class_is_made(tmp_path):
    assert check(tmp_path, 'class = "mine.py:Mine"', GOOD) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "named"),
    [
        ("import time\ntime.sleep(3600)", ("importing mine.py", "3 s")),
        (f"{GOOD}\n    def setup(self) -> None:\n        while True: pass\n", ("creating it", "setup()", "3 s")),
        ("import os\nos._exit(7)", ("importing mine.py", "exit code 7")),
    ],
    ids=["hangs at import", "hangs in setup", "ends its process"],
)
def test_what_does_not_come_back_is_named(tmp_path, code, named):
    printed = check(tmp_path, 'class = "mine.py:Mine"', code, "[watchdog]\nstart_timeout_s = 3\n")
    assert "agents.one.class" in printed
    assert all(word in printed for word in named), printed


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["", "os._exit(7)", "os.setsid()"], ids=["goes on", "ends its process", "leaves"])
def test_what_a_setup_has_started_ends_with_the_check(tmp_path, ending):
    started = tmp_path / "started"
    code = f"""{GOOD}
    def setup(self) -> None:
        import os, subprocess
        leave = (lambda: os.setsid()) if {ending!r} == "os.setsid()" else None
        child = subprocess.Popen(["sleep", "600"], preexec_fn=leave)
        with open({str(started)!r}, "w") as file:
            file.write(str(child.pid))
        {ending if "_exit" in ending else "pass"}
"""
    printed = check(tmp_path, 'class = "mine.py:Mine"', code)
    assert ("exit code 7" in printed) == (ending == "os._exit(7)")
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(started.read_text())).wait(60)


def test_an_exception_is_reported_in_its_own_words(tmp_path):
    assert "ZeroDivisionError" in check(tmp_path, 'class = "mine.py:Mine"', "1 / 0")
    assert "SystemExit" in check(tmp_path, 'class = "mine.py:Mine"', "raise SystemExit(3)")
