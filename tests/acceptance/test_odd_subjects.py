"""Subjects that a server stores and no filter of the swarm finds: set aside, reported with their writer, and no gap."""

from __future__ import annotations

import signal
import sqlite3
from pathlib import Path

import pytest

from bus.nats.credentials import Credentials
from bus.nats.key_files import read_seed
from tests.acceptance.swarm import AGENTS, Swarm
from tests.support.plain_client import connect_plainly

TOPICS = [b"*", b">", *(b"\x7f" * (1 + n % 3) + b"%d" % n for n in range(60)), b"\x01", b"\v", b"\f"]
"""The index of the server uses the byte 0x7F itself; 60 of them have it count wrongly."""
NO_UTF8 = [b"\xff", b"\xc3\x28"]
"""These end the connection of nats-py, which is that of the subscriber below."""


async def publish(swarm: Swarm, seed: str, topics: list[bytes]) -> None:
    client = await connect_plainly(swarm.url, **Credentials(nkey_seed=seed).options(swarm.url))
    assert client._transport is not None
    for topic in topics:
        client._transport.write(b"PUB in.swarm.signal.%b.odd 2\r\n{}\r\n" % topic)
    await client.flush()  # the server has judged them
    await client.close()


@pytest.mark.slow
async def test_they_are_set_aside_and_named_and_leave_no_gap(tmp_path: Path):
    async with Swarm(tmp_path) as swarm:
        await swarm.command("keys", "init")
        made = await swarm.command("keys", "add", "odd", "--role", "voter", "--json")
        assert made.code == 0, made
        seed = read_seed(Path(made.json["keys"][0]["file"]))
        subscriber = await swarm.up("--speed", "50")
        await subscriber.decided(260)
        before = await subscriber.live(*AGENTS)
        await publish(swarm, seed, TOPICS)
        alerts = await subscriber.alerted("poison_message")
        assert {found["detail"]["writer"] for found in alerts} == {"odd"}
        swarm.send(before["coordinator"]["pid"], signal.SIGKILL)
        await subscriber.back({"coordinator": before["coordinator"]["epoch"]})
        await subscriber.more_decisions(60)
        rounds = [decision["round"] for decision in subscriber.decisions]
        assert rounds == list(range(rounds[0], rounds[0] + len(rounds)))
        assert not [found for found in subscriber.alerts if found["code"] in ("mirror_gap", "stream_lost")]
        await subscriber.close()
        await publish(swarm, seed, NO_UTF8)
        audit = await swarm.command("audit", "--json")
        assert audit.code == 0, audit
        assert len(audit.json["poison"]) == audit.json["poison_total"] == len(TOPICS + NO_UTF8)
        assert {found["subject"].rpartition(".")[2] for found in audit.json["poison"]} == {"odd"}
        replay = await swarm.command("replay", "--json")
        assert (replay.code, replay.json["differing"], replay.json["missing"]) == (0, 0, []), replay
        status = (await swarm.command("status", "--json")).json
        assert status["mirror"]["status"] == "live"
        assert await swarm.end(signal.SIGINT) == 0
        for command in ("audit", "replay"):
            done = await swarm.command(command, "--file", ".signalmesh/mirror.sqlite")
            assert done.code == 0, done
        with sqlite3.connect(tmp_path / ".signalmesh" / "mirror.sqlite") as file:
            [(kept,)] = file.execute("SELECT count(*) FROM messages WHERE agent = 'odd'")
        assert kept == len(TOPICS + NO_UTF8)
