"""The payloads: their one byte form, what a stranger may leave out, and every way to be poison."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, get_args

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.errors import MessageError
from bus.messages import (
    KIND_OF,
    KINDS,
    MAX_PAYLOAD_BYTES,
    Alert,
    Child,
    Decision,
    Epoch,
    Headline,
    Heartbeat,
    Lifecycle,
    LifecycleEvent,
    MarketData,
    Message,
    Sentiment,
    SentimentLabel,
    Severity,
    Side,
    Signal,
    Timer,
    VotingConfig,
    decode,
    encode,
)
from bus.messages.subjects import RESERVED_NAMES, Subjects
from tests.support.counted import heartbeat
from tests.support.reporters import reporter_of

NOON = datetime(2020, 1, 1, 12, tzinfo=UTC)
SUBJECTS = Subjects("swarm")
T = b'"timestamp":"2020-01-01T12:00:00Z"'


def subject_of(kind: str) -> str:
    if kind in ("epoch", "heartbeat"):
        return f"swarm.{kind}.writer"
    return f"swarm.{kind}.BTC-USD.writer"


def read(kind: str, data: bytes | dict[str, Any], subject: str | None = None) -> Any:
    data = data if isinstance(data, bytes) else orjson.dumps(data)
    if subject is not None:
        return decode(SUBJECTS.parse(subject), subject, data)
    address = SUBJECTS.parse(subject_of(kind))
    named = "agent" if kind == "heartbeat" else "source"
    with contextlib.suppress(orjson.JSONDecodeError, TypeError, KeyError):
        address = dataclasses.replace(address, agent=orjson.loads(data)[named])  # published by whom it says
        if kind == "lifecycle":
            address = dataclasses.replace(address, topic=orjson.loads(data)["agent"])  # and about whom it says
    return decode(address, subject_of(kind), data)


@pytest.mark.parametrize("kind", ["sentiment", "signal", "decision", "config"])
def test_a_vote_or_config_is_its_subjects_writers_whatever_the_payload_names(kind):
    [data] = [data for message, data in GOLDEN if KIND_OF[type(message)] == kind][:1]
    assert read(kind, data, f"swarm.{kind}.BTC-USD.somebody").source == "somebody"


GOLDEN: list[tuple[Message, bytes]] = [
    (
        MarketData(symbol="BTC/USD", price=1.5, volume=0.0, timestamp=NOON, source="feed"),
        b'{"symbol":"BTC/USD","price":1.5,"volume":0.0,' + T + b',"source":"feed"}',
    ),
    (
        MarketData(
            symbol="BTC/USD", price=0.1 + 0.2, volume=2.0, timestamp=NOON, source="feed", sequence=7, open=1.0,
            high=3.0, low=0.5,
        ),
        b'{"symbol":"BTC/USD","price":0.3,"volume":2.0,' + T + b',"source":"feed","sequence":7,"open":1.0,"high":3.0,'
        b'"low":0.5}',
    ),
    (
        Headline(text="Up \u00e9", timestamp=NOON, source="news", url="https://example.org/1", symbols=("BTC/USD",)),
        b'{"text":"Up \xc3\xa9",' + T + b',"source":"news","url":"https://example.org/1","symbols":["BTC/USD"]}',
    ),
    (
        Sentiment(
            sentiment="bullish", confidence=0.78, sources=("news",), timestamp=NOON, source="research-2",
            symbol="BTC/USD", round=3, p_up=0.6,
        ),
        b'{"sentiment":"bullish","confidence":0.78,"sources":["news"],' + T
        + b',"source":"research-2","symbol":"BTC/USD","round":3,"p_up":0.6}',
    ),
    (
        Signal(
            signal="buy", strength=0.85, indicators={"rsi": 65.00000000001, "deep": [{"x": 1 / 3}]}, timestamp=NOON,
            source="momentum", symbol="BTC/USD",
        ),
        b'{"signal":"buy","strength":0.85,"indicators":{"rsi":65.0,"deep":[{"x":0.333333333333}]},' + T
        + b',"source":"momentum","symbol":"BTC/USD"}',
    ),
    (
        Decision(
            final_decision="hold", position_size=0.0, risk_score=1.0, consensus_level=0.5, agents_consulted=("a", "b"),
            timestamp=NOON, source="coordinator", decision_id="d-1", symbol="BTC/USD", round=1, absent=("c",),
        ),
        b'{"final_decision":"hold","position_size":0.0,"risk_score":1.0,"consensus_level":0.5,'
        b'"agents_consulted":["a","b"],' + T
        + b',"source":"coordinator","decision_id":"d-1","symbol":"BTC/USD","round":1,"absent":["c"]}',
    ),
    (
        Timer(name="round", number=2, timestamp=NOON, source="coordinator"),
        b'{"name":"round","number":2,' + T + b',"source":"coordinator"}',
    ),
    (
        Epoch(agent="a", claim="agent_1_abcdef", claimed_by="host", sandbox="base", timestamp=NOON, source="host"),
        b'{"agent":"a","claim":"agent_1_abcdef","claimed_by":"host","sandbox":"base",' + T + b',"source":"host"}',
    ),
    (
        VotingConfig(voters={"a": 1.0, "b": 0.5}, timestamp=NOON, source="up"),
        b'{"voters":{"a":1.0,"b":0.5},' + T + b',"source":"up","quorum":0.5,"buy_at":0.55,"sell_at":0.45,'
        b'"round_timeout_ms":400,"position_cap":0.5,"vol_target":0.01,"drawdown_max":0.25,"cvar_max":0.02,"deciders":[]}',
    ),
    (
        Lifecycle(event="exited", agent="a", timestamp=NOON, source="base", epoch=4, pid=9, detail={"status": -9}),
        b'{"event":"exited","agent":"a",' + T + b',"source":"base","epoch":4,"pid":9,"detail":{"status":-9}}',
    ),
    (
        Alert(severity="warning", code="poison_message", message="look", timestamp=NOON, source="a"),
        b'{"severity":"warning","code":"poison_message","message":"look",' + T + b',"source":"a","detail":{}}',
    ),
    (
        Heartbeat(
            agent="base", agent_id="agent_1_abcdef", epoch=4, sequence=5, progress=6, status="live", interval_ms=100,
            sandbox="base", pid=7, role="sandbox",
            inventory=(Child(agent="a", agent_id="agent_2_abcdef", epoch=8, pid=9, spawned_at=NOON, exit_code=0),),
        ),
        (b'{"agent":"base","agent_id":"agent_1_abcdef","epoch":4,"sequence":5,"progress":6,"status":"live",'
        b'"interval_ms":100,"sandbox":"base","pid":7,"cursor":0,"lag":0,"outputs":0,"poison":0,"skipped":0,"role":"sandbox",'
        b'"inventory":[{"agent":"a","agent_id":"agent_2_abcdef","epoch":8,"pid":9,'
        b'"spawned_at":"2020-01-01T12:00:00Z","exit_code":0}]}'),
    ),
]  # fmt: skip


def test_every_kind_has_golden_bytes():
    assert {type(message) for message, _ in GOLDEN} == set(KINDS.values())


@pytest.mark.parametrize(("message", "data"), GOLDEN, ids=lambda value: KIND_OF.get(type(value), "bytes"))
def test_golden_bytes(message, data):
    assert encode(message) == data
    assert encode(read(KIND_OF[type(message)], data)) == data


# -- what a plain client sends


RECORDED: list[tuple[str, dict[str, Any]]] = [
    ("sentiment", {"sentiment": "bullish", "confidence": 0.78, "sources": ["twitter", "news", "reddit"]}),
    ("signal", {"signal": "buy", "strength": 0.85, "indicators": {"rsi": 65, "macd": "bullish", "trend": "up"}}),
    (
        "signal",
        {
            "signal": "hold",
            "strength": 0.45,
            "indicators": {"bollinger_position": "middle", "volatility": "low", "mean_distance": 0.02},
        },
    ),
    (
        "decision",
        {
            "final_decision": "buy",
            "position_size": 0.25,
            "risk_score": 0.35,
            "consensus_level": 0.72,
            "agents_consulted": ["research-1", "research-2", "strategy-momentum", "strategy-mean-reversion"],
        },
    ),
]


@pytest.mark.parametrize(("kind", "fields"), RECORDED)
def test_the_recorded_examples_are_valid(kind, fields):
    message = read(kind, {**fields, "timestamp": "2020-01-01T12:00:00Z", "source": "plain-client"})
    assert message.symbol == "BTC/USD"  # from the subject
    assert message.round is None
    assert getattr(message, "p_up", None) is None
    for name, value in fields.items():
        assert getattr(message, name) == (tuple(value) if isinstance(value, list) else value)


def test_unknown_fields_are_ignored():
    _, data = GOLDEN[0]
    raw = orjson.loads(data)
    assert read("market", {**raw, "exchange": "x", "nested": {"a": [1]}}) == read("market", data)


@pytest.mark.parametrize(
    "stamp",
    ["2020-01-01T12:00:00Z", "2020-01-01T12:00:00+00:00", "2020-01-01T14:00:00+02:00", "2020-01-01T12:00:00"],
)
def test_timestamps_become_utc(stamp):
    message = read("timer", {"name": "n", "number": 1, "timestamp": stamp, "source": "a"})
    assert message.timestamp == NOON
    assert message.timestamp.utcoffset() == timedelta(0)
    assert T in encode(message)


def test_encode_writes_utc_as_well():
    local = NOON.astimezone(timezone(timedelta(hours=2)))
    assert T in encode(Timer(name="n", number=1, timestamp=local, source="a"))


# -- poison


MARKET: dict[str, Any] = {
    "symbol": "BTC/USD", "price": 1.0, "volume": 1.0, "timestamp": "2020-01-01T12:00:00Z", "source": "feed"
}  # fmt: skip
SIGNAL: dict[str, Any] = {
    "signal": "buy", "strength": 0.5, "indicators": {}, "timestamp": "2020-01-01T12:00:00Z", "source": "s"
}  # fmt: skip
CONFIG: dict[str, Any] = {"voters": {"a": 1.0}, "timestamp": "2020-01-01T12:00:00Z", "source": "up"}


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"not json", b"\xff\xfe", b'{"a": 1,}', b"[]", b"null", b"1", b'"text"', b"[" * 100_000],
    ids=lambda data: data[:12],
)
def test_what_is_no_json_object_is_poison(data):
    for kind in KINDS:
        with pytest.raises(MessageError) as poison:
            read(kind, data)
        assert poison.value.subject == subject_of(kind)


@pytest.mark.parametrize(("message", "data"), GOLDEN, ids=lambda value: KIND_OF.get(type(value), "bytes"))
def test_a_missing_required_field_is_poison(message, data):
    kind = KIND_OF[type(message)]
    required = [
        field.name
        for field in dataclasses.fields(message)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    assert required
    raw = orjson.loads(data)
    for name in required:
        with pytest.raises(MessageError, match=name):
            read(kind, {key: value for key, value in raw.items() if key != name})
        with pytest.raises(MessageError):
            read(kind, {**raw, name: None})


@pytest.mark.parametrize(("message", "data"), GOLDEN, ids=lambda value: KIND_OF.get(type(value), "bytes"))
def test_a_wrong_type_is_poison(message, data):
    raw = orjson.loads(data)
    for name in raw:
        with pytest.raises(MessageError):
            read(KIND_OF[type(message)], {**raw, name: [[{"of": "no type"}]]})


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("market", {"price": "1.0"}),
        ("market", {"price": True}),
        ("market", {"sequence": 1.5}),
        ("market", {"timestamp": "yesterday"}),
        ("market", {"timestamp": 1577880000}),
        ("market", {"timestamp": "0001-01-01T00:00:00+14:00"}),
        ("market", {"timestamp": "2020-02-30T00:00:00Z"}),
        ("market", {"symbol": ""}),
        ("signal", {"signal": "BUY"}),
        ("signal", {"indicators": []}),
        ("sentiment", {"sentiment": "fine"}),
    ],
)
def test_a_wrong_value_is_poison(kind, fields):
    base = MARKET if kind == "market" else SIGNAL
    with pytest.raises(MessageError):
        read(kind, {**base, **fields})


@pytest.mark.parametrize(("message", "data"), GOLDEN, ids=[KIND_OF[type(message)] for message, _ in GOLDEN])
def test_the_error_about_a_long_value_is_short(message, data):
    kind, whole, problems = KIND_OF[type(message)], orjson.loads(data), []
    for name in whole:
        for long in ("x" * 100_000, "'" * 100_000, ["x" * 100_000], {"x" * 100_000: 1}, [1] * 50_000):
            try:
                read(kind, {**whole, name: long})
            except MessageError as error:
                problems.append(str(error))
    assert problems
    assert max(map(len, problems)) < 1200


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" + "0" * 400])
def test_a_number_that_is_not_finite_is_poison(number):
    data = orjson.dumps(MARKET).replace(b'"price":1.0', b'"price":' + number.encode())
    with pytest.raises(MessageError):
        read("market", data)
    data = orjson.dumps(SIGNAL).replace(b"{}", b'{"rsi":' + number.encode() + b"}")
    with pytest.raises(MessageError):
        read("signal", data)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        *(("signal", {name: value}) for name in ("strength", "p_up") for value in (-0.001, 1.001)),
        *(("market", {name: value}) for name in ("price", "open", "high", "low") for value in (0, -1.0, 1e300)),
        *(("market", fields) for fields in ({"volume": -0.5}, {"volume": 1e300}, {"low": 2.0, "high": 1.0})),
        ("config", {"voters": {"a": -1.0}}),
        ("config", {"voters": {"a": 0.0}}),
        ("config", {"quorum": 1.0}),
        ("config", {"quorum": -0.1}),
        ("config", {"sell_at": 0.6}),
        ("config", {"buy_at": 1.1}),
        ("config", {"round_timeout_ms": 0}),
        ("config", {"vol_target": 0.0}),
        ("config", {"drawdown_max": 0.0}),
        ("config", {"cvar_max": 0.0}),
    ],
)
def test_a_number_out_of_range_is_poison(kind, fields):
    base = {"market": MARKET, "signal": SIGNAL, "config": CONFIG}[kind]
    read(kind, base)
    with pytest.raises(MessageError, match="expected"):
        read(kind, {**base, **fields})


@pytest.mark.parametrize(("kind", "index"), [("sentiment", 0), ("decision", 3)])
def test_scores_lie_between_0_and_1(kind, index):
    fields = {**RECORDED[index][1], "timestamp": "2020-01-01T12:00:00Z", "source": "s"}
    for name, value in fields.items():
        if isinstance(value, float):
            for bad in (-0.001, 1.001):
                with pytest.raises(MessageError, match=name):
                    read(kind, {**fields, name: bad})
            for good in (0, 1):
                assert getattr(read(kind, {**fields, name: good}), name) == good


def test_too_many_bytes_are_poison():
    room = MAX_PAYLOAD_BYTES - len(orjson.dumps({**SIGNAL, "pad": ""}))
    assert read("signal", {**SIGNAL, "pad": "x" * room}).strength == 0.5
    with pytest.raises(MessageError, match=f"{MAX_PAYLOAD_BYTES + 1} bytes"):
        read("signal", {**SIGNAL, "pad": "x" * (room + 1)})


@pytest.mark.parametrize(("kind", "fields"), [("market", MARKET), ("signal", SIGNAL)])
def test_a_symbol_of_another_topic_is_poison(kind, fields):
    assert read(kind, {**fields, "symbol": "BTC/USD"}).symbol == "BTC/USD"
    for symbol in ("ETH/USD", "BTC-USD", "btc/usd"):
        with pytest.raises(MessageError, match="does not belong under this subject"):
            read(kind, {**fields, "symbol": symbol})


def test_an_unknown_kind_is_poison():
    with pytest.raises(MessageError, match="unknown kind 'rumour'"):
        read("rumour", MARKET, "swarm.rumour.BTC-USD.writer")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_infinite_number_is_encoded(value):
    with pytest.raises(ValueError, match="finite"):
        encode(Signal(signal="buy", strength=value, indicators={}, timestamp=NOON, source="s"))
    with pytest.raises(ValueError, match="finite"):
        encode(Signal(signal="buy", strength=0.5, indicators={"a": [{"b": value}]}, timestamp=NOON, source="s"))


def test_what_json_has_no_form_for_is_not_encoded():
    with pytest.raises(ValueError, match="not JSON serializable"):
        encode(Signal(signal="buy", strength=0.5, indicators={"a": object()}, timestamp=NOON, source="s"))


# -- round trip


texts = st.text(max_size=20)
names = st.from_regex(r"[A-Za-z0-9]{1,8}", fullmatch=True)
senders = st.tuples(names.filter(lambda name: name not in RESERVED_NAMES), st.sampled_from(["agent", "sandbox"]))
senders |= st.sampled_from([("watchdog", "watchdog"), ("standby", "watchdog"), ("mirror", "mirror")])
whole = st.integers(0, 2**53)
unit = st.floats(0, 1).map(lambda x: round(x, 10))
finite = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 10))
positive = st.floats(1e-6, 1e6).map(lambda x: round(x, 10))
stamps = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
values = st.recursive(
    st.none() | st.booleans() | whole | finite | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
details = st.dictionaries(texts, values, max_size=3)
tuples = st.lists(texts, max_size=3).map(tuple)
maybe = st.none
BTC = st.just("BTC/USD")
stamped: dict[str, Any] = {"timestamp": stamps, "source": texts}
children = st.builds(
    Child,
    agent=names,
    agent_id=names,
    epoch=whole,
    pid=whole,
    spawned_at=stamps,
    exit_code=maybe() | st.integers(-64, 255),
)

MESSAGES: dict[type, st.SearchStrategy[Any]] = {
    MarketData: st.builds(
        MarketData, symbol=BTC, price=positive, volume=positive, sequence=maybe() | whole, open=maybe() | positive,
        high=maybe() | positive, low=maybe() | positive, **stamped,
    ).filter(lambda tick: tick.low is None or tick.high is None or tick.low <= tick.high),
    Headline: st.builds(Headline, text=texts, url=maybe() | texts, symbols=tuples, **stamped),
    Sentiment: st.builds(
        Sentiment, sentiment=st.sampled_from(get_args(SentimentLabel)), confidence=unit, sources=tuples, symbol=BTC,
        round=maybe() | whole, p_up=maybe() | unit, **stamped,
    ),
    Signal: st.builds(
        Signal, signal=st.sampled_from(get_args(Side)), strength=unit, indicators=details, symbol=BTC,
        round=maybe() | whole, p_up=maybe() | unit, **stamped,
    ),
    Decision: st.builds(
        Decision, final_decision=st.sampled_from(get_args(Side)), position_size=unit, risk_score=unit,
        consensus_level=unit, agents_consulted=tuples, decision_id=maybe() | texts, symbol=BTC, round=maybe() | whole,
        absent=tuples, **stamped,
    ),
    Timer: st.builds(Timer, name=texts, number=whole, **stamped),
    Epoch: st.builds(Epoch, agent=names, claim=texts, claimed_by=texts, sandbox=texts, **stamped),
    VotingConfig: st.builds(
        VotingConfig, voters=st.dictionaries(texts, positive, max_size=3), quorum=st.sampled_from([0.0, 0.5, 0.9]),
        buy_at=st.sampled_from([0.5, 1.0]), sell_at=st.sampled_from([0.0, 0.45]), round_timeout_ms=st.integers(1, 9999),
        position_cap=unit, vol_target=positive, drawdown_max=positive, cvar_max=positive,
        deciders=tuples, **stamped,
    ),
    Lifecycle: st.builds(
        Lifecycle, event=st.sampled_from(get_args(LifecycleEvent)), agent=names, epoch=maybe() | whole,
        sandbox=maybe() | texts, pid=maybe() | whole, reason=maybe() | texts, detail=details, **stamped,
    ).map(
        lambda event: dataclasses.replace(
            event,
            agent="swarm" if event.event == "rebuilt" else f"{event.agent}-1",
            source=reporter_of(event.event, f"{event.agent}-1"),
        )
    ),
    Alert: st.builds(
        Alert, severity=st.sampled_from(get_args(Severity)), code=texts, message=texts, agent=maybe() | names,
        detail=details, **stamped,
    ),
    Heartbeat: st.builds(
        lambda sender, **fields: Heartbeat(agent=sender[0], role=sender[1], **fields), senders, agent_id=names,
        epoch=whole, sequence=whole, progress=whole, status=texts,
        interval_ms=whole, sandbox=texts, pid=whole, cursor=whole, lag=whole, outputs=whole, poison=whole,
        provider=maybe() | texts, uptime_s=maybe() | positive,
        inventory=maybe() | st.lists(children, max_size=3).map(tuple),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind):
    @given(MESSAGES[KINDS[kind]])
    def decode_inverts_encode(message):
        data = encode(message)
        assert read(kind, data) == message
        assert encode(read(kind, data)) == data

    decode_inverts_encode()


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=1e-300, max_value=1e300))
def test_prices_keep_twelve_digits_and_ten_places(price):
    message = MarketData(symbol="BTC/USD", price=price, volume=1.0, timestamp=NOON, source="feed")
    sent = orjson.loads(encode(message))["price"]
    assert abs(sent - price) <= 0.5e-10 + math.ulp(price)
    assert abs(sent - price) <= 0.5e-11 * price + math.ulp(price)


@given(st.floats(0, 1))
def test_shares_and_probabilities_are_rounded_to_ten_places(share):
    sent = orjson.loads(encode(Signal(signal="buy", strength=share, indicators={}, timestamp=NOON, source="s")))
    assert sent["strength"] == round(share, 10)


@pytest.mark.parametrize(
    ("name", "fields", "problem"),
    [
        ("acme", {"agent": "coordinator"}, "agent: 'coordinator' is not of this subject, expected 'acme'"),
        ("acme", {"role": "watchdog"}, "role: 'watchdog' is not that of 'acme'"),
        ("mirror", {"role": "provider"}, "role: 'provider' is not that of 'mirror'"),
        ("mirror", {"role": "agent"}, "role: 'agent' is not that of 'mirror'"),
        ("watchdog", {"role": "sandbox"}, "role: 'sandbox' is not that of 'watchdog'"),
        ("acme", {"role": "sandbox", "group": "python"}, "group: 'python' does not begin the name 'acme' of its host"),
        ("python-1", {"role": "sandbox", "group": "python"}, None),
        ("standby", {"role": "watchdog"}, None),
    ],
)
def test_a_heartbeat_names_whom_its_subject_names(name, fields, problem):
    """A server restricts who publishes under a subject, not what a payload says."""
    plain = orjson.loads(encode(heartbeat(agent=name))) | fields
    subject = SUBJECTS.heartbeat(name)
    if problem is None:
        read("heartbeat", plain, subject)
    else:
        with pytest.raises(MessageError, match=re.escape(problem)):
            read("heartbeat", plain, subject)
