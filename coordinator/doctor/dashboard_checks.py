"""The checks of `doctor` of the dashboard: does it answer where it says, and may only its owner read the token?"""

from __future__ import annotations

import http.client
from pathlib import Path
from urllib.parse import urlsplit

from coordinator.config.settings import SwarmConfig
from coordinator.reporting.findings import Finding, error, ok, skipped, warning
from coordinator.runner.dashboard_link import TOKEN_FILE, is_private, read_place
from coordinator.runner.run_record import Run

__all__ = ["check_dashboard"]

CHECK = "dashboard"
ANSWER_S = 3.0


def check_dashboard(state_dir: Path, run: Run | None, config: SwarmConfig) -> Finding:
    """Whether the dashboard of `state_dir` answers, and the mode of its token's file."""
    token_file = state_dir / TOKEN_FILE
    if token_file.exists() and not is_private(token_file):
        return error(
            CHECK,
            f"{token_file} can be read by other users: they could act on the swarm's agents",
            f"rm {token_file}, and start the dashboard again: it makes a new token",
        )
    place = read_place(state_dir)
    if place is None:
        if run is not None and run.alive() and run.child("dashboard") is not None:
            return warning(CHECK, "`up` runs one, but its address is not recorded", "run doctor again in a second")
        off = "`[dashboard] listen` is off" if config.dashboard.listen in ("", "off") else "`up` starts one"
        return skipped(CHECK, f"no dashboard of this state directory runs; {off}")
    parts = urlsplit(place.url)
    try:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=ANSWER_S)
        connection.request("GET", "/login")
        status = connection.getresponse().status
        connection.close()
    except (OSError, http.client.HTTPException) as problem:
        return error(CHECK, f"{place.url} does not answer: {problem}", f"see {state_dir / 'logs' / 'dashboard.log'}")
    if status != http.client.OK:
        return error(
            CHECK, f"{place.url} answers with {status} instead of 200", f"see {state_dir / 'logs' / 'dashboard.log'}"
        )
    return ok(CHECK, f"{place.url} answers; only its owner can read {token_file.name}")
