"""How the role is started: its configuration, its port and its token.

The web framework is imported only once all of that is right.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from bus.mirror.reader import MirrorFile
from coordinator.config.loader import load_swarm
from coordinator.config.telemetry import NOWHERE, ListenAddress, check_page_url
from coordinator.monitor.run_files import RunFiles
from coordinator.runner.dashboard_link import announce, inherited_port, keep_token, open_port
from coordinator.runner.run_record import Run

DEFAULT_LISTEN = "127.0.0.1:8080"


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
    jaeger: str | None,
    config_file: Path | None,
    state_dir: Path,
    log_level: str,
) -> int:
    """Open the port, say where it is, and serve until a signal: either `swarm`, or `file` at rest.

    Raises:
        UsageError: the address cannot be listened on, the file is no mirror, or the token cannot be kept.
        MirrorDamaged: the file is broken.
    """
    settings = load_swarm(config_file).dashboard
    if file is not None:
        MirrorFile(file).close()  # what is wrong with it is said before a page is promised
    where, text = ("--listen", listen) if listen is not None else ("dashboard.listen:", settings.listen)
    text = DEFAULT_LISTEN if text in ("", NOWHERE) else text
    inherited = inherited_port()
    port = open_port(text, where) if inherited is None else inherited
    from bus.nats.urls import is_loopback
    from coordinator.dashboard.server import DashboardOptions, run_dashboard

    # A file on loopback needs no token: nothing can be acted on, and everybody here may read.
    needs_token = swarm is not None or not is_loopback(port.host)
    token = keep_token(state_dir) if needs_token else secrets.token_urlsafe()
    options = DashboardOptions(
        token=token,
        host_name=ListenAddress.parse(text, where).host,
        url="" if swarm is None else swarm.url,
        swarm="" if swarm is None else swarm.name,
        file=file,
        state_dir=state_dir,
        files=RunFiles() if swarm is None else RunFiles(swarm.run, state_dir),
        jaeger_url=settings.jaeger if jaeger is None else check_page_url(jaeger, "--jaeger"),
        log_level=log_level,
    )
    if inherited is None:
        announce(port, token if needs_token else None, state_dir)
    return run_dashboard(options, port.socket)
