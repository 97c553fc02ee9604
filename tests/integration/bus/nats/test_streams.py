"""Servers that are not ours: their JetStream, limits, streams of our names, users and permissions."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import pytest

from bus.errors import BusUnreachable, PermissionDenied, UsageError
from bus.interface import ReceivedMessage
from bus.messages import MAX_PAYLOAD_BYTES
from bus.nats.bus import NatsBus
from bus.nats.streams import StreamLimits, ensure_streams, expected_streams
from tests.support.nats import Connections, plain_server


def configured(directory: Path, text: str) -> tuple[str, str]:
    """The arguments of a server with this configuration."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "nats.conf"
    file.write_text(f'jetstream {{ store_dir: "{directory}/store" }}\n{text}\n')
    return "-c", str(file)


def with_user(url: str, user: str) -> str:
    return url.replace("//", f"//{user}@")


async def test_a_user_and_a_password_are_percent_decoded(tmp_path):
    password = "p@ss/w#rd%1:x?é"
    accounts = f"authorization {{ users: [ {{ user: 'u:1', password: {orjson.dumps(password).decode()} }} ] }}"
    async with plain_server(tmp_path, *configured(tmp_path, accounts)) as url, Connections() as connections:
        user = f"{quote('u:1', safe='')}:{quote(password, safe='')}"
        bus = await connections.bus(with_user(url, user))
        await ensure_streams(bus)
        assert password not in bus.url


@pytest.mark.parametrize("user", ["", "u:secret@"])
async def test_an_address_with_tls_is_never_used_without(tmp_path, user):
    async with plain_server(tmp_path, *configured(tmp_path, "")) as url:
        with pytest.raises(BusUnreachable, match="offers no TLS, which tls:// requires") as refused:
            await NatsBus.connect(url.replace("nats://", f"tls://{user}"), "swarm", "test", 2.0)
        assert "secret" not in str(refused.value)


async def test_a_server_that_takes_smaller_messages_is_refused_by_its_setting(tmp_path):
    arguments = configured(tmp_path, f"max_payload: {MAX_PAYLOAD_BYTES - 1}")
    async with plain_server(tmp_path, *arguments) as url, Connections() as connections:
        bus = await connections.bus(url)
        with pytest.raises(UsageError, match=rf"at most {MAX_PAYLOAD_BYTES - 1} bytes \(max_payload\)"):
            await ensure_streams(bus)


async def test_a_member_of_a_cluster_without_jetstream_will_do_where_another_has_it(tmp_path):
    """Judged by the answer of the API, as a leaf node's hub would give it."""
    hub = configured(tmp_path / "hub", "leafnodes { listen: '127.0.0.1:-1' }")
    async with plain_server(tmp_path / "hub", *hub) as hub_url, Connections() as connections:
        first = await connections.bus(hub_url)
        await ensure_streams(first)
        config = tmp_path / "none.conf"
        config.write_text("")
        async with plain_server(tmp_path, "-c", str(config)) as url:
            with pytest.raises(UsageError, match="runs without JetStream; start it with --jetstream"):
                await ensure_streams(await connections.bus(url))


async def test_a_stream_that_stores_requests_answers_none(tmp_path):
    async with plain_server(tmp_path, *configured(tmp_path, "")) as url, Connections() as connections:
        bus = await connections.bus(url)
        await bus.api("STREAM.CREATE.archive", {"name": "archive", "subjects": ["swarm.>"], "storage": "file"})
        other = await connections.bus(url)

        async def answer(received: ReceivedMessage) -> bytes:
            await asyncio.sleep(0.1)  # the stream's acknowledgement is first
            return b'{"pid": 1}'

        await other.answer("swarm.control.host.spawn", answer)
        await other.connection.client.flush()
        assert await bus.request("swarm.control.host.spawn", b"{}") == b'{"pid": 1}'
        assert (await bus.api("STREAM.INFO.archive"))["state"]["messages"] >= 1


DENIED = """
authorization { users: [ { user: u, password: p,
  permissions: { publish: { deny: ["$JS.API.CONSUMER.>", "in.swarm.alert.>"] } } } ] }
"""


async def test_a_denied_publish_is_an_answer_with_subject_user_and_permission(tmp_path):
    async with plain_server(tmp_path, *configured(tmp_path, DENIED)) as url, Connections() as connections:
        bus = await connections.bus(with_user(url, "u:p"))
        await ensure_streams(bus)
        async with asyncio.timeout(4):  # less than the time-out of a request
            with pytest.raises(PermissionDenied, match=r"user 'u' publish to \$JS\.API\.CONSUMER\.CREATE"):
                await bus.follow(("swarm.>",), 1, lambda _: None)
            with pytest.raises(Exception, match=r"user 'u' publish to in\.swarm\.alert"):
                await bus.publish("in.swarm.alert.warning.x", b"{}")


def other(**settings: Any) -> dict[str, Any]:
    return settings


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (other(allow_msg_ttl=False), "allow_msg_ttl is .*--allow-msg-ttl"),
        (other(discard="new", max_msgs=200), r"max_msgs is 200, expected unlimited.*--max-msgs=-1.*--discard=old"),
        (other(max_msgs_per_subject=5), "max_msgs_per_subject is 5, expected unlimited.*nats stream edit swarm_events"),
        (other(max_msg_size=100), r"max_msg_size is 100, expected unlimited"),
        (other(republish=None), "republish is not set.*nats stream rm swarm_events"),
        (other(retention="interest"), 'retention is "interest", expected "limits"'),
        (other(no_ack=True), "no_ack is true"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_a_stream_of_our_name_with_other_settings_is_not_used(tmp_path, settings, text):
    async with plain_server(tmp_path, *configured(tmp_path, "")) as url, Connections() as connections:
        bus = await connections.bus(url)
        [events, *_] = expected_streams(bus, StreamLimits())
        if "allow_msg_ttl" in settings:
            events = {key: value for key, value in events.items() if key != "allow_msg_ttl"}
        await bus.api("STREAM.CREATE.swarm_events", {**events, **settings})
        with pytest.raises(UsageError, match=text):
            await ensure_streams(bus)


async def test_limits_are_updated_and_an_existing_stream_is_not_created_again(tmp_path):
    """A server that has no room for another stream of this size has room for the one that it stores."""
    limit = 40 * 1024 * 1024
    arguments = configured(tmp_path, "")
    Path(arguments[1]).write_text(f'jetstream {{ store_dir: "{tmp_path}/store", max_file_store: {limit} }}\n')
    async with plain_server(tmp_path, *arguments) as url, Connections() as connections:
        bus = await connections.bus(url)
        await ensure_streams(bus, StreamLimits(max_bytes=limit - 1))
        await ensure_streams(bus, StreamLimits(max_bytes=limit - 1))
        await ensure_streams(bus, StreamLimits(max_bytes=limit - 2, max_age_s=600))
        config = (await bus.api("STREAM.INFO.swarm_events"))["config"]
        assert (config["max_bytes"], config["max_age"]) == (limit - 2, 600 * 10**9)
    (tmp_path / "other").mkdir()
    async with plain_server(tmp_path / "other", *arguments) as url, Connections() as connections:
        bus = await connections.bus(url)
        with pytest.raises(UsageError, match=r"has no room for the stream .*lower \[stream\] max_bytes"):
            await ensure_streams(bus, StreamLimits(max_bytes=2 * limit))


async def test_an_answer_of_ours_with_an_error_is_no_acknowledgement(tmp_path):
    async with plain_server(tmp_path, *configured(tmp_path, "")) as url, Connections() as connections:
        bus, other = await connections.bus(url), await connections.bus(url)

        async def answer(_: ReceivedMessage) -> bytes:
            return b'{"error": "no such agent"}'

        await other.answer("swarm.control.watchdog.restart", answer)
        await other.connection.client.flush()
        assert await bus.request("swarm.control.watchdog.restart", b"{}") == b'{"error": "no such agent"}'


async def test_a_publish_waits_for_its_stream_whatever_else_answers(tmp_path):
    async with plain_server(tmp_path, *configured(tmp_path, "")) as url, Connections() as connections:
        bus, other = await connections.bus(url), await connections.bus(url)
        await ensure_streams(bus)

        async def answer(_: ReceivedMessage) -> bytes:
            return b"pong"

        await other.answer("in.swarm.market.A.x", answer)
        await other.connection.client.flush()
        for _ in range(20):
            assert (await bus.publish("in.swarm.market.A.x", b"{}")).sequence > 0
