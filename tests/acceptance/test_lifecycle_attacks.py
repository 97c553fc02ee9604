"""What captured processes report about others: nobody ends, nobody is locked out, and the audit names the writers."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from bus.nats.bus import NatsBus
from bus.nats.credentials import Credentials
from bus.nats.key_files import prepared_file, read_seed
from coordinator.security.keys import KeyStore
from tests.acceptance.swarm import AGENTS, Swarm

VICTIM, ME = "coordinator", "strategy-momentum"
OWN = f"in.swarm.lifecycle.{ME}.{ME}"
NOON = "2026-01-01T12:00:00Z"
FAR = 10**9


def forged(event: str, epoch: int | None, source: str, agent: str = VICTIM, **fields: Any) -> bytes:
    return orjson.dumps(
        {"event": event, "agent": agent, "timestamp": NOON, "source": source, "epoch": epoch, "reason": "x", **fields}
    )


@pytest.mark.slow
async def test_no_captured_process_ends_others_by_its_reports(tmp_path: Path):
    exited: dict[str, Any] = {"detail": {"exit_code": 2}}
    async with Swarm(tmp_path) as swarm:
        subscriber = await swarm.up("--speed", "50")
        await subscriber.decided(251)
        heartbeats = await subscriber.live(*AGENTS)
        epoch = heartbeats[VICTIM]["epoch"]
        store = KeyStore(tmp_path / ".signalmesh")
        next_key = read_seed(prepared_file(store.incarnations, ME))

        async def attack(seed: str, subject: str, *payloads: bytes) -> None:
            bus = await NatsBus.connect(swarm.url, "swarm", "evil", 10.0, Credentials(nkey_seed=seed))
            for payload in payloads:
                bus.connection.write(subject, payload)
            await bus.flush()  # the server has judged them
            await bus.close()

        lies = [
            forged(event, number, ME, **exited)
            for event in ("exited", "quarantined", "declared_dead", "removed", "revived")
            for number in (epoch, FAR)
        ]
        own = forged("exited", heartbeats[ME]["epoch"], ME, agent=ME, **exited)
        host = forged("exited", None, ME, agent="python")
        await attack(next_key, OWN, *lies, own, host, forged("exited", epoch, "python", **exited))
        alert = {"severity": "warning", "code": "client_refused", "message": "python was refused", "timestamp": NOON}
        await attack(next_key, f"in.swarm.alert.warning.{ME}", orjson.dumps({**alert, "source": "up"}))
        for writer in ("mirror", "metrics", "dashboard"):
            subject = f"in.swarm.lifecycle.{VICTIM}.{writer}"
            await attack(store.seed(writer), subject, forged("exited", FAR, writer, **exited))
        base = [forged("exited", number, "base", **exited) for number in (epoch, FAR)]
        await attack(store.seed("sandbox-base"), f"in.swarm.lifecycle.{VICTIM}.base", *base)
        forged_host = forged("exited", None, "base", agent="python")
        await attack(store.seed("sandbox-base"), "in.swarm.lifecycle.python.base", forged_host)
        await subscriber.more_decisions(50)
        assert {name: beat["epoch"] for name, beat in (await subscriber.live(*AGENTS)).items()} == {
            name: beat["epoch"] for name, beat in heartbeats.items() if name in AGENTS
        }
        written = ended(subscriber.messages, lambda writer: writer == "watchdog")
        assert written == []
        stored = ended(subscriber.messages, lambda writer: writer in ("mirror", "metrics", "dashboard"))
        assert stored == []  # the server refused them

        swarm.send(heartbeats[VICTIM]["pid"], signal.SIGKILL)  # no later incarnation is locked out
        await subscriber.back({VICTIM: epoch})
        await subscriber.more_decisions(50)
        rounds = [decision["round"] for decision in subscriber.decisions]
        assert rounds == list(range(rounds[0], rounds[0] + len(rounds)))
        audit = await swarm.command("audit", "--json")
        assert audit.json["rounds"]["missing"] == audit.json["rounds"]["duplicated"] == 0
        poison = [item["subject"] for item in audit.json["poison"]]
        assert poison == [f"swarm.lifecycle.{ME}.{ME}"] * (len(lies) + 3)
        assert await swarm.end(signal.SIGINT) == 0


def ended(messages: list[Any], by: Callable[[str], bool]) -> list[tuple[str, str]]:
    """Writer and event of the stored reports of these writers that end agents or quarantine them."""
    events = ("exited", "declared_dead", "quarantined", "removed")  # one that is slow is suspected, and goes on
    return [
        (message.writer, message.json["event"])
        for message in messages
        if message.kind == "lifecycle" and message.sequence and by(message.writer) and message.json["event"] in events
    ]
