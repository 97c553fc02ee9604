"""The outcome of a run that ends as messages arrive, over a real nats-server."""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from pathlib import Path

from bus.messages import Lifecycle, encode
from bus.nats.bus import NatsBus
from coordinator.config.loader import load_swarm
from coordinator.runner.outcome import Outcome
from tests.support.nats import plain_server


def publish_at_once(url: str, subject: str, payload: bytes) -> None:
    """Return when the server has passed the message on; nothing of this process receives meanwhile."""
    host, _, port = url.removeprefix("nats://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection, connection.makefile("rb") as lines:
        head = f"PUB {subject} {len(payload)}\r\n".encode()
        connection.sendall(b'CONNECT {"verbose":false}\r\n' + head + payload + b"\r\nPING\r\n")
        while not lines.readline().startswith(b"PONG"):
            pass


async def test_what_the_server_has_sent_before_the_end_counts(tmp_path: Path):
    (tmp_path / "swarm.toml").write_text("")
    async with plain_server(tmp_path) as url:
        bus = await NatsBus.connect(url, "swarm", "up")
        outcome = Outcome(load_swarm(directory=tmp_path).resolve())
        await outcome.listen(bus)
        await bus.flush()
        event = Lifecycle(
            event="quarantined", agent="research-1", timestamp=datetime.now(UTC), source="watchdog", reason="it dies"
        )
        publish_at_once(url, bus.subjects.lifecycle("research-1", "watchdog"), encode(event))
        [problem] = await outcome.problems(bus, signalled=True)
        assert problem.startswith("agent research-1 is quarantined: it dies;")
        await bus.close()
