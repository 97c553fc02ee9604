"""How the role is started: its configuration, its port, its token, and the link that a person opens.

The web framework is imported only once all of that is right.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bus.errors import UsageError
from coordinator.config.loader import load_swarm
from coordinator.config.telemetry import NOWHERE
from coordinator.dashboard.listen import OpenPort, inherited_port, open_port
from coordinator.dashboard.token import load_token
from coordinator.monitor.status import remote_sandboxes
from coordinator.runner.run_record import Run

ADDRESS_FILE = "dashboard.url"
"""Relative to the state directory: where its newest dashboard listens."""
DEFAULT_LISTEN = "127.0.0.1:8080"
PROBE_S = 1.0


@dataclass(frozen=True, slots=True)
class ShownSwarm:
    """The swarm that is shown: the URL of its bus, its name, and the record of its run, if it is that of `up`."""

    url: str
    name: str
    run: Run | None = None


def start_dashboard(
    swarm: ShownSwarm | None,
    *,
    file: Path | None,
    listen: str | None,
    config_file: Path | None,
    state_dir: Path,
    log_level: str,
) -> int:
    """Open the port, say where it is, and serve until a signal: either `swarm`, or `file` at rest.

    Raises:
        UsageError: the address cannot be listened on, the file is no mirror, or the token cannot be kept.
    """
    settings = load_swarm(config_file).dashboard
    inherited = inherited_port()
    if inherited is not None:
        port = inherited
    else:
        where, text = ("--listen", listen) if listen is not None else ("dashboard.listen:", settings.listen)
        port = open_port(DEFAULT_LISTEN if text == NOWHERE else text, where)
    from coordinator.dashboard.guard import is_loopback
    from coordinator.dashboard.server import DashboardOptions, run_dashboard

    # A file on loopback needs no token: nothing can be acted on, and everybody here may read.
    needs_token = swarm is not None or not is_loopback(port.host)
    token = keep_token(state_dir) if needs_token else secrets.token_urlsafe()
    options = DashboardOptions(
        token=token,
        url="" if swarm is None else swarm.url,
        swarm="" if swarm is None else swarm.name,
        file=file,
        state_dir=state_dir,
        remote_sandboxes=() if swarm is None else remote_sandboxes(swarm.run),
        jaeger_url=settings.jaeger,
        log_level=log_level,
    )
    if inherited is None:
        announce(port, token if needs_token else None, state_dir)
    return run_dashboard(options, port.socket)


def keep_token(state_dir: Path) -> str:
    """The token of `state_dir`, which is created where it does not exist.

    Raises:
        UsageError: neither can be read or written.
    """
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--state-dir {state_dir}: cannot be used: {error.strerror}") from None
    return load_token(state_dir)


def announce(port: OpenPort, token: str | None, state_dir: Path) -> None:
    """Say on standard error where the dashboard is, and note it for `--link`.

    With the token only on a terminal: what goes into a file or a pipe is a log.
    """
    if token is not None:
        with contextlib.suppress(OSError):  # the pages work without it
            temporary = state_dir / f"{ADDRESS_FILE}.{os.getpid()}"
            temporary.write_text(f"{port.url}\n")
            temporary.replace(state_dir / ADDRESS_FILE)
    if port.remark:
        print(f"signalmesh: {port.remark}", file=sys.stderr)
    if token is None:
        print(f"dashboard: {port.url}", file=sys.stderr, flush=True)
    elif sys.stderr.isatty():
        print(f"dashboard: {port.url}?token={token}", file=sys.stderr, flush=True)
    else:
        print(f"dashboard: {port.url} (`signalmesh dashboard --link` adds the token)", file=sys.stderr, flush=True)


def print_link(state_dir: Path) -> None:
    """Print the link to the dashboard of `state_dir`, with its token.

    Raises:
        UsageError: no dashboard of that state directory answers.
    """
    try:
        url = (state_dir / ADDRESS_FILE).read_text().strip()
        place = urlsplit(url)
        with socket.create_connection((place.hostname or "", place.port or 0), PROBE_S):
            pass
    except (OSError, ValueError):
        raise UsageError(
            f"--state-dir {state_dir}: no dashboard of it answers; `signalmesh up` and `signalmesh dashboard` start one"
        ) from None
    print(f"{url}?token={load_token(state_dir)}")
