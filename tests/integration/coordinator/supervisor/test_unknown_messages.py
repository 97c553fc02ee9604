"""Messages of unknown kinds in the stream are reported, once for each kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from bus.durable.events import EventPublisher
from bus.nats.bus import NatsBus
from bus.nats.streams import ensure_streams
from bus.server.supervisor import NatsServer
from coordinator.supervisor.unknown_messages import UnknownMessageMonitor


async def test_each_unknown_kind_is_reported_once(tmp_path: Path) -> None:
    async with NatsServer(tmp_path, port=0) as server:
        bus = await NatsBus.connect(server.url, "swarm", "watchdog")
        await ensure_streams(bus)
        reports = await EventPublisher.open(bus, "watchdog")
        monitor = UnknownMessageMonitor(bus, reports)

        async def alerted() -> list[dict[str, Any]]:
            await monitor.check()
            await reports.flush()
            return [orjson.loads(stored.data) for stored in await bus.read_back(("swarm.alert.>",), 1)]

        await bus.publish("in.swarm.market.BTC-USD.feed", b"{")  # a kind of ours, however bad
        await bus.publish("in.swarm.epoch.a", b"{}")
        await bus.publish("in.swarm.market.too-short", b"{}")  # poison to those who read the market
        assert await alerted() == []
        for subject in ("foo.bar.baz", "foo.bar.other", "heartbeat.a"):
            await bus.publish(f"in.swarm.{subject}", b"{}")
        alerts = await alerted()
        assert {alert["code"] for alert in alerts} == {"unknown_message_kind"}
        details = sorted((alert["detail"]["kind"], alert["detail"]["messages"]) for alert in alerts)
        assert details == [("foo", 2), ("heartbeat", 1)]
        assert any("in.swarm.foo.bar.baz" in alert["message"] for alert in alerts)
        await bus.publish("in.swarm.foo.bar.baz", b"{}")
        assert len(await alerted()) == 2
        await reports.finish()
        await bus.close()
