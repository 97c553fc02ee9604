"""`signalmesh explain`: every decision of real runs is the same to the last digit, and every mistake is one line."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
from collections import Counter
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from bus.errors import EXIT_DONE, EXIT_FAILED, EXIT_UNREACHABLE, EXIT_USAGE
from bus.mirror.reader import MirrorFile
from bus.nats.bus import NatsBus
from coordinator.explain.explainer import explain
from coordinator.explain.file_source import FileSource
from coordinator.explain.models import Explanation
from coordinator.explain.selection import Selector
from coordinator.explain.sources import BusSource, Filter, MessageSource
from tests.acceptance.conftest import LENGTH
from tests.acceptance.subscriber import Subscriber
from tests.acceptance.swarm import Swarm, agents_toml, run_command
from tests.support.copying import Recorded, copied
from tests.support.mirror_files import damage, mirrored

LAST_ID = f"BTC/USD:research-1:{LENGTH}"
COMMAND_S = 170.0
"""A busy machine takes its time to start Python."""
MIRROR = Path(".signalmesh", "mirror.sqlite")


async def all_explained(source: MessageSource, every: int = 1) -> list[Explanation]:
    """Of `every` so manyth decision, in order; each must be the same."""
    decisions = await source.read((Filter("decision"),), 1, await source.last_sequence())
    found = [await explain(source, Selector(decision=str(stored.sequence))) for stored in decisions[::every]]
    assert [(one.decision_id, one.differences) for one in found if not one.same] == []
    return found


@pytest.mark.slow
async def test_decisions_of_a_run_with_kills(tmp_path: Path, good: Recorded):
    path = await mirrored(tmp_path / "mirror.sqlite", good)
    with MirrorFile(path) as file:
        found = await all_explained(FileSource(file), every=12)
    assert [one.round for one in found] == list(range(1, LENGTH + 1, 12))
    assert {one.closing.reason for one in found} <= {"votes", "order", "timer"}
    assert len({one.epoch for one in found}) >= 2, "the coordinator was not killed"


async def test_the_page_and_the_json(tmp_path: Path, good: Recorded):
    path = str(await mirrored(tmp_path / "mirror.sqlite", good))
    page = await run_command(tmp_path, "explain", "latest", "--file", path)
    assert page.code == EXIT_DONE, page.err
    assert page.out.startswith(f"BTC/USD round {LENGTH}: ")
    for word in (
        "research-2",
        "log pool",
        "quorum",
        "thresholds",
        "volatility",
        "drawdown",
        "size",
        "closed by",
        "trace",
    ):
        assert word in page.out
    assert "the same to the last digit: computed again from" in page.out.splitlines()[-1]
    as_json = await run_command(tmp_path, "explain", LAST_ID, "--file", path, "--json")
    assert as_json.code == EXIT_DONE
    found = as_json.json
    assert (found["decision_id"], found["same"], found["source"]) == (LAST_ID, True, path)
    published = orjson.loads(good.at(found["sequence"]).data)
    assert found["computed"] == {name: published.get(name, []) for name in found["computed"]}
    by_round = await run_command(tmp_path, "explain", "--round", "77", "--symbol", "BTC/USD", "--file", path)
    assert by_round.out.startswith("BTC/USD round 77: ")
    async with copied(tmp_path / "server", good) as bus:
        live = await run_command(tmp_path, "explain", "latest", "--nats", bus.url, "--json")
    assert live.code == EXIT_DONE, live.err
    assert live.json["source"] == bus.url
    assert live.json["computed"] == found["computed"]


async def test_a_difference_is_shown_and_is_exit_code_1(tmp_path: Path, good: Recorded):
    sequence = good.find("swarm.decision.", Mesh_Output=300).sequence
    message = good.at(sequence)
    payload = {**orjson.loads(message.data), "risk_score": 0.123456789}
    run = good.replaced(sequence, replace(message, data=orjson.dumps(payload)))
    path = await mirrored(tmp_path / "mirror.sqlite", run)
    result = await run_command(tmp_path, "explain", str(sequence), "--file", str(path))
    assert result.code == EXIT_FAILED
    assert "DIFFERENT" in result.out
    assert "risk_score: published 0.123456789, computed 0." in result.out
    assert "the same" not in result.out


async def fails(directory: Path, code: int, text: str, *arguments: str) -> None:
    """The command ends with this exit code and one line with `text`."""
    result = await run_command(directory, "explain", *arguments)
    assert result.code == code, result.out + result.err
    [line] = result.err.splitlines()
    assert text in line
    assert result.out == ""


@pytest.mark.slow
async def test_mistakes_with_a_file(tmp_path: Path, good: Recorded):
    file = await mirrored(tmp_path / "mirror.sqlite", good)
    last, path = good.messages[-1].sequence, str(file)
    await fails(tmp_path, EXIT_USAGE, "no such round; those of BTC/USD", "BTC/USD:research-1:9999", "--file", path)
    await fails(tmp_path, EXIT_USAGE, "expected a decision_id like BTC/USD:research-1:42", "nonsense", "--file", path)
    await fails(tmp_path, EXIT_USAGE, "expected DECISION_ID, latest, or --round", "--file", path)
    await fails(tmp_path, EXIT_USAGE, "one or the other", "latest", "--round", "4", "--file", path)
    await fails(tmp_path, EXIT_USAGE, "there is no such file", "latest", "--file", str(tmp_path / "none.sqlite"))
    older = await mirrored(tmp_path / "older.sqlite", good, first=last // 2)
    await fails(
        tmp_path, EXIT_FAILED, "the bus may have it (without --file)", "BTC/USD:research-1:9", "--file", str(older)
    )
    damage(
        file,
        "UPDATE messages SET payload = x'7b7d' WHERE sequence = ?",
        good.find("swarm.decision.", Mesh_Output=LENGTH).sequence,
    )
    await fails(tmp_path, EXIT_FAILED, "does not match its checksum", "latest", "--file", path)
    with contextlib.closing(sqlite3.connect(older)) as db:
        db.execute("PRAGMA user_version = 99")
    await fails(tmp_path, EXIT_USAGE, "its version is 99", "latest", "--file", str(older))


@pytest.mark.slow
async def test_mistakes_with_a_bus(tmp_path: Path, good: Recorded):
    await fails(tmp_path, EXIT_UNREACHABLE, "no NATS server answers", "latest", "--nats", "nats://127.0.0.1:1")
    await fails(tmp_path, EXIT_USAGE, "there is no such directory", "latest", "--state-dir", "elsewhere")
    third = good.find("swarm.decision.", Mesh_Output=3).sequence
    gone = tuple(m.sequence for m in good.messages if m.sequence <= third and m.headers.get("Nats-TTL") != "never")
    undecided = good.find("swarm.market.", Mesh_Output=LENGTH).sequence
    decision = good.find("swarm.decision.", Mesh_Output=LENGTH).sequence
    async with copied(tmp_path / "server", good, without=(*gone, decision)) as bus:
        for text, wanted in (
            (f"is no longer stored: messages up to {third} have been removed by retention", "BTC/USD:research-1:3"),
            (f"this round is still open: its tick is message {undecided}", LAST_ID),
        ):
            await fails(tmp_path, EXIT_FAILED, text, wanted, "--nats", bus.url)


async def strike(swarm: Swarm, subscriber: Subscriber, name: str, number: int) -> None:
    """Send an agent a signal; returns when its next incarnation is live, and twenty decisions later."""
    heartbeat = subscriber.heartbeats[name]
    swarm.send(heartbeat["pid"], number)
    await subscriber.back({name: heartbeat["epoch"]})
    await subscriber.more_decisions(20)


async def explain_absence(swarm: Swarm, subscriber: Subscriber, source: MessageSource, name: str) -> None:
    """Kill a voter while no watchdog can bring it back, and explain a decision without it."""
    heartbeat, watchdog, since = (
        subscriber.heartbeats[name],
        subscriber.heartbeats["watchdog"],
        len(subscriber.decisions),
    )
    swarm.send(watchdog["pid"], signal.SIGSTOP)
    swarm.send(heartbeat["pid"], signal.SIGKILL)
    decision = await subscriber.until(
        f"a decision without {name}",
        lambda: next((one for one in subscriber.decisions[since:] if name in one.get("absent", ())), None),
    )
    found = await explain(source, Selector(decision=decision["decision_id"]))
    swarm.send(watchdog["pid"], signal.SIGCONT)
    assert (found.same, {voter.name: voter.status for voter in found.voters}[name]) == (True, "absent")
    await subscriber.back({name: heartbeat["epoch"]})


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_every_decision_of_a_run_with_deaths_absences_late_votes_and_other_configs(tmp_path: Path):
    """Real processes, real SIGKILL and SIGSTOP, drained and revived voters, and other settings in a second `up`."""
    toml = agents_toml(speed=15)
    async with Swarm(tmp_path, toml) as swarm:
        subscriber = await swarm.up()
        await subscriber.decided(120)
        for name, number in (
            ("strategy-momentum", signal.SIGSTOP),
            ("coordinator", signal.SIGKILL),
            ("research-2", signal.SIGKILL),
            ("research-1", signal.SIGKILL),
            ("coordinator", signal.SIGSTOP),
        ):
            await strike(swarm, subscriber, name, number)
        drained = subscriber.heartbeats["strategy-mean-reversion"]
        swarm.send(drained["pid"], signal.SIGTERM)
        await subscriber.happened("drained", "strategy-mean-reversion")
        await subscriber.more_decisions(20)
        revived = await swarm.command("revive", "strategy-mean-reversion", guard_s=COMMAND_S)
        assert revived.code == EXIT_DONE, revived.out + revived.err
        await subscriber.back({"strategy-mean-reversion": drained["epoch"]})
        await subscriber.more_decisions(60)
        assert await swarm.end(signal.SIGINT) == EXIT_DONE
        (tmp_path / "swarm.toml").write_text(
            "[coordinator]\nbuy_at = 0.52\nsell_at = 0.5\nquorum = 0.7\nvol_target = 0.002\nposition_cap = 0.005\n"
            + toml
        )
        subscriber = await swarm.up()
        await subscriber.live("strategy-momentum")
        await subscriber.more_decisions(60)
        await strike(swarm, subscriber, "strategy-momentum", signal.SIGSTOP)
        live = await swarm.command("explain", "latest", guard_s=COMMAND_S)
        assert live.code == EXIT_DONE, live.out + live.err
        bus = await NatsBus.connect(swarm.url, swarm.name, "test")
        try:
            source = BusSource(bus)
            decisions = await source.read((Filter("decision"),), 1, await source.last_sequence())
            for stored in decisions[::37]:
                assert (await explain(source, Selector(decision=str(stored.sequence)))).same
            await explain_absence(swarm, subscriber, source, "strategy-mean-reversion")
        finally:
            await bus.close()
        assert await swarm.end(signal.SIGINT) == EXIT_DONE
    with MirrorFile(tmp_path / MIRROR) as file:
        found = await all_explained(FileSource(file))
    assert len(found) > 300
    statuses = Counter(voter.status for one in found for voter in one.voters)
    assert statuses["counted"] > 700
    assert statuses["late"] > 0
    assert len({one.config.sequence for one in found}) >= 4
    assert any(one.config.changed_in_round for one in found) or len({one.config.buy_at for one in found}) == 2
    assert {"claimed", "declared_dead", "ready"} <= {event.event for one in found for event in one.events}
    assert {"votes", "timer"} <= {one.closing.reason for one in found}
    assert {one.size.bound_by for one in found} >= {"hold", "edge", "position_cap"}
    assert len({one.epoch for one in found}) >= 3
