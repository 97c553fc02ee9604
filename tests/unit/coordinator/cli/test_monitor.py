"""What the read-only commands import: their CPU time is mostly that."""

from __future__ import annotations

import subprocess
import sys

from bus.errors import EXIT_UNREACHABLE
from signalmesh import FILE
from tests.support.repository import ROOT

NOT_NEEDED = {"agents.spec", "coordinator.config.loader", "coordinator.config.settings", "rich.progress", "sqlite3"}


def test_explain_over_the_bus_imports_no_configuration_and_no_sqlite():
    arguments = ["explain", "latest", "--nats", "nats://127.0.0.1:1", "--swarm", "swarm"]
    done = subprocess.run(
        [sys.executable, "-P", "-X", "importtime", FILE, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == EXIT_UNREACHABLE
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert {"coordinator.explain.explainer", "bus.nats.bus", "numpy"} <= imported
    assert not imported & NOT_NEEDED


def test_the_command_line_does_not_install_pydantic():
    assert "\npydantic" not in (ROOT / "requirements.lock").read_text()  # typer 0.29 imports it for every option
