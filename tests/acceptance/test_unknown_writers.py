"""What unknown writers publish in the names of agents: decisions go on, each round once, with one report each."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.acceptance.faults import kill_agents
from tests.acceptance.swarm import AGENTS, Swarm

TICK = {"symbol": "BTC/USD", "price": 7000.0, "volume": 1.0, "source": "research-1"}
FORGED = ({"sequence": 1_000_000}, {"sequence": 2_000_000}, {"sequence": 5})
"""Far ahead; far ahead and of a distant time; behind."""
TIMES = ("2019-01-01T00:00:00Z", "9999-12-31T00:00:00Z", "2019-01-01T00:00:00Z")


@pytest.mark.slow
async def test_forged_ticks_settings_and_decisions_stop_nothing(tmp_path: Path):
    async with Swarm(tmp_path) as swarm:
        subscriber = await swarm.up("--speed", "50")
        await subscriber.decided(251)
        await subscriber.live(*AGENTS)
        for fields, at in zip(FORGED, TIMES, strict=True):
            await subscriber.publish("market.BTC-USD.research-1", {**TICK, **fields, "timestamp": at})
            await subscriber.more_decisions(10)
        forged = {"voters": {"evil": 1.0}, "timestamp": TIMES[0], "source": "watchdog"}
        await subscriber.publish("config.swarm.evil", forged)
        await subscriber.more_decisions(10)
        await kill_agents(swarm, subscriber, "coordinator")  # it may read all that again, but not report it again
        await subscriber.more_decisions(50)

        reported = [alert["code"] for alert in subscriber.alerts if alert["source"] == "coordinator"]
        assert sorted(reported) == ["config_from_unknown_writer", "feed_renumbered", "tick_out_of_order"]
        names = [decision["decision_id"] for decision in subscriber.decisions]
        assert len(set(names)) == len(names)
        odd = {"BTC/USD:research-1:1000000", "BTC/USD:research-1:2000000", "BTC/USD:research-1=2:5"}
        assert odd < set(names)
        series = [name for name in names if name not in odd]
        assert series == [f"BTC/USD:research-1:{n}" for n in range(1, len(series) + 1)]
        assert len(subscriber.decisions[-1]["agents_consulted"]) == 3


async def publish_raw(url: str, *subjects: bytes) -> None:
    """As a client that checks nothing, with a payload of `{}`; returns when the server has taken it."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(b'CONNECT {"verbose":false}\r\n')
    for subject in subjects:
        writer.write(b"PUB " + subject + b" 2\r\n{}\r\n")
    writer.write(b"PING\r\n")
    while (await reader.readline()) != b"PONG\r\n":
        pass
    writer.close()


@pytest.mark.slow
async def test_garbage_on_every_subject_stops_no_process_for_good(tmp_path: Path):
    """In subjects, headers, snapshots and the registry; then every process that reads it is started again."""
    async with Swarm(tmp_path) as swarm:
        subscriber = await swarm.up("--speed", "50", "--open")  # with keys the server refuses what has none
        await subscriber.decided(251)
        await (
            subscriber.close()
        )  # nats-py itself, as the subscriber uses it, stops delivering at the first of these subjects
        await publish_raw(
            swarm.url,
            b"in.swarm.market.\xff\xfe.evil",
            b"in.swarm.signal.BTC-USD.\xff",
            b"swarm.heartbeat.\xff",
            b"swarm.epoch.\xff",
        )
        subscriber = await swarm.listen()
        heartbeats = await subscriber.live(*AGENTS)
        stopped = ("strategy-momentum", "research-1")
        for name in stopped:  # so that no snapshot is beyond what is written in their names: the next ones read it
            swarm.send(heartbeats[name]["pid"], signal.SIGSTOP)
        for number in ("abc", "", "1e9", "-1", "9" * 5000):
            await subscriber.publish("signal.BTC-USD.strategy-momentum", b"{}", **{"Mesh-Output": number})
        await subscriber.publish("market.BTC-USD.research-1", b"{", **{"Mesh-Output": "1000000"})
        await subscriber.publish("lifecycle.strategy-momentum.strategy-momentum", b"{")
        for name in stopped:
            swarm.send(heartbeats[name]["pid"], signal.SIGKILL)
        await subscriber.back({name: heartbeats[name]["epoch"] for name in stopped})
        jetstream = subscriber.client.jetstream()
        registry = await jetstream.key_value("swarm_agents")
        await registry.put("evil", b"{}")
        await registry.put("coordinator", b"\xff")
        await (await jetstream.key_value("swarm_state")).put("strategy-mean-reversion", b"\xff")
        await subscriber.back(
            {"strategy-mean-reversion": heartbeats["strategy-mean-reversion"]["epoch"]}
        )  # its next write fails
        watchdog = subscriber.heartbeats["watchdog"]["pid"]
        swarm.send(watchdog, signal.SIGKILL)
        await subscriber.until("a new watchdog", lambda: subscriber.heartbeats["watchdog"]["pid"] != watchdog or None)
        await kill_agents(swarm, subscriber, *AGENTS)
        await subscriber.more_decisions(50)

        codes = {alert["code"] for alert in subscriber.alerts}
        assert {"poison_message", "output_from_unknown_writer", "snapshot_unreadable"} <= codes
        assert not {"quarantined", "output_gap", "replay_diverged", "agent_unusable"} & codes
        rounds = [decision["round"] for decision in subscriber.decisions]
        assert rounds == list(range(rounds[0], rounds[0] + len(rounds)))
        assert len(subscriber.decisions[-1]["agents_consulted"]) == 3
        status = await swarm.command("status", "--json")
        assert status.code == 0, status.err
        assert {agent["name"]: agent["status"] for agent in status.json["agents"]} == dict.fromkeys(AGENTS, "active")
        audit = await swarm.command("audit", "--json")
        assert audit.code == 1  # another writer has used the agents' names
        assert audit.json["rounds"]["missing"] == audit.json["rounds"]["duplicated"] == 0
        broken = {name for name, agent in audit.json["agents"].items() if agent["gaps"] or agent["duplicated"]}
        assert broken <= {"research-1"}  # one of its forged outputs has a number
