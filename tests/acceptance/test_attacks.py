"""What a captured process may not do with its key, and a client without one; without authentication all of it works."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from prometheus_client import generate_latest

from agents.host.api_gateway import MAX_CONSUMERS as MOST_OF_AN_AGENT
from agents.host.api_gateway import ApiGateway
from bus.durable.events import EventPublisher
from bus.durable.fencing import claim
from bus.errors import NotAdmitted, Refused
from bus.nats.bus import NatsBus
from bus.nats.credentials import Credentials, public_key_of
from bus.nats.key_files import new_seed, take
from bus.nats.streams import StreamLimits, ensure_streams
from bus.server.supervisor import NatsServer
from coordinator.config.settings import ResolvedSwarm
from coordinator.monitor.status import collect_status
from coordinator.security.connections import MAX_CONNECTIONS, ConnectionWatch, count_connections
from coordinator.security.keys import KeyStore, ServedKeys
from coordinator.security.reloading import KeyReloader
from coordinator.security.violations import ViolationLog, ViolationReports
from coordinator.telemetry.labels import Names
from coordinator.telemetry.stream_metrics import StreamMetrics
from tests.support.attacking import AGENT, GUARD_S, MARKER, alerts_of, connected, is_served, lands, server, spies
from tests.support.secured import UNNAMED, Secured, default_swarm

__all__ = ["server"]

OTHERS = ("mirror", "metrics", "dashboard", UNNAMED)


FORGED = [
    "in.swarm.signal.BTC-USD.strategy-mean-reversion",
    "in.swarm.sentiment.BTC-USD.research-2",
    "in.swarm.market.BTC-USD.research-1",
    "in.swarm.decision.BTC-USD.coordinator",
    "in.swarm.timer.x.coordinator",
    "in.swarm.epoch.coordinator",
    "in.swarm.config.swarm.watchdog",
    "in.swarm.lifecycle.coordinator.watchdog",
    "in.swarm.alert.critical.watchdog",
    "swarm.decision.BTC-USD.coordinator",
    "swarm.heartbeat.coordinator",
    "swarm.heartbeat.watchdog",
    "swarm.control.base.kill",
    "swarm.control.base.spawn",
    "$KV.swarm_state.coordinator",
    "$KV.swarm_memory.swarm/coordinator/decision",
    "$KV.swarm_agents.coordinator",
]


@pytest.mark.parametrize("subject", FORGED)
@pytest.mark.parametrize("attacker", [AGENT, "mirror", "metrics", UNNAMED])
async def test_nothing_is_published_as_another(server: Secured, attacker: str, subject: str):
    async with connected(server, attacker) as (operator, captured):
        # A bucket's messages reach no subscriber but as they are; the operator may not subscribe to them.
        if subject.startswith("$KV."):
            bucket, _, key = subject.removeprefix("$KV.").partition(".")
            before = await operator.kv_get(bucket, key)
            captured.connection.write(subject, b"{}")
            await captured.flush()
            await operator.flush()
            after = await operator.kv_get(bucket, key)
            landed = (before and before.revision) != (after and after.revision)
        else:
            landed = await lands(operator, captured, subject)
    assert landed is server.is_open


@pytest.mark.parametrize("subject", ["in.swarm.decision.BTC-USD.coordinator", "swarm.heartbeat.coordinator"])
@pytest.mark.parametrize("attacker", ["sandbox-base", "dashboard", "proxy", "agent-research-1"])
async def test_no_other_role_decides_or_sends_heartbeats_of_the_coordinator(
    server: Secured, attacker: str, subject: str
):
    async with connected(server, attacker) as (operator, captured):
        assert await lands(operator, captured, subject) is server.is_open


WATCHDOGS = (
    "in.swarm.epoch.coordinator",
    "in.swarm.config.swarm.watchdog",
    "in.swarm.lifecycle.coordinator.watchdog",
    "swarm.heartbeat.watchdog",
    "swarm.control.base.spawn",
)
NOT_THE_WATCHDOGS = (
    "in.swarm.market.BTC-USD.research-1",
    "in.swarm.signal.BTC-USD.strategy-momentum",
    "in.swarm.decision.BTC-USD.coordinator",
    "in.swarm.lifecycle.coordinator.coordinator",
    "in.swarm.alert.critical.up",
    "swarm.decision.BTC-USD.coordinator",
    "swarm.heartbeat.coordinator",
    "swarm.control.coordinator.status",
)


@pytest.mark.parametrize("subject", [*WATCHDOGS, *NOT_THE_WATCHDOGS])
async def test_the_watchdogs_key_claims_and_orders_and_publishes_as_no_agent(server: Secured, subject: str):
    async with connected(server, "watchdog") as (operator, captured):
        assert await lands(operator, captured, subject) is (server.is_open or subject in WATCHDOGS)


@pytest.mark.parametrize(
    ("bucket", "key", "allowed"),
    [
        ("swarm_state", "coordinator", True),  # it deletes the state of agents that are removed
        ("swarm_memory", "swarm/coordinator/decision", False),
    ],
)
async def test_the_watchdogs_key_writes_snapshots_and_no_last_outputs(
    server: Secured, bucket: str, key: str, *, allowed: bool
):
    async with connected(server, "watchdog") as (operator, captured):
        before = await operator.kv_get(bucket, key)
        captured.connection.write(f"$KV.{bucket}.{key}", b"{}")
        await captured.flush()
        await operator.flush()
        after = await operator.kv_get(bucket, key)
    assert ((before and before.revision) != (after and after.revision)) is (server.is_open or allowed)


EVIL: dict[str, Any] = {"name": "evil", "deliver_subject": "evil", "ack_policy": "none", "mem_storage": True}
CONSUMER = {"stream_name": "swarm_events", "config": EVIL}
REQUESTS: list[tuple[str, Any]] = [
    ("STREAM.PURGE.KV_swarm_state", None),
    ("STREAM.DELETE.KV_swarm_memory", None),
    ("STREAM.DELETE.swarm_events", None),
    ("STREAM.CREATE.evil", {"name": "evil", "subjects": ["evil.>"]}),
    ("STREAM.UPDATE.swarm_events", {"name": "swarm_events", "subjects": ["in.swarm.>"], "max_msgs": 1}),
]
AGENTS_ALONE: list[tuple[str, Any]] = [
    ("INFO", None),
    ("STREAM.NAMES", None),
    ("STREAM.INFO.swarm_events", None),
    ("STREAM.MSG.GET.swarm_events", {"seq": 1}),
    ("STREAM.MSG.GET.KV_swarm_state", {"last_by_subj": "$KV.swarm_state.coordinator"}),
    ("CONSUMER.CREATE.swarm_events.evil", CONSUMER),
    ("CONSUMER.CREATE.swarm_events", {**CONSUMER, "config": {**EVIL, "name": None}}),
    ("CONSUMER.NAMES.swarm_events", None),
]
CASES = [(attacker, *request) for request in REQUESTS for attacker in (AGENT, *OTHERS)]
CASES += [(attacker, *request) for request in AGENTS_ALONE for attacker in (AGENT, UNNAMED)]
CASES += [("watchdog", *request) for request in REQUESTS if not request[0].startswith("STREAM.UPDATE")]


@pytest.mark.parametrize(("attacker", "command", "body"), CASES, ids=lambda value: value if type(value) is str else "")
async def test_nothing_is_requested_of_jetstream(server: Secured, attacker: str, command: str, body: Any):
    async with connected(server, attacker) as (operator, captured):
        await operator.publish("in.swarm.alert.info.operator", b"{}")
        await operator.publish("$KV.swarm_state.coordinator", b"{}")
        if command.startswith("STREAM.UPDATE"):
            body = {**(await operator.api("STREAM.INFO.swarm_events"))["config"], "max_age": 200_000_000_000}
        served = await is_served(captured, command, body)
        for created in ("STREAM.DELETE.evil", "CONSUMER.DELETE.swarm_events.evil"):
            await is_served(operator, created)
    assert served is server.is_open


async def test_no_consumer_of_another_is_deleted(server: Secured):
    async with connected(server, AGENT) as (operator, captured):
        await operator.api("CONSUMER.CREATE.swarm_events.evil", CONSUMER)
        assert await is_served(captured, "CONSUMER.DELETE.swarm_events.evil") is server.is_open
        await is_served(operator, "CONSUMER.DELETE.swarm_events.evil")


SPIED = [
    (">", "swarm.control.base.spawn"),
    ("_INBOX.>", "{inbox}"),
    ("swarm.control.>", "swarm.control.base.spawn"),
    ("swarm.control.coordinator.*", "swarm.control.coordinator.status"),
    ("$KV.>", "$KV.swarm_state.coordinator"),
    ("$JS.>", "$JS.API.STREAM.INFO.swarm_events"),
    ("in.>", "in.swarm.alert.info.operator"),
    ("_API.>", "_API.swarm.coordinator.STREAM.INFO.swarm_events"),
    ("$SRV.>", "$SRV.PING"),
    ("$SRV.*", "$SRV.PING"),
    ("$SRV.*.agents.*", "$SRV.PING.agents.x"),
    ("$SRV.PING.*", "$SRV.PING.coordinator"),
    ("$SRV.INFO.coordinator", "$SRV.INFO.coordinator"),
    ("$SRV.STATS.coordinator.*", "$SRV.STATS.coordinator.x"),
]


@pytest.mark.parametrize(("subject", "sent"), SPIED, ids=lambda value: value)
@pytest.mark.parametrize("attacker", [AGENT, "mirror", UNNAMED])
async def test_nothing_is_received_that_is_meant_for_another(server: Secured, attacker: str, subject: str, sent: str):
    async with connected(server, attacker) as (operator, captured):
        if sent.startswith("_API."):
            # The operator may only receive these: an agent of another connection sends one.
            async with connected(server, "agent-coordinator") as (_, agent):
                assert await spies(agent, captured, subject, sent) is server.is_open
        else:
            assert await spies(operator, captured, subject, sent) is server.is_open


@pytest.mark.parametrize("subject", ["$SRV.PING", "$SRV.INFO.agents", "$SRV.STATS.agents.*"])
async def test_an_agent_receives_discovery_that_asks_all(server: Secured, subject: str):
    """Each has to answer it. The ids of instances are random, so that permissions cannot name an agent's own."""
    async with connected(server, AGENT) as (operator, captured):
        assert await spies(operator, captured, subject, subject.replace("*", "x"))


ORDERS = ["swarm.control.base.spawn", "swarm.control.*.spawn", "*.control.*.*", "swarm.>", ">"]


@pytest.mark.parametrize("subject", ORDERS)
@pytest.mark.parametrize("attacker", [AGENT, "sandbox-nodejs", "proxy", *OTHERS])
async def test_the_key_in_an_order_is_received_by_its_host_alone(server: Secured, attacker: str, subject: str):
    async with connected(server, attacker) as (operator, captured):
        assert await spies(operator, captured, subject, "swarm.control.base.spawn") is server.is_open


@pytest.mark.parametrize("subject", ["swarm.decision.>", "swarm.>", "swarm.heartbeat.*", "swarm.market.*.research-1"])
async def test_an_agent_receives_no_more_than_it_declares(server: Secured, subject: str):
    sent = "in.swarm.decision.BTC-USD.x" if "decision" in subject or subject == "swarm.>" else subject.replace("*", "x")
    async with connected(server, AGENT) as (operator, captured):
        if sent.startswith("swarm.market"):
            sent = "in.swarm.market.x.research-1"
        received: list[str] = []
        await captured.connection.subscribe_directly(subject, lambda actual, *_: received.append(actual))
        await captured.flush()
        assert await lands(operator, operator, sent)
        await captured.flush()
        assert bool(received) is server.is_open


async def test_a_client_without_a_key_follows_the_decisions(server: Secured):
    async with connected(server, UNNAMED) as (operator, unnamed):
        for subject in ("swarm.decision.>", "swarm.>"):
            assert await spies(operator, unnamed, subject, "in.swarm.decision.BTC-USD.coordinator")


async def test_an_unknown_key_is_not_admitted(server: Secured):
    connecting = NatsBus.connect(server.url, "swarm", "foreign", 1.0, Credentials(nkey_seed=new_seed()))
    if server.is_open:
        await (await connecting).close()
    else:
        with pytest.raises(NotAdmitted):
            await connecting


@pytest.mark.parametrize("is_open", [False, True], ids=["keys", "open"])
async def test_the_key_of_a_dead_incarnation_is_cut_off_and_refused(tmp_path: Path, *, is_open: bool):
    keys = ServedKeys(KeyStore(tmp_path), default_swarm(), "up", incarnations=True)
    server = NatsServer(tmp_path, port=0, authorization="" if is_open else keys.authorization)
    async with server, AsyncExitStack() as stack:
        up = await NatsBus.connect(server.url, "swarm", "up", credentials=Credentials(nkey_seed=keys.store.seed("up")))
        stack.push_async_callback(up.close)
        await ensure_streams(up, StreamLimits(max_bytes=16 << 20))
        epoch = await claim(up, "coordinator", agent_id="first", claimed_by="watchdog", sandbox="base")
        seed = take(keys.store.incarnations, "coordinator", epoch)
        assert seed is not None
        zombie = await NatsBus.connect(server.url, "swarm", "z", credentials=Credentials(nkey_seed=seed))
        stack.push_async_callback(zombie.close)
        down, refused = asyncio.Event(), asyncio.Event()
        zombie.watch_connection(down.set, asyncio.Event().wait)
        zombie.connection.on_refused = refused.set
        if not is_open:
            reports = await EventPublisher.open(up, "up")
            reloader = KeyReloader(keys, server, reports, lambda _: None)
            await reloader.listen(up)
            running = asyncio.create_task(reloader.run())
            stack.callback(running.cancel)
        await claim(up, "coordinator", agent_id="second", claimed_by="watchdog", sandbox="base")
        if is_open:
            await up.flush()
            await zombie.flush()
            assert not down.is_set()
        else:
            async with asyncio.timeout(GUARD_S):
                await down.wait()
                await refused.wait()
        again = NatsBus.connect(server.url, "swarm", "again", 1.0, Credentials(nkey_seed=seed))
        if is_open:
            await (await again).close()
        else:
            with pytest.raises(NotAdmitted):
                await again


# -- by the host


@pytest.fixture(scope="module")
def config() -> ResolvedSwarm:
    return default_swarm()


@asynccontextmanager
async def hosted(server: Secured, config: ResolvedSwarm) -> AsyncIterator[list[NatsBus]]:
    """The operator, and the agent with a host that serves its requests."""
    name = AGENT.removeprefix("agent-")
    seed = server.keys.seed(AGENT)
    async with connected(server, "sandbox-nodejs") as (operator, host):
        reports = await EventPublisher.open(host, "nodejs")
        epoch = await claim(operator, name, agent_id="hosted", claimed_by="operator", sandbox="nodejs")
        await ApiGateway(host, reports, "nodejs").admit(config.agent(name).spec, public_key_of(seed), epoch)
        await host.flush()
        credentials = Credentials(nkey_seed=seed, api=operator.subjects.api(name), api_host="nodejs")
        agent = await NatsBus.connect(server.url, "swarm", name, credentials=credentials)
        try:
            yield [operator, agent]
        finally:
            await agent.close()


async def test_an_agent_reads_its_inputs_and_its_own_keys(server: Secured, config: ResolvedSwarm):
    async with hosted(server, config) as (operator, agent):
        stored = await operator.publish("in.swarm.market.BTC-USD.research-1", b"{}")
        await operator.publish("in.swarm.decision.BTC-USD.coordinator", b"{}")
        found = await agent.read_back(("swarm.market.>",), 1)
        assert stored.sequence in [message.sequence for message in found]
        assert {message.subject.split(".")[1] for message in found} == {"market"}
        assert (await agent.bounds()).last > stored.sequence
        known = await agent.kv_get("swarm_state", "strategy-momentum")
        revision = await agent.kv_put("swarm_state", "strategy-momentum", b"{}", known.revision if known else 0)
        again = await agent.kv_get("swarm_state", "strategy-momentum")
        assert again is not None
        assert again.revision == revision


def _consumer(agent: NatsBus, **changed: Any) -> dict[str, Any]:
    config = {
        "name": NAME,
        "deliver_policy": "all",
        "filter_subjects": ["swarm.market.>"],
        "deliver_subject": agent.connection.client.new_inbox(),
        "ack_policy": "none",
        "max_deliver": 1,
        "replay_policy": "instant",
        "flow_control": True,
        "idle_heartbeat": 500_000_000,
        "inactive_threshold": 5_000_000_000,
        "mem_storage": True,
        "num_replicas": 1,
    }
    return {"stream_name": "swarm_events", "config": {**config, **changed}}


MANY = 40
NAME = f"strategy-momentum-{'x' * 22}"
CREATE = f"CONSUMER.CREATE.swarm_events.{NAME}"


async def test_a_consumer_as_an_agent_creates_it_is_allowed(server: Secured, config: ResolvedSwarm):
    async with hosted(server, config) as (_, agent):
        assert (await agent.api(CREATE, _consumer(agent)))["name"] == NAME
        assert (await agent.api(f"CONSUMER.DELETE.swarm_events.{NAME}"))["success"]


@pytest.mark.parametrize(
    ("command", "body"),
    [
        (CREATE, {"filter_subjects": ["swarm.decision.>"]}),
        (CREATE, {"filter_subjects": ["swarm.>"]}),
        (CREATE, {"filter_subjects": []}),
        (CREATE, {"deliver_subject": "swarm.control.base.kill"}),
        (CREATE, {"deliver_subject": "$KV.swarm_memory.swarm/coordinator/decision"}),
        (CREATE, {"deliver_subject": "_INBOX.other"}),
        (CREATE, {"durable_name": NAME}),
        (CREATE, {"inactive_threshold": 3_600_000_000_000}),
        (CREATE, {"mem_storage": False}),
        (CREATE, {"name": "other"}),
        (f"CONSUMER.CREATE.swarm_events.{'x' * 22}", {"name": "x" * 22}),
        (f"CONSUMER.CREATE.swarm_events.coordinator-{'x' * 22}", {"name": f"coordinator-{'x' * 22}"}),
        ("CONSUMER.CREATE.KV_swarm_state." + NAME, {}),
        ("CONSUMER.DELETE.swarm_events.other", None),
        ("STREAM.MSG.GET.swarm_events", {"last_by_subj": "swarm.decision.BTC-USD.coordinator"}),
        ("STREAM.MSG.GET.swarm_events", {"seq": 1}),
        ("STREAM.MSG.GET.swarm_events", {"seq": 1, "next_by_subj": "swarm.>"}),
        ("STREAM.MSG.GET.KV_swarm_state", {"last_by_subj": "$KV.swarm_state.coordinator"}),
        ("STREAM.MSG.GET.KV_swarm_state", {"seq": 1}),
        ("STREAM.MSG.GET.KV_swarm_state", {"last_by_subj": "$KV.swarm_state.strategy-momentum", "seq": 1}),
        ("STREAM.MSG.GET.KV_swarm_memory", {"last_by_subj": "$KV.swarm_memory.swarm/coordinator/decision"}),
        ("STREAM.MSG.GET.KV_swarm_agents", {"last_by_subj": "$KV.swarm_agents.>"}),
        ("STREAM.INFO.swarm_events", {"subjects_filter": ">"}),
        ("STREAM.INFO.KV_swarm_state", None),
        ("STREAM.PURGE.KV_swarm_state", None),
        ("STREAM.DELETE.swarm_events", None),
        ("STREAM.CREATE.evil", {"name": "evil", "subjects": ["evil"]}),
        ("INFO", None),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_a_host_passes_on_no_other_request(
    server: Secured, config: ResolvedSwarm, command: str, body: dict[str, Any] | None
):
    async with hosted(server, config) as (_, agent):
        if command.startswith("CONSUMER.CREATE"):
            body = _consumer(agent, **(body or {}))
        with pytest.raises(Refused, match="error 403"):
            await agent.api(command, body)


async def test_a_host_sends_no_answer_to_another_inbox(server: Secured, config: ResolvedSwarm):
    async with hosted(server, config) as (operator, agent):
        received: list[bytes] = []
        inbox = operator.connection.client.new_inbox()
        await operator.connection.subscribe_directly(inbox, lambda _s, _r, data, _h: received.append(data))
        await operator.flush()
        agent.connection.write(f"{operator.subjects.api('strategy-momentum')}.STREAM.INFO.swarm_events", b"", inbox)
        await agent.bounds()  # answered after the request before it was refused
        await operator.flush()
        assert received == []


async def test_a_refused_request_is_alerted_once_with_the_agent(server: Secured, config: ResolvedSwarm):
    alerts: list[dict[str, Any]] = []
    async with hosted(server, config) as (operator, agent):
        subject = operator.subjects.alert("warning", "nodejs")
        await operator.connection.subscribe_directly(
            subject, lambda _s, _r, data, _h: alerts.append(orjson.loads(data))
        )
        await operator.flush()
        for _ in range(3):
            with pytest.raises(Refused):
                await agent.api("STREAM.DELETE.swarm_events")
        with pytest.raises(Refused):
            await agent.api("STREAM.INFO.KV_swarm_state")
        while not alerts or "STREAM.INFO" not in alerts[-1]["message"]:
            await agent.bounds()
    assert [(alert["code"], alert["agent"]) for alert in alerts] == 2 * [("api_request_refused", "strategy-momentum")]


# -- counted, and limited


async def test_what_is_refused_is_counted_and_alerted_once_with_who_did_it(server: Secured, config: ResolvedSwarm):
    if server.is_open:
        pytest.skip("nothing is refused")
    log, reports = ViolationLog(server.log), ViolationReports(server.owner)
    async with hosted(server, config) as (operator, agent):
        first = (await operator.bounds()).last + 1
        for _ in range(5):
            agent.connection.write("in.swarm.decision.BTC-USD.coordinator", b"{}")
            with pytest.raises(Refused):
                await agent.api("STREAM.DELETE.swarm_events")
        await agent.flush()
        with pytest.raises(NotAdmitted):
            await NatsBus.connect(server.url, "swarm", "x", 1.0, Credentials(nkey_seed=new_seed()))
        for violation in await asyncio.to_thread(log.read, {}):
            reports.add(violation)
        async with await EventPublisher.open(operator, "up") as events:
            reports.publish(events)
        metrics = StreamMetrics(operator.subjects, Names(("nodejs",)))
        found = [orjson.loads(each.data) for each in await operator.read_back(("swarm.alert.>",), first)]
        assert len([alert for alert in found if alert.get("code") == "api_request_refused"]) <= 1
        refused = [alert["detail"] for alert in found if alert.get("code") == "client_refused"]
        [forged] = [each for each in refused if each["attempt"] == "publish to in.swarm.decision.BTC-USD.coordinator"]
        assert (forged["who"], forged["count"]) == (f"{AGENT} at 127.0.0.1", 5)
        for stored in await operator.read_back(("swarm.alert.>",), first):
            metrics.count(stored)
        text = generate_latest(metrics.registry).decode()
        assert f'signalmesh_refused_attempts_total{{attempt="publish",identity="{AGENT}"}} 5.0' in text
        assert 'signalmesh_refused_attempts_total{attempt="connect",identity="(unknown key)"} ' in text
        shown = (await collect_status(operator, 0.0)).refused
        assert shown is not None
        assert shown.count == sum(one.count for one in shown.by) >= 6
        assert (AGENT, "publish", "up") in {(one.who, one.attempt, one.reported_by) for one in shown.by}


async def test_a_key_with_many_connections_is_named(server: Secured):
    identity = AGENT if not server.is_open else UNNAMED
    async with connected(server, *([identity] * (MAX_CONNECTIONS + 1))) as (operator, *_):
        counts = await count_connections(server.log.parent, server.pid)
        async with await EventPublisher.open(operator, "up") as events:
            ConnectionWatch(server.owner).report(counts, events)
        named = [alert["detail"]["who"] for alert in await alerts_of(operator, "too_many_connections")]
    assert (AGENT in named) is not server.is_open


async def test_a_message_larger_than_the_limit_ends_the_connection_alone(server: Secured):
    async with connected(server, AGENT) as (operator, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
        await reader.readline()
        writer.write(b"CONNECT {}\r\nPUB in.swarm.alert.info.x 10000000\r\n")
        answers = await reader.read()
        assert b"Maximum Payload Violation" in answers or b"Authorization Violation" in answers
        writer.close()
        assert await lands(operator, operator, MARKER)


async def test_a_captured_agent_keeps_few_consumers(server: Secured, config: ResolvedSwarm):
    async with hosted(server, config) as (operator, hosted_agent), connected(server, AGENT) as (_, direct):
        agent = direct if server.is_open else hosted_agent
        reader = await agent.follow(("swarm.alert.>",) if server.is_open else ("swarm.market.>",), 1, lambda _: None)
        inbox = agent.connection.client.new_inbox()
        await agent.connection.subscribe_directly(inbox, lambda *_: None)  # else the server would remove them
        for number in range(MANY):
            name = f"strategy-momentum-{number:022}"
            body = _consumer(agent, name=name, deliver_subject=inbox)
            assert (await agent.api(f"CONSUMER.CREATE.swarm_events.{name}", body))["name"] == name
        await agent.bounds()  # the host has sent what it deletes before this
        await operator.flush()
        found = (await operator.api("CONSUMER.NAMES.swarm_events"))["consumers"]
        count = len([name for name in found if name.startswith(f"strategy-momentum-{0:015}")])
        assert count == (MANY if server.is_open else MOST_OF_AN_AGENT)
        await reader.close()


OWN_KEYS = [
    "$KV.swarm_state.strategy-momentum",
    "$KV.swarm_memory.swarm/strategy-momentum/signal",
    "$KV.swarm_agents.strategy-momentum",
]


@pytest.mark.parametrize("key", OWN_KEYS)
@pytest.mark.parametrize("lifetime", ["1s", "never"])
async def test_nobody_sets_how_long_its_own_values_are_kept(server: Secured, key: str, lifetime: str):
    """The refusal is the bucket's own: a server without keys has it too."""
    async with connected(server, AGENT) as (_, captured):
        assert (await captured.publish(key, b"{}")).sequence
        with pytest.raises(Refused, match=r"per-message TTL is disabled \(error 10166\)"):
            await captured.publish(key, b"{}", {"Nats-TTL": lifetime})


async def test_an_old_message_of_another_is_not_published_again(server: Secured):
    async with connected(server, AGENT) as (operator, captured):
        await operator.publish("in.swarm.decision.BTC-USD.coordinator", b"{}", {"Nats-Msg-Id": "coordinator:7"})
        replayed = {"Nats-Msg-Id": "coordinator:7:again", "Mesh-Output": "7"}
        landed = await lands(operator, captured, "in.swarm.decision.BTC-USD.coordinator", replayed)
    assert landed is server.is_open


async def test_an_agent_reads_what_has_taken_an_id_of_its_own_and_no_more(server: Secured, config: ResolvedSwarm):
    async with hosted(server, config) as (operator, agent):
        taken = await operator.publish("in.swarm.alert.info.research-1", b"{}", {"Nats-Msg-Id": "strategy-momentum:99"})
        other = await operator.publish("in.swarm.alert.info.research-1", b"{}", {"Nats-Msg-Id": "strategy:99"})
        found = await agent.message(taken.sequence)
        assert found is not None
        assert found.subject == "swarm.alert.info.research-1"
        with pytest.raises(Refused, match="has no id of its own"):
            await agent.message(other.sequence)
        assert await agent.message(other.sequence + 1000) is None


async def test_streams_and_consumers_say_whose_they_are(server: Secured, config: ResolvedSwarm):
    async with hosted(server, config) as (operator, agent):
        about = (await operator.api("STREAM.INFO.KV_swarm_state"))["config"]["description"]
        assert about == "signalmesh: the agents' snapshots of swarm swarm"
        reader = await agent.follow(("swarm.market.>",), 1, lambda _: None)
        listed = (await operator.api("CONSUMER.LIST.swarm_events"))["consumers"]
        await reader.close()
        own = [each["name"] for each in listed if each["config"].get("description") == "strategy-momentum"]
        assert own
        assert all(re.fullmatch("strategy-momentum-[0-9A-Za-z]{22}", name) for name in own)
        with pytest.raises(Refused, match="the agent's name as description"):
            await agent.api(CREATE, _consumer(agent, description="watchdog"))
