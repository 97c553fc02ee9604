"""Servers that are not ours: their JetStream, limits, streams of our names, users and permissions."""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import pytest

from bus.errors import BusUnreachable, LimitReached, NoResponders, PermissionDenied, UsageError
from bus.interface import ReceivedMessage
from bus.messages import MAX_PAYLOAD_BYTES
from bus.nats.bus import NatsBus
from bus.nats.streams import DiskRoom, StreamLimits, ensure_streams, expected_streams
from tests.support.collecting import GUARD_S, Collector
from tests.support.nats import Connections, plain_server
from tests.support.ports import free_port


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
        with pytest.raises(BusUnreachable, match="it offers no TLS") as refused:
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


async def test_a_server_of_a_domain_will_do_and_the_domain_of_another_is_not_reached(tmp_path):
    port = free_port()
    hub = configured(tmp_path / "hub", f"leafnodes {{ listen: '127.0.0.1:{port}' }}")
    Path(hub[1]).write_text(Path(hub[1]).read_text().replace("jetstream {", "jetstream { domain: far,"))
    (tmp_path / "leaf").mkdir()
    leaf = tmp_path / "leaf" / "nats.conf"
    leaf.write_text(f"leafnodes {{ remotes: [ {{ url: 'nats://127.0.0.1:{port}' }} ] }}\n")
    async with (
        plain_server(tmp_path / "hub", *hub) as hub_url,
        plain_server(tmp_path / "leaf", "-c", str(leaf)) as leaf_url,
        Connections() as connections,
    ):
        bus, read = await connections.bus(hub_url, streams=True), Collector[int]()
        await bus.follow(("swarm.>",), 1, lambda stored: read.put(stored.sequence))
        await bus.publish("in.swarm.alert.warning.x", b"{}")
        assert await read.reach(1) == [1]
        behind = await connections.bus(leaf_url)
        async with asyncio.timeout(GUARD_S):
            while b'"domain":"far"' not in await answered(behind, "$JS.far.API.INFO"):
                pass
        with pytest.raises(UsageError, match=r"domain.*is not supported: name a server of that domain with --nats"):
            await ensure_streams(behind)


async def answered(bus: NatsBus, subject: str) -> bytes:
    """The answer to a request; empty while the leaf node is not connected yet."""
    with contextlib.suppress(NoResponders):
        return await bus.request(subject, b"")
    return b""


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
        [events, *_] = expected_streams(bus, StreamLimits(), is_guarded=False)
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
        [kept] = await ensure_streams(bus, StreamLimits(max_bytes=2 * limit, max_age_s=700))
        assert re.search(r"has no room for the stream .*lower \[stream\] max_bytes; it keeps 40\.0 MiB", kept)
        config = (await bus.api("STREAM.INFO.swarm_events"))["config"]
        assert (config["max_bytes"], config["max_age"]) == (limit - 2, 700 * 10**9)


def disk(free: int, used: int = 0) -> DiskRoom:
    return DiskRoom(free_bytes=free, used_bytes=used, place="/somewhere")


async def test_a_stream_keeps_no_more_than_its_disk_has_room_for(tmp_path):
    wanted = StreamLimits(max_bytes=1 << 30)
    async with plain_server(tmp_path, *configured(tmp_path, "")) as url, Connections() as connections:
        bus = await connections.bus(url)

        async def kept() -> int:
            size: int = (await bus.api("STREAM.INFO.swarm_events"))["config"]["max_bytes"]
            return size

        [notice] = await ensure_streams(bus, replace(wanted, disk=disk(100 << 20)))
        assert notice.startswith(
            "[stream] max_bytes is 1,024.0 MiB, for which the disk of the store has no room: 100.0 MiB of /somewhere "
            "are free; the stream keeps the newest 40.0 MiB; free space"
        )
        assert await kept() == 40 << 20
        await ensure_streams(bus, wanted)  # as the watchdog does, which does not know the disk
        await ensure_streams(bus, replace(wanted, max_age_s=600))
        await ensure_streams(bus, wanted)
        assert await kept() == 40 << 20
        assert await ensure_streams(bus, replace(wanted, disk=disk(1 << 20)))  # what is stored is not removed
        assert await kept() == 40 << 20
        assert await ensure_streams(bus, replace(wanted, disk=disk(100 << 20, 50 << 20)))
        assert await kept() == 60 << 20
        assert await ensure_streams(bus, replace(wanted, disk=disk(1 << 40))) == []
        assert await kept() == 1 << 30
        assert await ensure_streams(bus, wanted) == []


async def test_a_new_swarm_on_a_disk_that_is_too_small_is_refused(tmp_path):
    async with plain_server(tmp_path, *configured(tmp_path, "")) as url, Connections() as connections:
        bus = await connections.bus(url)
        with pytest.raises(UsageError, match=r"--state-dir: .*/somewhere has 1\.0 MiB free.*needs 2\.5 MiB"):
            await ensure_streams(bus, StreamLimits(disk=disk(1 << 20)))
        await ensure_streams(bus)
        await ensure_streams(bus, StreamLimits(disk=disk(1 << 20)))  # it is there already


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


SMALL = StreamLimits(max_bytes=4 << 20)


def with_account(directory: Path, limits: str, more: str = "") -> tuple[str, str]:
    """The arguments of a server whose user u is of an account with these limits of JetStream."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "nats.conf"
    accounts = f"accounts {{ MINE {{ jetstream {limits}, users: [ {{ user: u, password: p, {more} }} ] }} }}"
    file.write_text(f'jetstream {{ store_dir: "{directory}/store", max_file_store: 60000000 }}\n{accounts}\n')
    return "-c", str(file)


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ("{ max_streams: 2 }", "KV_swarm_memory.*max_streams is 2, 2 used; raise accounts.MINE.jetstream.max_streams"),
        (
            "{ max_store: 1M }",
            r"reserves 4.* max_store is 1,000,000 bytes, 0 bytes used.*E\.jetstream\.max_store.* lower \[stream\]",
        ),
        (
            "{ max_store: 50M, disk_max_stream_bytes: 2M }",
            r"swarm_events, .*disk_max_stream_bytes is 2,000,000 bytes; raise accounts\.MINE\.jetstream\.disk_max_",
        ),
        (
            "{ max_bytes_required: true }",
            "KV_swarm_state: .*set accounts.MINE.jetstream.max_bytes_required to false in the server's configuration",
        ),
    ],
    ids=["max_streams", "max_store", "disk_max_stream_bytes", "max_bytes_required"],
)
async def test_a_limit_of_the_account_is_named_with_its_usage_and_key(tmp_path, limits, text):
    async with plain_server(tmp_path, *with_account(tmp_path, limits)) as url, Connections() as connections:
        bus = await connections.bus(with_user(url, "u:p"))
        with pytest.raises(UsageError, match=text):
            await ensure_streams(bus, SMALL)


async def test_a_limit_of_the_server_is_not_blamed_on_the_account(tmp_path):
    async with plain_server(tmp_path, *with_account(tmp_path, "enabled")) as url, Connections() as connections:
        bus = await connections.bus(with_user(url, "u:p"))
        with pytest.raises(UsageError, match=r"raise jetstream\.max_file_store in its configuration"):
            await ensure_streams(bus, StreamLimits(max_bytes=80 << 20))


async def test_a_window_of_duplicates_that_the_server_limits_is_named_by_its_key(tmp_path):
    arguments = configured(tmp_path, "")
    Path(arguments[1]).write_text(f'jetstream {{ store_dir: "{tmp_path}/s", limits: {{ duplicate_window: 10s }} }}\n')
    async with plain_server(tmp_path, *arguments) as url, Connections() as connections:
        with pytest.raises(UsageError, match=r"raise jetstream\.limits\.duplicate_window .* to 120s"):
            await ensure_streams(await connections.bus(url))


async def test_a_message_beyond_the_limit_of_the_account_is_refused_with_it(tmp_path):
    arguments = with_account(tmp_path, "{ max_store: 1M }")
    async with plain_server(tmp_path, *arguments) as url, Connections() as connections:
        bus = await connections.bus(with_user(url, "u:p"))
        await ensure_streams(bus, StreamLimits(max_bytes=0))
        text = r"max_store is 1,000,000 bytes, [89]\d\d,\d\d\d bytes used, .*accounts\.MINE\.jetstream\.max_store"
        results: Collector[object] = Collector()
        for _ in range(8):
            bus.send("in.swarm.market.A.x", bytes(200_000), {}, results.put)
        refused = [result for result in await results.reach(8) if isinstance(result, LimitReached)]
        assert [result.code for result in refused] == [10002] * 4
        assert all(re.search(text, str(result)) for result in refused)
        with pytest.raises(LimitReached, match=rf"\$KV\.swarm_state\.a: .*{text}"):
            await bus.kv_put("swarm_state", "a", bytes(200_000), 0)


async def test_more_consumers_than_the_account_may_have_are_refused_with_the_limit(tmp_path):
    arguments = with_account(tmp_path, "{ max_consumers: 1, max_ack_pending: 5 }")
    async with plain_server(tmp_path, *arguments) as url, Connections() as connections:
        bus = await connections.bus(with_user(url, "u:p"))
        await ensure_streams(bus, SMALL)
        config = {"name": "c", "ack_policy": "explicit", "max_ack_pending": 9, "inactive_threshold": 10**9}
        with pytest.raises(LimitReached, match=r"max_ack_pending is 5; raise accounts\.MINE\.jetstream\.max_ack_pendi"):
            await bus.api("CONSUMER.CREATE.swarm_events.c", {"stream_name": "swarm_events", "config": config})
        reader = await bus.follow(("swarm.>",), 1, lambda _: None)
        with pytest.raises(LimitReached, match=r"max_consumers is 1, 1 used; raise accounts\.MINE\.jetstream\.max_con"):
            await bus.follow(("swarm.>",), 1, lambda _: None)
        await reader.close()


async def test_a_user_that_may_not_ask_for_the_limits_gets_the_keys(tmp_path):
    denied = 'permissions: { publish: { deny: ["$JS.API.INFO", "$SYS.>"] } }'
    arguments = with_account(tmp_path, "{ max_streams: 2 }", denied)
    async with plain_server(tmp_path, *arguments) as url, Connections() as connections:
        bus = await connections.bus(with_user(url, "u:p"))
        with pytest.raises(UsageError, match=r"a limit that .*; raise accounts\.ACCOUNT\.jetstream\.max_str"):
            await ensure_streams(bus, SMALL)


async def test_a_flush_confirms_the_subscriptions_before_it(tmp_path, monkeypatch):
    async with plain_server(tmp_path, *configured(tmp_path, "")) as url, Connections() as connections:
        bus = await connections.bus(url)
        transport: Any = bus.connection.client._transport
        write, writelines, written = transport.write, transport.writelines, bytearray()

        def record(data: bytes) -> None:
            written.extend(data)
            write(data)

        def record_lines(data: list[bytes]) -> None:
            written.extend(b"".join(data))
            writelines(data)

        monkeypatch.setattr(transport, "write", record)
        monkeypatch.setattr(transport, "writelines", record_lines)

        async def ignore(_: ReceivedMessage) -> None:
            pass

        await bus.listen("swarm.alert.>", ignore)
        await bus.flush()
        assert written.find(b"PING") > written.find(b"SUB swarm.alert.>") >= 0
