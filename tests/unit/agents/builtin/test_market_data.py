"""The source of candles: order, resumption after any event, pace, and how far it runs ahead of the decisions."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime, timedelta

import msgspec
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.agent import check_class
from agents.builtin.market_data import MarketDataAgent
from agents.state.codec import StateCodec
from bus.errors import DataError, UsageError
from bus.messages import Decision, MarketData, VotingConfig, encode

START = datetime(2020, 1, 1, tzinfo=UTC)


def write(path, hours):
    rows = [
        f"{(START + timedelta(hours=hour)).isoformat()},{hour + 1},{hour + 3},1,{hour + 2},{hour}" for hour in hours
    ]
    path.write_text("timestamp,open,high,low,close,volume\n" + "\n".join(rows) + "\n")
    return str(path)


def make(**options):
    return MarketDataAgent("research-1", {"speed": 0, "max_open_rounds": 0, **options})


def decision(sequence, *, symbol="BTC/USD", source="research-1", identifier=True, number=None):
    return Decision(
        final_decision="hold",
        position_size=0.0,
        risk_score=0.0,
        consensus_level=0.5,
        agents_consulted=(),
        timestamp=START,
        source="coordinator",
        decision_id=f"{symbol}:{source}:{sequence}" if identifier else None,
        symbol=symbol,
        round=number if number is not None else sequence,
    )


async def take(agent, last=None, count=None):
    """The first `count` events after `last`, or all of them."""
    events: list[MarketData] = []
    async for event in agent.produce(last):
        events.append(event)
        if len(events) == count:
            break
    return events


async def follow(agent, into):
    """Append every event to `into` the moment it comes."""
    async for event in agent.produce(None):
        into.append(event)


async def settle():
    """Let every task that can run do so until it waits."""
    for _ in range(50):
        await asyncio.sleep(0)


def keys(events):
    return [(event.symbol, event.sequence) for event in events]


def test_class_is_a_valid_agent():
    check_class(MarketDataAgent, "here")
    assert MarketDataAgent.capabilities == ("market_data_collection", "volume_tracking")


async def test_first_events_of_the_packaged_recording():
    first, second = await take(make(), count=2)
    assert encode(first) == (
        b'{"symbol":"BTC/USD","price":2509.17,"volume":114.6,"timestamp":"2017-07-01T11:00:00Z","source":"research-1",'
        b'"sequence":1,"open":2505.56,"high":2513.38,"low":2495.12}'
    )
    assert (second.sequence, second.price) == (2, 2488.43)


async def test_symbols_are_merged_by_timestamp_then_symbol(tmp_path):
    agent = make(symbols={"B": write(tmp_path / "b", [0, 1, 3]), "A": write(tmp_path / "a", [1, 2, 3])})
    events = await take(agent)
    assert keys(events) == [("B", 1), ("A", 1), ("B", 2), ("A", 2), ("A", 3), ("B", 3)]
    assert [event.price for event in events if event.symbol == "A"] == [3.0, 4.0, 5.0]


HOURS = st.lists(st.integers(0, 12), min_size=1, max_size=8, unique=True).map(sorted)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.dictionaries(st.sampled_from(["A", "B:C", "Z/USD"]), HOURS, min_size=1), limit=st.integers(0, 9))
def test_after_any_event_exactly_the_rest_follows(tmp_path, files, limit):
    symbols = {symbol: write(tmp_path / f"{symbol[0]}.csv", hours) for symbol, hours in files.items()}
    agent = make(symbols=symbols, limit=limit)

    async def check():
        whole = [encode(event) for event in await take(agent)]
        expected = sum(min(len(hours), limit or len(hours)) for hours in files.values())
        assert len(whole) == len(set(whole)) == expected
        for at, event in enumerate(await take(agent)):
            assert [encode(later) for later in await take(make(symbols=symbols, limit=limit), event)] == whole[at + 1 :]

    asyncio.run(check())


async def test_a_lower_limit_than_what_was_sent_ends_at_once(tmp_path):
    path = write(tmp_path / "a", range(9))
    last = (await take(make(symbols={"A": path})))[6]
    assert await take(make(symbols={"A": path}, limit=5), last) == []


async def test_going_on_with_another_file_is_refused(tmp_path):
    symbols = {"A": write(tmp_path / "a", range(5))}
    last = (await take(make(symbols=symbols)))[3]
    for other in ([0, 1, 2, 4, 5], [0, 1]):
        agent = make(symbols={"A": write(tmp_path / "other", other)})
        with pytest.raises(UsageError, match="'research-1': symbols: expected the same file"):
            await take(agent, last)
    with pytest.raises(UsageError, match="'research-1': symbols: expected 'A' among them"):
        await take(make(symbols={"B": symbols["A"]}), last)


async def test_window_of_open_rounds_holds():
    agent = make(max_open_rounds=3)
    sent: list[MarketData] = []
    task = asyncio.create_task(follow(agent, sent))
    for closed, open_up_to in ((0, 3), (1, 4), (2, 5), (5, 8), (4, 8), (8, 11)):
        if closed:
            agent.on_decision(decision(closed))
        await settle()
        assert [event.sequence for event in sent] == list(range(1, open_up_to + 1))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_full_window_is_refilled_in_blocks_of_half():
    agent = make(max_open_rounds=8)
    sent: list[MarketData] = []
    task = asyncio.create_task(follow(agent, sent))
    for closed, open_up_to in ((0, 8), (3, 8), (4, 12), (5, 12), (7, 12), (8, 16), (16, 24)):
        if closed:
            agent.on_decision(decision(closed))
        await settle()
        assert [event.sequence for event in sent] == list(range(1, open_up_to + 1))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_each_symbol_has_its_share_of_the_window(tmp_path):
    agent = make(
        symbols={"A": write(tmp_path / "a", range(4)), "B": write(tmp_path / "b", range(2, 6))}, max_open_rounds=4
    )
    sent: list[MarketData] = []
    task = asyncio.create_task(follow(agent, sent))
    await settle()
    assert keys(sent) == [("A", 1), ("A", 2)]
    agent.on_decision(decision(2, symbol="A"))
    await settle()
    assert keys(sent)[2:] == [("A", 3), ("B", 1), ("A", 4), ("B", 2)]
    agent.on_decision(decision(4, symbol="A"))
    await settle()
    assert len(sent) == 6
    agent.on_decision(decision(1, symbol="B"))
    agent.on_decision(decision(2, symbol="B"))
    await task
    assert keys(sent)[6:] == [("B", 3), ("B", 4)]


@pytest.mark.parametrize(
    ("event", "decided"),
    [
        (decision(7), {"BTC/USD": 7}),
        (decision(7, source="research-9"), {}),
        (decision(7, source="research-1=2"), {"BTC/USD": 7}),
        (decision(7, identifier=False), {"BTC/USD": 7}),
        (decision(7, symbol="X:Y"), {"X:Y": 7}),
        (decision(7, symbol="ETH/USD"), {}),
        (decision(3, symbol="X:Y", source="research-9"), {}),
        (decision(0), {}),
        (decision(10**9), {}),
        (dataclasses.replace(decision(7), round=None), {"BTC/USD": 7}),
        (dataclasses.replace(decision(7, identifier=False), round=None), {}),
        (dataclasses.replace(decision(7), decision_id="their-own-7"), {"BTC/USD": 7}),
    ],
)
def test_which_decisions_count(tmp_path, event, decided):
    agent = make(symbols={"BTC/USD": "", "X:Y": write(tmp_path / "x", range(9))})
    agent.on_decision(event)
    assert agent.state.decided == decided


def config(source, *deciders):
    return VotingConfig(voters={}, timestamp=START, source=source, deciders=deciders)


async def test_only_deciders_of_the_watchdogs_config_open_the_window():
    agent = make(max_open_rounds=2)
    sent: list[MarketData] = []
    task = asyncio.create_task(follow(agent, sent))
    agent.on_config(config("watchdog", "chief"))
    agent.on_config(config("evil", "evil", "coordinator"))
    agent.on_decision(dataclasses.replace(decision(200), source="evil"))
    await settle()
    assert keys(sent) == [("BTC/USD", 1), ("BTC/USD", 2)]
    agent.on_decision(dataclasses.replace(decision(1), source="chief"))
    await settle()
    assert keys(sent)[2:] == [("BTC/USD", 3)]
    restored = make()
    restored.state = msgspec.convert(orjson.loads(orjson.dumps(agent.state)), MarketDataAgent.State)
    assert restored.state == agent.state
    task.cancel()


def test_an_older_decision_takes_nothing_back():
    agent = make()
    for number in (5, 4, 1):
        agent.on_decision(decision(number))
    assert agent.state.decided == {"BTC/USD": 5}


async def test_restored_state_opens_the_window():
    agent = make(max_open_rounds=3)
    agent.on_decision(decision(10))
    saved = orjson.dumps(agent.state)
    restored = make(max_open_rounds=3)
    restored.state = msgspec.convert(orjson.loads(saved), MarketDataAgent.State)
    (tenth,) = (await take(make(), count=10))[9:]
    assert keys(await take(restored, tenth, count=3)) == [("BTC/USD", 11), ("BTC/USD", 12), ("BTC/USD", 13)]


class Clock:
    """Stands in for the loop's clock and for sleeping, so that a test of the pace takes no time."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        self.real_sleep = asyncio.sleep
        monkeypatch.setattr("agents.builtin.market_data.asyncio.sleep", self.sleep)
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: self.now, raising=False)

    async def sleep(self, seconds):
        self.now += max(0.0, seconds)
        await self.real_sleep(0)


async def test_pace_does_not_drift_and_does_not_burst(monkeypatch):
    clock = Clock(monkeypatch)
    agent = make(speed=2.0, history=3, limit=12)
    at: list[float] = []
    async for event in agent.produce(None):
        at.append(round(clock.now - 1000, 6))
        if event.sequence in (5, 6):
            clock.now += 0.2  # a slow consumer: the next ones are due when they were
        if event.sequence == 8:
            clock.now += 7.0  # a stall: one candle late, one at its heels, and the schedule starts anew
    assert at == [0, 0, 0, 0.5, 1.0, 1.5, 2.0, 2.5, 9.5, 9.5, 10.0, 10.5]


async def test_a_restart_owes_the_next_candle_right_away(monkeypatch):
    last = (await take(make(), count=5))[4]
    clock = Clock(monkeypatch)
    at = [clock.now - 1000 async for _ in make(speed=4.0, history=2, limit=8).produce(last)]
    assert at == [0, 0.25, 0.5]


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        ({"speed": -1}, "speed"),
        ({"speed": float("nan")}, "speed"),
        ({"speed": float("inf")}, "speed"),
        ({"history": -1}, "history"),
        ({"max_open_rounds": -1}, "max_open_rounds"),
        ({"limit": -1}, "limit"),
        ({"symbols": {}}, "symbols"),
        ({"symbols": {"": "x.csv"}}, "symbols"),
    ],
)
def test_settings_out_of_range_are_named(options, setting):
    with pytest.raises(UsageError, match=f"agent 'research-1': {setting}: expected"):
        MarketDataAgent("research-1", options)


def test_a_missing_file_ends_the_start():
    with pytest.raises(DataError, match=r"none\.csv: no such file"):
        make(symbols={"A": "none.csv"})


@pytest.mark.parametrize("revised", [0, 5, 9, None])
async def test_a_past_candle_that_was_revised_is_reported_and_a_later_one_is_not(tmp_path, revised):
    """By its source as soon as it goes on, and by the next decision; candles after the decided ones are still open."""
    path = tmp_path / "hours.csv"
    symbols = {"BTC/USD": write(path, range(20))}
    before = make(symbols=symbols)
    events = await take(before, count=10)
    for event in events:
        before.on_decision(decision(event.sequence))
    codec = StateCodec.checked(MarketDataAgent.State)
    state = orjson.loads(codec.encode(before.state))
    assert state["digests"]["BTC/USD"][0] == 10

    lines = path.read_text().splitlines()
    line = 1 + (15 if revised is None else revised)
    lines[line] = lines[line].replace(",1,", ",0.5,")
    path.write_text("\n".join(lines) + "\n")

    for way in ("source", "decision"):
        after = make(symbols=symbols)
        after.state = codec.decode(state)
        if revised is None:
            assert (await take(after, events[-1], count=1))[0].sequence == 11
            after.on_decision(decision(11))
        elif way == "source":
            with pytest.raises(DataError, match=r"hours\.csv: the first 10 candles of BTC/USD differ"):
                await take(after, events[-1], count=1)
        else:
            with pytest.raises(DataError, match="or start with an empty --state-dir"):
                after.on_decision(decision(11))
