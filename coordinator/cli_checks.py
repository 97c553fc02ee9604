"""Verbs that look a swarm over and try it out. What they do is in coordinator/doctor.py."""

from __future__ import annotations

from pathlib import Path

import typer

from bus.errors import EXIT_DONE, EXIT_FAILED
from bus.tasks import run_to_end
from coordinator.options import STATE_DIR, ConfigFile, Json, Nats, StateDir, print_json


def doctor(nats: Nats = None, state_dir: StateDir = STATE_DIR, config: ConfigFile = None, json: Json = False) -> None:
    """Look at all that a swarm needs, running or not: what is wrong, and what to do. Changes nothing."""
    from bus.logs import set_up_logs
    from coordinator.doctor import diagnose, print_diagnosis

    set_up_logs("error")
    found = run_to_end(diagnose(nats, state_dir, config, Path.cwd()))
    if json:
        print_json(found)
    else:
        print_diagnosis(found)
    raise typer.Exit(EXIT_DONE if found.ok else EXIT_FAILED)
