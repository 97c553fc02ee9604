"""What an outside subscriber did not receive, it reads: each alert counts once."""

from __future__ import annotations

from pathlib import Path

from bus.messages import Alert, encode, now
from bus.nats.bus import NatsBus
from bus.server.supervisor import NatsServer
from coordinator.monitor.observer import Observer
from tests.support.nats import Connections


async def alert(bus: NatsBus, message: str) -> None:
    reported = Alert(severity="warning", code="ill", message=message, timestamp=now(), source="somebody")
    await bus.publish("in.swarm.alert.warning.somebody", encode(reported))


async def test_alerts_from_before_it_listened_are_read_and_none_counts_twice(tmp_path: Path):
    async with NatsServer(tmp_path, port=0) as server, Connections() as connections:
        bus = await connections.bus(server.url, streams=True)
        await alert(bus, "before")
        await bus.publish("in.swarm.alert.warning.somebody", b"garbage")
        reported: list[str] = []
        observer = Observer(await connections.bus(server.url), lambda alert: reported.append(alert.message))
        await observer.start()
        await observer.read_alerts()  # by the same connection: the server has its subscription, too, when it answers
        assert reported == ["before"]
        await alert(bus, "while it listens")
        await observer.until(lambda: len(reported) == 2, 20)
        await observer.read_alerts()
        assert reported == ["before", "while it listens"]
        assert [one.message for _, one in observer.alerts] == reported
        await observer.stop()
