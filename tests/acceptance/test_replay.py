"""`signalmesh replay`: a real run with kills gives identical bytes (see `good`), and differences are printed."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from bus.messages import headers as h
from coordinator.config.loader import parse_swarm
from coordinator.config.settings import SwarmConfig
from coordinator.replay.models import Difference, Replay
from coordinator.replay.runner import ReplayRange, replay_bus
from tests.acceptance.conftest import LENGTH
from tests.acceptance.exact import exact_toml
from tests.acceptance.swarm import AGENTS, run_command
from tests.support.copying import Recorded, copied
from tests.support.mirror_files import damage, mirrored

MOMENTUM, COORDINATOR = "strategy-momentum", "coordinator"


def config(toml: str = "") -> SwarmConfig:
    return parse_swarm(tomllib.loads(toml or exact_toml(rounds=LENGTH)), "swarm.toml", "")


def outputs(run: Recorded, agent: str = "") -> list[int]:
    """Sequences of the numbered messages (of one agent)."""
    return [
        m.sequence for m in run.messages if h.OUTPUT in m.headers and m.subject.endswith(f".{agent}" if agent else "")
    ]


async def replay_of(directory: Path, run: Recorded, *, toml: str = "", span: ReplayRange | None = None) -> Replay:
    async with copied(directory, run) as bus:
        return await replay_bus(bus, config(toml), span or ReplayRange())


def only(replay: Replay) -> Difference:
    assert not replay.ok
    [difference] = replay.differences
    return difference


async def test_every_output_of_every_agent_is_compared(tmp_path: Path, good: Recorded):
    replay = await replay_of(tmp_path, good)
    assert replay.differences == []
    assert replay.notes == []
    assert replay.ok
    assert replay.compared == len(outputs(good))
    assert {name: agent.compared for name, agent in replay.agents.items()} == {
        name: len(outputs(good, name)) for name in AGENTS
    }
    assert all(agent.left_out is None and agent.waiting == 0 for agent in replay.agents.values())
    ticks = sum(m.subject.startswith("swarm.market.") for m in good.messages)
    assert replay.agents[MOMENTUM].inputs == ticks == LENGTH


async def test_another_window_shows_the_first_difference(tmp_path: Path, good: Recorded):
    toml = exact_toml(rounds=LENGTH).replace('kind = "momentum"', 'kind = "momentum"\noptions = { window = 100 }')
    replay = await replay_of(tmp_path, good, toml=toml)
    difference = only(replay)
    assert difference.agent == MOMENTUM
    first = good.at(difference.sequence)
    assert first.headers[h.OUTPUT] == str(difference.output)
    assert difference.cause == int(first.headers[h.CAUSE])
    fields = {item.field: item for item in difference.fields}
    assert "indicators.rsi" in fields
    assert fields["indicators.rsi"].recorded == orjson.loads(first.data)["indicators"]["rsi"]
    assert fields["indicators.rsi"].replayed != fields["indicators.rsi"].recorded
    assert replay.agents[MOMENTUM].differing >= 1
    before = [s for s in outputs(good, MOMENTUM) if s < difference.sequence]
    assert (await replay_of(tmp_path / "b", good, toml=toml, span=ReplayRange(last=before[-1]))).ok, (
        "it is not the first"
    )


async def test_another_recording_differs_at_its_source(tmp_path: Path, good: Recorded):
    candles = tmp_path / "candles.csv"
    candles.write_text(
        "timestamp,open,high,low,close,volume\n"
        "2017-07-12T17:00:00Z,1,1,1,1,1\n2017-07-12T18:00:00Z,1,1,1,1,1\n2017-07-12T19:00:00Z,1,1,1,1,1\n"
    )
    toml = exact_toml(rounds=LENGTH).replace("limit =", f'symbols = {{ "BTC/USD" = "{candles}" }}, limit =')
    difference = only(await replay_of(tmp_path / "server", good, toml=toml))
    assert (difference.agent, difference.output, difference.cause) == ("research-1", 1, None)
    assert {"price", "timestamp"} <= {item.field for item in difference.fields}


async def test_a_damaged_payload(tmp_path: Path, good: Recorded):
    sequence = good.find("swarm.decision.", Mesh_Output=200).sequence
    message = good.at(sequence)
    payload = orjson.dumps({**orjson.loads(message.data), "position_size": 0.123})
    run = good.replaced(sequence, replace(message, data=payload))
    difference = only(await replay_of(tmp_path, run))
    assert (difference.agent, difference.sequence, difference.output) == (COORDINATOR, sequence, 200)
    assert [(item.field, item.recorded) for item in difference.fields] == [("position_size", 0.123)]
    assert (await replay_of(tmp_path / "before", run, span=ReplayRange(last=sequence - 1))).ok
    assert (await replay_of(tmp_path / "after", run, span=ReplayRange(first=sequence + 1))).ok


@pytest.mark.parametrize("header", [h.OUTPUT, h.CAUSE, h.MSG_ID])
async def test_a_wrong_header(tmp_path: Path, good: Recorded, header: str):
    sequence = good.find("swarm.signal.BTC-USD.strategy-momentum", Mesh_Output=300).sequence
    wrong = {h.OUTPUT: 301, h.CAUSE: int(good.at(sequence).headers[h.CAUSE]) - 1, h.MSG_ID: "nobody:1"}[header]
    replay = await replay_of(tmp_path, good.with_headers(sequence, **{header.replace("-", "_"): wrong}))
    difference = only(replay)
    assert (difference.agent, difference.sequence) == (MOMENTUM, sequence)


async def test_an_output_replaced_by_another_message(tmp_path: Path, good: Recorded):
    sequence = good.find("swarm.decision.", Mesh_Output=200).sequence
    spare = next(m for m in good.messages if m.subject.startswith("swarm.lifecycle."))
    difference = only(await replay_of(tmp_path, good.replaced(sequence, spare)))
    assert (difference.agent, difference.subject) == (COORDINATOR, "swarm.decision.BTC-USD.coordinator")
    assert "but was not recorded" in difference.text


async def test_settings_and_agents_that_differ_from_the_recorded_ones_are_noted(tmp_path: Path, good: Recorded):
    toml = exact_toml(rounds=LENGTH).replace("[coordinator]", "[coordinator]\nbuy_at = 0.9", 1)
    lines, _, rest = toml.partition("[agents.strategy-mean-reversion]")
    toml = lines + "[agents.coordinator]" + rest.partition("[agents.coordinator]")[2]
    replay = await replay_of(tmp_path, good, toml=toml)
    assert replay.ok, "the coordinator goes by the VotingConfig in the stream"
    [settings, absent] = replay.notes
    assert "buy_at 0.55 instead of 0.9" in settings
    assert "strategy-mean-reversion" in absent
    assert f"{LENGTH} outputs" in absent


async def test_a_stream_without_its_beginning_is_not_compared(tmp_path: Path, good: Recorded):
    async with copied(tmp_path, good, without=tuple(range(1, 1001))) as bus:
        replay = await replay_bus(bus, config(), ReplayRange())
    assert not replay.ok
    assert replay.compared == 0
    assert (replay.differences, replay.missing) == ([], [])
    assert all("--file" in (agent.left_out or "") for agent in replay.agents.values())


@pytest.mark.slow
@pytest.mark.parametrize("by", ["the server", "the file"])
async def test_what_is_missing_between_others_fails_and_is_named(tmp_path: Path, good: Recorded, by: str):
    """Nothing in it differs: what follows the gap cannot be compared. Its end alone is missing as well."""
    (tmp_path / "swarm.toml").write_text(exact_toml(rounds=LENGTH))
    lost = good.find("swarm.decision.", Mesh_Output=200).sequence
    last = good.messages[-1].sequence
    named = f"messages {lost} to {lost}, {last - 4} to {last - 3} are missing, though older ones are stored"
    gone = (lost, last - 4, last - 3)
    if by == "the file":
        path = await mirrored(tmp_path / "mirror.sqlite", good)
        for sequence in gone:
            damage(path, "DELETE FROM messages WHERE sequence = ?", sequence)
        result, as_json = [
            await run_command(tmp_path, "replay", "--file", str(path), *more) for more in ((), ["--json"])
        ]
    else:
        async with copied(tmp_path / "server", good, without=gone) as bus:
            result, as_json = [
                await run_command(tmp_path, "replay", "--nats", bus.url, *more) for more in ((), ["--json"])
            ]
    assert result.code == as_json.code == 1
    assert named in " ".join(result.out.split())
    assert "identical bytes" not in result.out
    assert as_json.json["differences"] == []
    assert as_json.json["missing"] == [
        {"first": lost, "last": lost, "explained": False},
        {"first": last - 4, "last": last - 3, "explained": False},
    ]


async def test_a_mirrors_file_without_a_bus(tmp_path: Path, good: Recorded):
    path = await mirrored(tmp_path / "mirror.sqlite", good)
    (tmp_path / "swarm.toml").write_text(exact_toml(rounds=LENGTH))
    result = await run_command(tmp_path, "replay", "--file", str(path))
    assert result.code == 0, result.out + result.err
    assert f"identical bytes: {len(outputs(good)):,} outputs" in result.out
    sequence = good.find("swarm.decision.", Mesh_Output=200).sequence
    payload = good.at(sequence).data.replace(b'"absent":[]', b'"absent":["nobody"]')
    damage(path, "UPDATE messages SET payload = ? WHERE sequence = ?", payload, sequence)
    damaged = await run_command(tmp_path, "replay", "--file", str(path), "--json")
    assert damaged.code == 1
    [difference] = damaged.json["differences"]
    assert (difference["sequence"], [item["field"] for item in difference["fields"]]) == (sequence, ["absent"])
    assert "1 row of the file" in damaged.json["notes"][0]


async def test_a_span_that_is_none(tmp_path: Path):
    result = await run_command(tmp_path, "replay", "--from", "9", "--to", "3")
    assert result.code == 2
    assert "--from 9 --to 3" in result.err
    assert (await run_command(tmp_path, "replay", "--file", "nowhere.sqlite")).code == 2
