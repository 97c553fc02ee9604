"""The grammar of subjects: reversible, without collisions, and strict about names."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from bus.errors import MessageError, UsageError
from bus.messages.subjects import RESERVED_NAMES, Address, Subjects, check_name, escape_topic, unescape_topic

topics = st.text(min_size=1)
TOKEN = re.compile(r"[A-Za-z0-9_=-]+")


@given(topics)
@example("BTC/USD")
@example("BTC-USD")
@example("=2F")
@example("\u00e9.*> \n")
def test_escaping_is_reversible_and_gives_one_token(topic):
    token = escape_topic(topic)
    assert TOKEN.fullmatch(token)
    assert unescape_topic(token) == topic


@given(topics, topics)
@example("a/b", "a-b")
@example("a/b", "a=2Fb")
@example("a", "A")
def test_two_topics_never_share_a_token(one, other):
    assume(one != other)
    assert escape_topic(one) != escape_topic(other)


@pytest.mark.parametrize(
    ("topic", "token"),
    [
        ("BTC/USD", "BTC-USD"),
        ("BTC-USD", "BTC=2DUSD"),
        ("a.b", "a=2Eb"),
        ("S&P 500", "S=26P=20500"),
        ("\u20ac", "=E2=82=AC"),
    ],
)
def test_tokens(topic, token):
    assert escape_topic(topic) == token


@pytest.mark.parametrize(
    "token", ["=2F", "=41", "=2d", "a=", "a=2", "=ZZ", "=FF", "a b", "a*", "\u00e9", "\u20ac", "=+1", "= 1", "a=2Fb"]
)
def test_tokens_that_no_topic_escapes_to_are_refused(token):
    with pytest.raises(ValueError, match=r".") as refused:
        unescape_topic(token)
    assert not isinstance(refused.value, UsageError)
    with pytest.raises(MessageError, match="topic"):
        Subjects("swarm").parse(f"swarm.market.{token}.feed")


@given(st.text(alphabet="ABab=-_2F0.C3A9", min_size=1, max_size=8))
def test_a_token_is_refused_or_its_topic_escapes_to_it(token):
    try:
        topic = unescape_topic(token)
    except ValueError:
        return
    assert escape_topic(topic) == token


def test_an_empty_topic_is_refused():
    with pytest.raises(UsageError, match="at least one character"):
        escape_topic("")


@pytest.mark.parametrize("name", ["a", "research-1", "strategy_momentum", "A1", "x" * 64])
def test_names(name):
    assert check_name(name, "agent") == name


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", "_a", "a.b", "a b", "a*", ">", "\u00e9", "x" * 65, "a\n", "a/b", "$SRV", "a=b"]
)
@pytest.mark.parametrize("what", ["agent", "sandbox", "swarm"])
def test_names_that_no_subject_can_carry(name, what):
    with pytest.raises(UsageError, match="expected 1 to 64 letters"):
        check_name(name, what)


@pytest.mark.parametrize("name", sorted(RESERVED_NAMES))
def test_reserved_names(name):
    for written in (name, name.upper()):
        with pytest.raises(UsageError, match="reserved"):
            check_name(written, "agent")
        with pytest.raises(UsageError, match="reserved"):
            check_name(written, "sandbox")


def test_a_swarm_may_not_be_named_like_the_write_side():
    for name in ("in", "IN"):
        with pytest.raises(UsageError, match="reserved for the write side"):
            Subjects(name)
    assert Subjects("swarm").ns == "swarm"


def test_a_swarm_may_not_be_named_like_the_root_of_the_agent_protocol():
    for name in ("agents", "Agents"):
        with pytest.raises(UsageError, match="reserved for the Synadia Agent Protocol"):
            Subjects(name)


def test_the_subjects_of_a_swarm():
    subjects = Subjects("desk")
    assert subjects.protocol("hb", "feed") == "agents.hb.signalmesh.desk.feed"
    assert subjects.event("market", "BTC/USD", "feed") == "desk.market.BTC-USD.feed"
    assert subjects.write("desk.market.BTC-USD.feed") == "in.desk.market.BTC-USD.feed"
    assert subjects.epoch("feed") == "desk.epoch.feed"
    assert subjects.config("up") == "desk.config.swarm.up"
    assert subjects.lifecycle("feed", "base") == "desk.lifecycle.feed.base"
    assert subjects.alert("warning", "watchdog") == "desk.alert.warning.watchdog"
    assert subjects.heartbeat("feed") == "desk.heartbeat.feed"
    assert subjects.control("base", "spawn") == "desk.control.base.spawn"
    assert subjects.all_of("market") == "desk.market.>"
    assert subjects.memory_key("feed", "market_data") == "desk/feed/market_data"
    assert (subjects.stream, subjects.write_prefix) == ("desk_events", "in.desk.")
    assert [subjects.state_bucket, subjects.memory_bucket, subjects.registry_bucket] == [
        "desk_state",
        "desk_memory",
        "desk_agents",
    ]


def test_parse():
    subjects = Subjects("swarm")
    assert subjects.parse("swarm.market.BTC-USD.feed") == Address("swarm", "market", "BTC/USD", "feed")
    assert subjects.parse("swarm.epoch.feed") == Address("swarm", "epoch", None, "feed")
    assert subjects.parse("swarm.heartbeat.feed") == Address("swarm", "heartbeat", None, "feed")
    assert subjects.parse("swarm.config.swarm.up") == Address("swarm", "config", "swarm", "up")
    assert subjects.parse("swarm.lifecycle.research-1.base") == Address("swarm", "lifecycle", "research-1", "base")
    assert subjects.parse("swarm.alert.info.up") == Address("swarm", "alert", "info", "up")
    assert subjects.parse("swarm.control.base.probe") == Address("swarm", "control", "base", "probe")


@given(st.sampled_from(["market", "headline", "sentiment", "signal", "decision", "timer"]), topics)
def test_parse_inverts_event(kind, topic):
    subjects = Subjects("swarm")
    assert subjects.parse(subjects.event(kind, topic, "feed")) == Address("swarm", kind, topic, "feed")


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "swarm",
        "swarm.market",
        "swarm.market.A",
        "swarm.market.A.feed.more",
        "swarm.epoch.feed.more.still",
        "other.market.A.feed",
        "in.swarm.market.A.feed",
        "swarm.market.a=.feed",
    ],
)
def test_what_is_not_of_the_grammar_is_refused(subject):
    with pytest.raises(MessageError) as refused:
        Subjects("swarm").parse(subject)
    assert refused.value.subject == subject


def test_an_empty_token_is_a_poison_subject():
    with pytest.raises(MessageError):
        Subjects("swarm").parse("swarm.market..feed")


def test_an_agents_name_is_not_taken_for_a_topic():
    subjects = Subjects("swarm")
    subjects.parse("swarm.lifecycle.BTC-USD.base")
    assert subjects.parse("swarm.market.BTC-USD.feed").topic == "BTC/USD"


@pytest.mark.parametrize(
    ("subject", "name"),
    [
        ("desk.control.base.spawn", "base"),
        ("desk.control.base", ""),
        ("desk.control.base.", ""),
        ("other.control.base.spawn", ""),
        ("desk.heartbeat.base", ""),
        ("$JS.ACK.desk_events.x", ""),
    ],
)
def test_the_process_that_answers_is_in_the_subject_of_a_request(subject: str, name: str):
    assert Subjects("desk").controlled(subject) == name


@pytest.mark.parametrize(
    ("subject", "hidden"),
    [
        ("swarm.signal.BTC-USD.a", False),
        ("swarm.epoch.a", False),
        ("swarm.signal.=ZZ.a", False),  # its readers report it
        ("_R_.in.swarm.signal.*.a", True),
        ("swarm.signal.\x7f1.a", True),
        ("swarming.signal.X.a", True),
    ],
)
def test_what_no_filter_finds_is_known_by_its_subject(subject: str, hidden: bool):
    assert Subjects("swarm").is_hidden(subject) is hidden
