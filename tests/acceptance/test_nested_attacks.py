"""Nested JSON and huge numbers on every subject that a process may write with its own key: no permission forbids it."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from bus.messages.subjects import STORED_KINDS, Subjects
from bus.nats.bus import NatsBus
from bus.nats.credentials import Credentials
from bus.nats.key_files import read_seed
from coordinator.security.keys import KeyStore, identities
from coordinator.telemetry.labels import Names
from coordinator.telemetry.stream_metrics import StreamMetrics
from tests.acceptance.faults import kill_agents
from tests.acceptance.swarm import AGENTS, SANDBOXES, Swarm, agents_toml
from tests.support.secured import default_swarm

PAYLOADS = (
    b"[" * 100_000 + b"]" * 100_000,
    b'{"a":' * 200 + b"1" + b"}" * 200,
    b'{"timestamp":' + b"9" * 200_000 + b"}",
    b'{"sequence":1e400,"epoch":-1E999999999,"progress":1e400}',
)
NOT_WRITTEN = ("$JS.API.", "$JS.FC.", "$JS.ACK.", "$SYS.", "_INBOX.", "restore.", "agents.", "in.swarm.epoch.")
"""The server reads these itself, or nobody is asked to; who writes a claim has replaced an agent, whatever is in it."""
ROLES = ("watchdog", "dashboard", "mirror", "metrics", "proxy")
REQUESTED = ("STREAM.MSG.GET.swarm_events", "CONSUMER.CREATE.swarm_events.x")


def written_by(identity: str) -> list[str]:
    """A subject for each permission of this identity."""
    found = []
    for allowed in identities(default_swarm())[identity].publish:
        if allowed.startswith(NOT_WRITTEN):
            continue
        if allowed.startswith("_API."):
            found += [allowed.replace(">", command) for command in REQUESTED]
        elif allowed.startswith("swarm.control.*"):
            found += [allowed.replace("*", target) for target in ("base", "watchdog", "coordinator")]
        else:
            found.append(allowed.replace("$KV.swarm_agents.*", "$KV.swarm_agents.coordinator").replace("*", "BTC-USD"))
    return found


async def publish_as(swarm: Swarm, identity: str, seed: str) -> Counter[str]:
    """Send every payload to every subject of this identity; returns how many of each stored kind."""
    bus = await NatsBus.connect(swarm.url, swarm.name, identity, 1.0, Credentials(nkey_seed=seed))
    denied: list[object] = []
    bus.connection.watch_denials(denied.append)
    stored: Counter[str] = Counter()
    try:
        for subject in written_by(identity):
            for payload in PAYLOADS:
                bus.connection.write(subject, payload, bus.connection.client.new_inbox())
                if subject.startswith("in.") and (kind := subject.split(".")[2]) in STORED_KINDS:
                    stored[kind] += 1
            await bus.flush()
        await bus.flush()
    finally:
        await bus.close()
    assert denied == []
    return stored


@pytest.mark.slow
async def test_nested_json_from_every_process_is_counted_and_stops_none_for_good(tmp_path: Path):
    async with Swarm(tmp_path, agents_toml(speed=50)) as swarm:
        subscriber = await swarm.up(dashboard=True)
        await subscriber.decided(20)
        store = KeyStore(swarm.directory / ".signalmesh")
        operator = await NatsBus.connect(
            swarm.url, swarm.name, "operator", 1.0, Credentials(nkey_seed=store.seed("operator"))
        )
        first = (await operator.bounds()).last + 1
        stored: Counter[str] = Counter()
        for identity in (*ROLES, *(f"sandbox-{name}" for name in SANDBOXES)):
            stored += await publish_as(swarm, identity, store.seed(identity))
        await subscriber.more_decisions(10)
        for agent in AGENTS:
            prepared = store.incarnations / f"{agent}.next.nk"
            await subscriber.until(f"a prepared key of {agent}", prepared.exists)
            async with asyncio.timeout(60):  # the server may not have read it yet
                stored += await publish_as(swarm, f"agent-{agent}", read_seed(prepared))
            await subscriber.more_decisions(10)
        await kill_agents(swarm, subscriber, *AGENTS)  # they read all that again
        watchdog = subscriber.heartbeats["watchdog"]["pid"]
        swarm.send(watchdog, signal.SIGKILL)
        await subscriber.until("a new watchdog", lambda: subscriber.heartbeats["watchdog"]["pid"] != watchdog or None)
        await subscriber.more_decisions(50)

        metrics = StreamMetrics(Subjects(swarm.name), Names((*AGENTS, *SANDBOXES)), AGENTS)
        for each in await operator.read_back((f"{swarm.name}.>",), first):
            metrics.count(each)
        await operator.close()
        counted = generate_latest(metrics.registry).decode()
        for kind, count in stored.items():
            assert f'signalmesh_unreadable_messages_total{{kind="{kind}"}} {count}.0' in counted
        codes = {alert.get("code") for alert in subscriber.alerts}
        assert {"poison_message", "api_request_refused"} <= codes
        assert not {"quarantined", "output_gap", "replay_diverged", "agent_unusable", "client_refused"} & codes
        rounds = [decision["round"] for decision in subscriber.decisions if "round" in decision]
        assert rounds == list(range(1, len(rounds) + 1))
        status = await swarm.command("status", "--json")
        assert {agent["name"]: agent["status"] for agent in status.json["agents"]} == dict.fromkeys(AGENTS, "active")
        refused = {(one["who"], one["attempt"]) for one in status.json["refused"]["by"]}
        agents, hosts = {f"agent-{name}" for name in AGENTS}, {f"sandbox-{name}" for name in SANDBOXES}
        assert {who for who, attempt in refused if attempt == "request"} == agents
        assert {who for who, attempt in refused if attempt == "heartbeat"} <= agents | hosts | {*ROLES}
        assert {attempt for _, attempt in refused} == {"request", "heartbeat"}
        logs = "".join(path.read_text() for path in (swarm.directory / ".signalmesh" / "logs").iterdir())
        assert "Traceback" not in logs
        audit = await swarm.command("audit", "--json")
        assert audit.json["rounds"]["missing"] == audit.json["rounds"]["duplicated"] == 0
        assert {name for name, agent in audit.json["agents"].items() if agent["gaps"] or agent["duplicated"]} == set()
        read = [problem for problem in audit.json["problems"] if problem["check"] not in ("registry", "snapshots")]
        # A record or a snapshot may be garbage until its agent writes the next one.
        assert {problem["text"].rpartition(": ")[2] for problem in read} == {"another writer has published in its name"}
