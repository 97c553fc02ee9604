"""Mistakes of users, on the bus and on the command line: reported in one line, and stopping no process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.acceptance.exact import assert_each_round_once
from tests.acceptance.faults import kill_agents
from tests.acceptance.subscriber import read_stream
from tests.acceptance.swarm import AGENTS, ENVIRONMENT, GUARD_S, SIGNALMESH, Finished, Swarm, agents_toml, run_command
from tests.support.nats import plain_server

NO_SERVER = "nats://127.0.0.1:1"
AT = "2024-01-15T10:30:00Z"
TICK = {"symbol": "BTC/USD", "price": 45000.0, "volume": 1250.5, "timestamp": AT, "source": "stranger"}
SIGNAL = {"signal": "buy", "strength": 0.85, "indicators": {}, "timestamp": AT, "source": "stranger"}


def without(payload: dict[str, object], key: str) -> bytes:
    return json.dumps({name: value for name, value in payload.items() if name != key}).encode()


POISON: list[tuple[str, bytes]] = [
    ("market.BTC-USD.stranger", b"{not json"),
    ("market.BTC-USD.stranger", b""),
    ("market.BTC-USD.stranger", b'["a list"]'),
    ("market.BTC-USD.stranger", json.dumps({**TICK, "price": "high"}).encode()),
    ("market.BTC-USD.stranger", json.dumps({**TICK, "price": float("nan")}).encode()),
    ("market.BTC-USD.stranger", without(TICK, "volume")),
    ("market.BTC-USD.stranger", json.dumps({**TICK, "timestamp": "yesterday"}).encode()),
    ("market.BTC-USD.stranger", json.dumps({**TICK, "source": "x" * 256 * 1024}).encode()),
    ("market.ETH-USD.stranger", json.dumps(TICK).encode()),
    ("market.BTC=zz.stranger", json.dumps(TICK).encode()),
    ("signal.BTC-USD.stranger", json.dumps({**SIGNAL, "symbol": "ETH/USD"}).encode()),
    ("signal.BTC-USD.stranger", json.dumps({**SIGNAL, "signal": "perhaps"}).encode()),
    ("sentiment.BTC-USD.stranger", b"\xff\xfe"),
    ("decision.BTC-USD.stranger", b"null"),
    ("config.swarm.stranger", b"{}"),
]
READERS = {"market": 4, "signal": 1, "sentiment": 1, "decision": 1, "config": 2}
"""How many agents read each kind."""


@pytest.mark.slow
async def test_poison_stops_no_agent_and_is_reported(tmp_path: Path):
    async with Swarm(tmp_path) as swarm:
        subscriber = await swarm.up("--speed", "50", "--open")  # with keys nobody publishes on the read side
        await subscriber.decided(251)
        heartbeats = await subscriber.live(*AGENTS)
        sequences = [await subscriber.publish(subject, data) for subject, data in POISON]
        await subscriber.publish("gossip.BTC-USD.stranger", b"a kind that nobody knows, so that nobody reads it")
        for subject in ("heartbeat.coordinator", "heartbeat.python", "heartbeat.watchdog", "decision.BTC-USD.junk"):
            await subscriber.client.publish(f"swarm.{subject}", b"junk on the read side")
        orders = (("python", command) for command in ("spawn", "kill", "signal", "check"))
        for process, command in (*orders, ("watchdog", "revive")):
            assert "error" in await subscriber.ask(process, command, b'{"agent": 5')

        await subscriber.alerted("poison_message", 1)
        await subscriber.more_decisions(20)
        await kill_agents(swarm, subscriber, "coordinator")  # it may read them again
        await subscriber.more_decisions(20)
        alerts = await subscriber.alerted("poison_message", 1)
        found = {alert["detail"]["sequence"]: alert["detail"] for alert in alerts}
        assert len(found) == len(alerts) <= len(AGENTS), "the first of each agent, by those that read it together"
        assert sequences[0] in found
        subjects = dict(zip(sequences, (f"swarm.{subject}" for subject, _ in POISON), strict=True))
        for sequence, detail in found.items():
            assert (detail["subject"], detail["writer"], detail["count"]) == (subjects[sequence], "stranger", 1)
        [unread] = await subscriber.alerted("unknown_message_kind", 1)
        assert unread["detail"] == {"kind": "gossip", "subject": "swarm.gossip.BTC-USD.stranger", "messages": 1}
        assert {alert["code"] for alert in subscriber.alerts} == {
            "heartbeat_refused",
            "poison_message",
            "unknown_message_kind",
        }
        assert_each_round_once(subscriber.decisions)
        assert {(decision["symbol"], decision["source"]) for decision in subscriber.decisions} == {
            ("BTC/USD", "coordinator")
        }

        status = (await swarm.command("status", "--json")).json
        assert status["active_agents"] == 5
        rows = {row["name"]: row for row in status["agents"]}
        expected = sum(READERS[subject.split(".")[0]] for subject, _ in POISON)
        assert sum(row["poison"] for row in rows.values()) == expected
        for name in AGENTS:
            if name != "coordinator":
                assert rows[name]["pid"] == heartbeats[name]["pid"]


@asynccontextmanager
async def commands_at_once() -> AsyncIterator[list[tuple[Path, list[str], int, list[str]]]]:
    """Cases (directory, arguments, exit code, what the error names), run four at a time when the block ends."""
    cases: list[tuple[Path, list[str], int, list[str]]] = []
    yield cases
    turn = asyncio.Semaphore(4)

    async def run(directory: Path, arguments: list[str]) -> Finished:
        async with turn:
            return await run_command(directory, *arguments)

    results = await asyncio.gather(*(run(directory, arguments) for directory, arguments, _, _ in cases))
    for (_, arguments, code, named), result in zip(cases, results, strict=True):
        assert result.code == code, (arguments, result)
        assert all(name in result.err for name in named), (arguments, named, result.err)
        assert result.out == "", (arguments, result)


@pytest.mark.slow
async def test_mistakes_beside_a_running_swarm(tmp_path: Path):
    (tmp_path / "other").mkdir()
    async with Swarm(tmp_path / "swarm") as swarm:
        subscriber = await swarm.up("--speed", "5")
        await subscriber.live(*AGENTS)
        port = str(urlsplit(swarm.url).port)
        here, other = swarm.directory, tmp_path / "other"
        async with commands_at_once() as cases:
            cases += [
                (here, ["up", "--port", "0"], 2, ["already", str(swarm.process.pid), "--state-dir"]),
                (other, ["up", "--port", port], 2, [port, "--port"]),
                (here, ["kill", "nobody"], 2, ["nobody", "coordinator"]),
                (here, ["restart", "nobody"], 2, ["nobody", "coordinator"]),
                (here, ["revive", "nobody"], 2, ["nobody", "coordinator"]),
                (here, ["revive", "coordinator"], 1, ["coordinator", "running"]),
                (here, ["kill", "coordinator", "--signal", "SOFTLY"], 2, ["--signal", "SOFTLY"]),
                (here, ["status", "--swarm", "elsewhere"], 3, ["elsewhere", "--swarm"]),
                (other, ["down"], 2, ["--state-dir"]),
            ]
        assert subscriber.alerts == []
        happened = {event["event"] for event in subscriber.lifecycle}
        assert happened - {"suspected"} == {"spawned", "restored", "ready"}  # a busy machine makes one late at times


@pytest.mark.slow
async def test_mistakes_without_a_swarm(tmp_path: Path):
    def config(name: str, text: str) -> Path:
        directory = tmp_path / name
        directory.mkdir()
        (directory / "swarm.toml").write_text(text)
        return directory

    source = '[agents.feed]\nkind = "market-data"\noptions = { symbols = { "BTC/USD" = "candles.csv" } }\n'
    data = config("data", source)
    (data / "candles.csv").write_text(
        "timestamp,open,high,low,close,volume\n2024-01-15T10:00:00Z,1,2,1,2,3\n2024-01-15T11:00:00Z,1,2,1,two,3\n"
    )
    broken = config("import", '[agents.mine]\nclass = "mine:Mine"\n')
    (broken / "mine.py").write_text("import no_such_module\n")
    no_class = config("class", '[agents.mine]\nclass = "mine:Other"\n')
    (no_class / "mine.py").write_text("x = 1\n")
    toml = config("toml", "swarm = \n")
    key = config("key", '[agents.research-1]\nkind = "market-data"\nsped = 3\n')
    durability = config("durability", "[stream]\ndurability = 'disk'\n")
    garbled = tmp_path / "garbled"
    (garbled / ".signalmesh").mkdir(parents=True)
    (garbled / ".signalmesh" / "run.json").write_bytes(b"\xff\x1b[2J")
    empty = tmp_path / "empty"
    empty.mkdir()
    up = ["up", "--port", "0"]
    async with (
        plain_server(tmp_path, "-js", "-sd", str(tmp_path / "store")) as unknown_writer,
        commands_at_once() as cases,
    ):
        cases += [
            (empty, [*up, "--config", "nowhere.toml"], 2, ["nowhere.toml"]),
            (empty, [*up, "--speed", "-1"], 2, ["--speed"]),
            (empty, [*up, "--speed", "nan"], 2, ["--speed"]),
            (empty, [*up, "--speed", "inf"], 2, ["speed"]),
            (empty, [*up, "--speed", "fast"], 2, ["--speed"]),
            (empty, [*up, "--for", "0"], 2, ["--for"]),
            (empty, [*up, "--for", "nan"], 2, ["--for"]),
            (empty, ["up", "--port", "70000"], 2, ["--port"]),
            (empty, ["up", "--nats", "http://example.org"], 2, ["--nats"]),
            (empty, ["up", "--nats", NO_SERVER], 3, [NO_SERVER]),
            (empty, ["status", "--nats", NO_SERVER], 3, [NO_SERVER]),
            (empty, ["kill", "coordinator", "--nats", NO_SERVER], 3, [NO_SERVER]),
            (empty, ["revive", "coordinator", "--nats", NO_SERVER], 3, [NO_SERVER]),
            (empty, ["watch", "--nats", NO_SERVER], 3, [NO_SERVER]),
            (empty, ["watch", "gossip"], 2, ["gossip", "decision"]),
            (empty, ["watch", "decisions"], 2, ["did you mean 'decision'?"]),
            (empty, ["kill", "coordinator", "--wait", "nan"], 2, ["--wait nan"]),
            (empty, ["health", "--timeout", "-1"], 2, ["--timeout -1"]),
            (empty, ["status", "--state-dir", str(key / "swarm.toml")], 2, ["--state-dir", "a file"]),
            (empty, ["up", "--state-dir", str(key / "swarm.toml")], 2, ["--state-dir"]),
            *((garbled, [command], 2, ["run.json", "cannot be read"]) for command in ("status", "down", "watch")),
            (empty, ["status", "--nats", unknown_writer], 3, ["--swarm"]),
            (empty, ["kill", "coordinator", "--nats", unknown_writer], 3, ["--swarm"]),
            (empty, ["restart", "coordinator", "--nats", unknown_writer], 3, []),
            (empty, ["nonsense"], 2, ["nonsense"]),
            (data, up, 2, ["candles.csv", "line 3", "column close", "'two'"]),
            (broken, up, 2, ["agents.mine.class", "no_such_module"]),
            (no_class, up, 2, ["agents.mine.class", "Other"]),
            (toml, up, 2, ["swarm.toml", "line 1"]),
            (key, up, 2, ["agents.research-1", "sped"]),
            (durability, up, 2, ["stream.durability", "'process'", "'power'", "'disk'"]),
        ]


@pytest.mark.slow
async def test_durability_of_an_external_server_is_reported_as_its_own(tmp_path: Path):
    toml = f'[stream]\ndurability = "power"\n{agents_toml(speed=5)}'
    async with (
        plain_server(tmp_path, "-js", "-sd", str(tmp_path / "store")) as url,
        Swarm(tmp_path / "swarm", toml) as swarm,
    ):
        subscriber = await swarm.up("--nats", url)
        await subscriber.live(*AGENTS)
        assert "stream.durability: 'power'" in swarm.errors
        alerts = [message.json for message in await read_stream(url, swarm.name) if message.kind == "alert"]
        assert [alert["code"] for alert in alerts] == ["durability_not_set"]


@pytest.mark.slow
async def test_a_server_that_refuses_is_not_reported_as_unreachable(tmp_path: Path):
    async with plain_server(tmp_path, "--user", "user", "--pass", "right") as url:
        for command in ("status", "up", "doctor"):
            done = await run_command(tmp_path, command, "--nats", url)
            assert done.code == (1 if command == "doctor" else 3), done
            text = done.out + done.err
            assert f"the NATS server at {url} answers, but does not take these credentials" in text
            assert "--nats-nkey (SIGNALMESH_NATS_NKEY)" in text
            assert "no NATS server answers" not in text


@pytest.mark.slow
async def test_a_role_that_waits_for_the_bus_reports_where_and_why(tmp_path: Path):
    async with plain_server(tmp_path, "--user", "user", "--pass", "right") as refusing:
        for url, why in ((refusing, "Authorization Violation"), (NO_SERVER, "Connect")):
            process = await asyncio.create_subprocess_exec(
                str(SIGNALMESH), "mirror", "--rebuild", "--once", "--file", "m.sqlite", "--nats", url,
                cwd=tmp_path, env=ENVIRONMENT, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            assert process.stderr is not None
            try:
                async with asyncio.timeout(GUARD_S):
                    line = json.loads(await process.stderr.readline())
                assert (line["event"], line["nats"]) == ("waiting_for_nats", url)
                assert why in line["problem"]
            finally:
                process.kill()
                await process.wait()
