"""Alerts to a webhook over a real server and a real receiver: each one, in order, whatever the receiver does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bus.durable.events import EventPublisher
from bus.errors import BusError, ConfigError, UsageError
from bus.messages import Alert, encode
from bus.messages.headers import MSG_ID
from bus.messages.subjects import Subjects
from bus.nats.bus import NatsBus
from bus.nats.streams import ensure_streams
from bus.server.supervisor import NatsServer
from bus.utils.aio import end_tasks
from coordinator.config.loader import parse_swarm
from coordinator.config.telemetry import webhook_of
from coordinator.telemetry import alert_webhook
from coordinator.telemetry.alert_webhook import Webhook
from coordinator.telemetry.labels import Names
from coordinator.telemetry.stream_metrics import StreamMetrics
from tests.support.collecting import GUARD_S
from tests.support.receiver import Receiver, receiver


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alert_webhook, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(alert_webhook, "LAST_WAIT_S", 0.05)


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[NatsBus]:
    async with NatsServer(tmp_path, port=0) as server:
        created = await NatsBus.connect(server.url, "swarm", "test")
        await ensure_streams(created)
        yield created
        await created.close()


class Posting:
    """A webhook that runs, on a connection of its own."""

    def __init__(self, bus: NatsBus, address: str, reports: EventPublisher) -> None:
        self.bus = bus
        self.metrics = StreamMetrics(Subjects("swarm"), Names(()))
        self.reports = reports
        url = f"http://{address}/hook/s3cret"
        self.webhook = Webhook(bus, url, self.metrics, reports)
        self.task = asyncio.create_task(self.webhook.run())

    async def ready(self) -> None:
        """Wait until alerts that are stored from now on are posted."""
        while True:
            try:
                await self.webhook.waiting()
                return
            except BusError:
                await asyncio.sleep(0.01)

    async def all_posted(self) -> None:
        while await self.webhook.waiting():
            await asyncio.sleep(0.01)

    def counted(self, outcome: str) -> float:
        return self.metrics.registry.get_sample_value("signalmesh_webhook_attempts_total", {"outcome": outcome}) or 0

    async def end(self) -> None:
        await self.webhook.finish()
        await end_tasks([self.task])
        await self.reports.finish()
        await self.bus.close()


@asynccontextmanager
async def posting(bus: NatsBus, port: int, host: str = "") -> AsyncIterator[Posting]:
    own = await NatsBus.connect(bus.connection.url, "swarm", "metrics")
    created = Posting(own, host or f"127.0.0.1:{port}", await EventPublisher.open(own, "metrics"))
    await created.ready()
    try:
        yield created
    finally:
        await created.end()


async def alert(bus: NatsBus, number: int, id_: str = "") -> None:
    message = Alert(
        severity="warning",
        code=f"code_{number}",
        message=f"alert {number}",
        timestamp=datetime(2026, 1, 1, tzinfo=UTC),
        source="test",
        detail={"number": number},
    )
    await bus.publish("in.swarm.alert.warning.test", encode(message), {MSG_ID: id_ or f"test:{number}"})


def codes(receiver: Receiver) -> list[str]:
    return [body["code"] for body in receiver.taken.items]


async def test_an_alert_is_posted_as_json(bus):
    async with receiver() as there, posting(bus, there.port) as posted:
        await alert(bus, 1)
        [body] = await there.taken.reach(1)
        assert body == {
            "id": "test:1",
            "swarm": "swarm",
            "sequence": 1,
            "text": "[warning] swarm: alert 1",
            "severity": "warning",
            "code": "code_1",
            "message": "alert 1",
            "timestamp": "2026-01-01T00:00:00Z",
            "source": "test",
            "agent": None,
            "detail": {"number": 1},
        }
        assert there.keys == ["test:1"]
        await bus.publish("in.swarm.alert.warning.test", b"{")
        await alert(bus, 2)
        await there.taken.reach(2)
        assert codes(there) == ["code_1", "code_2"]
        await posted.all_posted()
        assert posted.counted("unreadable") == 1


async def test_what_the_receiver_does_not_accept_is_retried_in_order_and_reported_once(bus):
    async with receiver() as there, posting(bus, there.port) as posted:
        there.answers = [500, 503, 301, 404, 429] * 4 + [204]
        for number in range(1, 4):
            await alert(bus, number)
        await there.taken.reach(5)
        await posted.all_posted()
        assert [code for code in codes(there) if code.startswith("code")] == ["code_1", "code_2", "code_3"]
        assert codes(there).count("webhook_failing") == codes(there).count("webhook_recovered") == 1
        assert [body["code"] for body in there.requested.items[:21]] == ["code_1"] * 21
        assert posted.counted("failed") == 20
        assert posted.counted("delivered") == 5
        [failing] = [body for body in there.taken.items if body["code"] == "webhook_failing"]
        assert "it answered with 500" in failing["message"]


async def test_a_proxy_that_refuses_is_named_by_its_variable(bus, monkeypatch: pytest.MonkeyPatch):
    async with receiver() as proxy:
        monkeypatch.setenv("http_proxy", f"http://user:s3cret@127.0.0.1:{proxy.port}")
        async with posting(bus, proxy.port, "hooks.example.com") as posted:
            proxy.answers = [403]
            await alert(bus, 1)
            await proxy.taken.reach(1)
            await posted.all_posted()
        [failing] = [body for body in proxy.taken.items if body["code"] == "webhook_failing"]
        assert "it answered with 403 (through the proxy in http_proxy);" in failing["message"]
        assert "s3cret" not in failing["message"]


async def test_a_refused_alert_does_not_block_the_next(bus):
    async with receiver() as there, posting(bus, there.port) as posted:
        there.answers = [422]
        await alert(bus, 1)
        await alert(bus, 2)
        await there.taken.reach(1)
        assert codes(there) == ["code_2"]
        await posted.all_posted()
        assert [body["code"] for body in there.requested.items] == ["code_1", "code_2"]
        assert posted.counted("refused") == 1


async def test_a_receiver_that_never_answers_is_retried(bus, monkeypatch):
    monkeypatch.setattr(alert_webhook, "POST_S", 0.3)
    async with receiver() as there, posting(bus, there.port) as posted:
        there.answers = [0, 0]
        await alert(bus, 1)
        await there.taken.reach(2)
        assert codes(there)[:2] == ["code_1", "webhook_failing"]
        await posted.all_posted()
        assert posted.counted("failed") == 2


async def test_a_receiver_that_is_not_there_gets_its_alerts_when_it_is(bus):
    async with receiver() as there:
        port = there.port
    async with posting(bus, port) as posted:
        await alert(bus, 1)
        while posted.counted("failed") < 3:
            await asyncio.sleep(0.01)
        await alert(bus, 2)
        async with receiver(port) as there:
            await there.taken.reach(4)
            assert sorted(codes(there)) == ["code_1", "code_2", "webhook_failing", "webhook_recovered"]
            assert codes(there)[0] == "code_1"


async def test_a_restart_neither_repeats_nor_loses(bus):
    await alert(bus, 0)  # before there was ever a webhook
    async with receiver() as there:
        async with posting(bus, there.port):
            await alert(bus, 1)
            await there.taken.reach(1)
        await alert(bus, 2)
        await alert(bus, 3)
        there.answers = [500] * 3
        async with posting(bus, there.port):
            await there.requested.reach(3)  # it ends while it tries
        async with posting(bus, there.port):
            await alert(bus, 4)
            await there.taken.reach(5)
        assert [code for code in codes(there) if code.startswith("code")] == ["code_1", "code_2", "code_3", "code_4"]


async def test_the_successor_publishes_the_recovery_from_a_published_failure(bus):
    async with receiver() as there:
        there.answers = [500] * 1000
        async with posting(bus, there.port):
            await alert(bus, 1)
            async with asyncio.timeout(GUARD_S):
                while await bus.last("swarm.alert.warning.metrics") is None:
                    await asyncio.sleep(0.01)
        async with posting(bus, there.port) as second:
            await there.requested.reach(len(there.requested.items) + 3)  # it fails too, and does not tell of it again
            there.answers.clear()
            await there.taken.reach(3)
            assert codes(there) == ["code_1", "webhook_failing", "webhook_recovered"]
            await second.all_posted()
        async with posting(bus, there.port) as third:
            await alert(bus, 2)
            await there.taken.reach(4)
            await third.all_posted()
            assert codes(there)[3:] == ["code_2"]


async def test_two_of_them_post_each_alert_once(bus):
    async with receiver() as there, posting(bus, there.port), posting(bus, there.port):
        for number in range(20):
            await alert(bus, number)
        await there.taken.reach(20)
        assert codes(there) == [f"code_{number}" for number in range(20)]


async def test_a_lost_consumer_is_recreated_at_its_position(bus):
    async with receiver() as there, posting(bus, there.port):
        await alert(bus, 1)
        await there.taken.reach(1)
        await bus.api("CONSUMER.DELETE.swarm_events.webhook")
        await alert(bus, 2)
        await there.taken.reach(2)
        assert codes(there) == ["code_1", "code_2"]


def test_the_url_is_printed_by_no_error_and_no_settings(monkeypatch):
    for wrong in ("s3cret.example", "ftp://s3cret.example", "http://", "http://[s3cret", "https://s3cret:99999/", 5):
        with pytest.raises(ConfigError) as found:
            parse_swarm({"alerts": {"webhook": wrong}}, "swarm.toml", "")
        assert "alerts.webhook" in str(found.value)
        assert "s3cret" not in str(found.value)
    with pytest.raises(ConfigError) as found:
        parse_swarm({"alerts": {"webhook": ["https://s3cret.example"]}}, "swarm.toml", "")
    assert "s3cret" not in str(found.value)
    config = parse_swarm({"alerts": {"webhook": "https://s3cret.example/x"}}, "swarm.toml", "")
    assert "s3cret" not in repr(config)
    assert webhook_of(config) == "https://s3cret.example/x"
    monkeypatch.setenv("SIGNALMESH_WEBHOOK", "https://other.example/")
    assert webhook_of(config) == "https://other.example/"
    monkeypatch.setenv("SIGNALMESH_WEBHOOK", "s3cret")
    with pytest.raises(UsageError, match="SIGNALMESH_WEBHOOK: expected an http") as wrong_variable:
        webhook_of(config)
    assert "s3cret" not in str(wrong_variable.value)
