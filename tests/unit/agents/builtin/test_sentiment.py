"""The voter on news: what it publishes when, and what its sentiment follows from."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import msgspec
import orjson
import pytest

from agents.agent import check_class, published_kinds
from agents.builtin import sentiment as module
from agents.builtin.sentiment import SentimentAgent, label_of, sentiment_score_of
from agents.feeds.candles import load_candles
from agents.feeds.headlines import load_headlines
from bus.errors import UsageError
from bus.messages import Headline, MarketData, Sentiment, encode

DAY = datetime(2020, 1, 10, tzinfo=UTC)


def tick(at, sequence=1, symbol="BTC/USD"):
    return MarketData(symbol=symbol, price=100.0, volume=1.0, timestamp=at, source="research-1", sequence=sequence)


def news(text, at, source="coindesk", symbols=("BTC/USD",)):
    return Headline(text=text, timestamp=at, source=source, symbols=symbols)


def make(tmp_path, *rows, **options):
    """An agent with these recorded headlines, given as date|symbols|text."""
    path = tmp_path / "news.csv"
    path.write_text(
        "date,symbols,text\n" + "\n".join(row.replace("|", ",") for row in rows or ("1999-01-01|X|x",)) + "\n"
    )
    return SentimentAgent("research-2", {"headlines": str(path), **options})


def texts(outputs):
    return [output.text for output in outputs if isinstance(output, Headline)]


def test_mood_is_a_weighted_mean_that_fades():
    assert sentiment_score_of([], 0, 100) == 0
    assert sentiment_score_of([(0, 0.8, "a")], 0, 100) == 0.8
    assert sentiment_score_of([(0, 0.8, "a")], 100, 100) == pytest.approx(0.4)
    assert sentiment_score_of([(0, 0.8, "a"), (0, -0.2, "a")], 0, 100) == pytest.approx(0.3)
    assert sentiment_score_of([(0, 1.0, "a"), (100, -0.5, "b")], 100, 100) == pytest.approx((0.5 * 1.0 - 0.5) / 1.5)
    assert sentiment_score_of([(0, 1.0, "a")] * 99, 0, 100) == pytest.approx(1.0)


@pytest.mark.parametrize("score", [-1.0, -0.4, -0.1, -0.05, 0.0, 0.05, 0.1, 0.6, 1.0])
def test_confidence_is_p_up_by_the_voters_rule(score):
    reading, confidence, p_up = label_of(score)
    assert p_up == pytest.approx(0.5 + score / 4)
    assert p_up == (1 - confidence if reading == "bearish" else confidence)
    assert reading == ("bullish" if score >= 0.1 else "bearish" if score <= -0.1 else "neutral")


def test_class_is_a_valid_agent():
    check_class(SentimentAgent, "here")
    assert published_kinds(SentimentAgent) == ("headline", "sentiment")
    assert SentimentAgent.capabilities == ("sentiment_analysis", "news_monitoring")


def test_golden_round_of_the_recording():
    """The candle of 2018-01-27 00:00, at which the Coincheck hack becomes known, in the bytes that are published."""
    agent = SentimentAgent("research-2")
    at = datetime(2018, 1, 27, tzinfo=UTC)
    assert texts(agent.on_market(tick(at - timedelta(hours=1), 5036)))[-1:] != ["Coincheck"]
    headline, sentiment = agent.on_market(tick(at, 5037))
    assert encode(headline) == (
        b'{"text":"Japanese exchange Coincheck loses more than $500 million of NEM in a hack",'
        b'"timestamp":"2018-01-27T00:00:00Z","source":"recorded-headlines","symbols":["BTC/USD"]}'
    )
    assert isinstance(sentiment, Sentiment)
    assert (sentiment.sentiment, sentiment.round, sentiment.sources) == ("bearish", 5037, ("recorded-headlines",))
    assert sentiment.p_up is not None
    assert 0.25 <= sentiment.p_up < 0.45
    assert sentiment.timestamp == at


def test_no_news_is_neutral_and_names_no_source(tmp_path):
    (sentiment,) = make(tmp_path).on_market(tick(DAY))
    assert encode(sentiment) == (
        b'{"sentiment":"neutral","confidence":0.5,"sources":[],"timestamp":"2020-01-10T00:00:00Z",'
        b'"source":"research-2","symbol":"BTC/USD","round":1,"p_up":0.5}'
    )


def test_recorded_headlines_come_once_in_order_and_never_early(tmp_path):
    agent = make(tmp_path, "2020-01-08|BTC/USD|old", "2020-01-09|BTC/USD|one", "2020-01-09|BTC/USD|two")
    assert texts(agent.on_market(tick(DAY - timedelta(seconds=1)))) == ["old"]
    assert texts(agent.on_market(tick(DAY, 2))) == ["one", "two"]
    assert texts(agent.on_market(tick(DAY, 3))) == []
    assert texts(agent.on_market(tick(DAY - timedelta(days=1), 4))) == []
    assert texts(agent.on_market(tick(DAY + timedelta(days=1), 5))) == []


@pytest.mark.parametrize(("days", "expected"), [(0, ["new"]), (1, ["mid", "new"]), (7, ["old", "mid", "new"])])
def test_first_tick_looks_back_only_so_far(tmp_path, days, expected):
    rows = ["2020-01-01|BTC/USD|never", "2020-01-05|BTC/USD|old", "2020-01-08|BTC/USD|mid", "2020-01-09|BTC/USD|new"]
    agent = make(tmp_path, *rows, lookback_days=days)
    assert texts(agent.on_market(tick(DAY))) == expected
    assert texts(agent.on_market(tick(DAY + timedelta(hours=1), 2))) == []


def test_each_symbol_has_its_own_position_and_mood(tmp_path):
    agent = make(tmp_path, "2020-01-09|BTC/USD;ETH/USD|both surge", "2020-01-09|ETH/USD|ether crashes")
    (first, vote) = agent.on_market(tick(DAY))
    assert (first.symbols, vote.sentiment) == (("BTC/USD",), "bullish")
    *headlines, vote = agent.on_market(tick(DAY, symbol="ETH/USD"))
    assert [headline.symbols for headline in headlines] == [("ETH/USD",)] * 2
    assert vote.symbol == "ETH/USD"
    assert vote.p_up < 0.6


def test_news_of_others_counts_from_its_timestamp_on(tmp_path):
    agent = make(tmp_path)
    assert agent.on_headline(news("Bitcoin surges", DAY + timedelta(seconds=0.5))) is None
    (before,) = agent.on_market(tick(DAY + timedelta(seconds=0.4)))
    (after,) = agent.on_market(tick(DAY + timedelta(hours=1), 2))
    assert (before.sentiment, before.sources) == ("neutral", ())
    assert (after.sentiment, after.sources) == ("bullish", ("coindesk",))


def test_news_of_others_fades_and_is_forgotten(tmp_path):
    agent = make(tmp_path, half_life_hours=2)
    agent.on_headline(news("Bitcoin crashes", DAY))
    tilts = []
    for hours in (0, 2, 4, 20, 21, 22):
        vote = agent.on_market(tick(DAY + timedelta(hours=hours)))[-1]
        tilts.append((0.5 - vote.p_up, bool(vote.sources)))
    assert tilts[0][0] > 0.1
    assert tilts[1][0] == pytest.approx(tilts[0][0] / 2)
    assert tilts[2][0] == pytest.approx(tilts[0][0] / 4)
    assert [read for _, read in tilts] == [True, True, True, True, False, False]
    assert agent.state.window["BTC/USD"] == []


@pytest.mark.parametrize("far", [datetime(9999, 12, 31, tzinfo=UTC), datetime(1, 1, 1, tzinfo=UTC)])
def test_one_candle_of_a_distant_time_changes_no_later_vote(tmp_path, far):
    rows = [f"2020-01-{day:02}|BTC/USD|Bitcoin {'surges' if day % 3 else 'crashes'}" for day in range(5, 20)]

    def votes(*strays):
        agent = make(tmp_path, *rows)
        agent.on_headline(news("Bitcoin crashes", DAY))
        agent.on_market(tick(DAY))
        for at in strays:
            agent.on_market(tick(at))
        return [agent.on_market(tick(DAY + timedelta(hours=hours)))[-1] for hours in range(1, 120)]

    assert votes(far) == votes()
    assert len({vote.p_up for vote in votes()}) > 5


def test_the_order_in_which_news_of_others_arrives_changes_nothing(tmp_path):
    items = [
        news("Bitcoin surges", DAY - timedelta(minutes=minutes), source)
        for minutes in (7, 90, 7, 30)
        for source in "ba"
    ]
    votes = set()
    for order in (items, items[::-1], items[3:] + items[:3]):
        agent = make(tmp_path)
        for item in order:
            agent.on_headline(item)
        votes.add((encode(agent.on_market(tick(DAY))[-1]), orjson.dumps(agent.state)))
    assert len(votes) == 1


def test_news_without_symbols_counts_for_all(tmp_path):
    agent = make(tmp_path)
    agent.on_headline(news("Market rallies", DAY, symbols=()))
    for symbol in ("BTC/USD", "ETH/USD"):
        (vote,) = agent.on_market(tick(DAY, symbol=symbol))
        assert (vote.sentiment, vote.sources) == ("bullish", ("coindesk",))


def test_the_same_recording_by_another_agent_does_not_count_twice(tmp_path):
    agent = make(tmp_path)
    agent.on_headline(news("Bitcoin surges", DAY, source="news.csv"))
    assert agent.on_market(tick(DAY))[0].sources == ()


def test_windows_are_bounded_and_keep_what_is_of_use(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WINDOW_ITEMS", 3)
    monkeypatch.setattr(module, "WINDOW_SYMBOLS", 2)
    agent = make(tmp_path)
    agent.on_market(tick(DAY))
    for minutes in (-3, -2, -1, 60, 90):
        agent.on_headline(news("Bitcoin rises", DAY + timedelta(minutes=minutes)))
    base = int(DAY.timestamp())
    assert [known - base for known, _, _ in agent.state.window["BTC/USD"]] == [-180, -120, -60]
    agent.on_headline(news("Bitcoin rises", DAY))
    assert [known - base for known, _, _ in agent.state.window["BTC/USD"]] == [-120, -60, 0]
    for number in range(9):
        agent.on_headline(news("x", DAY, symbols=(f"S{number}",)))
    assert sorted(agent.state.window) == ["BTC/USD", "S0"]


def story():
    """Candles of half a year, with headlines of others between them."""
    chance = random.Random(7)
    for sequence, candle in enumerate(load_candles()[:4000:4], 1):
        yield tick(candle.timestamp, sequence)
        if chance.random() < 0.3:
            text = chance.choice(["Bitcoin surges", "Exchange hacked", "Regulator approves ETF", "Nothing happens"])
            yield news(text, candle.timestamp + timedelta(minutes=chance.randrange(-600, 600)), chance.choice("ab"))


def run(agent, events):
    for event in events:
        for output in (agent.on_market if isinstance(event, MarketData) else agent.on_headline)(event) or ():
            yield encode(output)


def test_same_events_same_bytes_and_a_restart_changes_nothing():
    events = list(story())
    whole = list(run(SentimentAgent("research-2"), events))
    for cut in (1, 17, 700):
        before = SentimentAgent("research-2")
        head = list(run(before, events[:cut]))
        after = SentimentAgent("research-2")
        after.state = msgspec.convert(orjson.loads(orjson.dumps(before.state)), SentimentAgent.State)
        assert head + list(run(after, events[cut:])) == whole


def test_every_recorded_headline_is_published_once():
    agent = SentimentAgent("research-2")
    published = [output for event in story() if isinstance(event, MarketData) for output in agent.on_market(event)]
    headlines = [output for output in published if isinstance(output, Headline)]
    first, last = load_candles()[0].timestamp, load_candles()[3996].timestamp
    assert headlines == [known for known in load_headlines() if first <= known.timestamp <= last]
    assert {output.sentiment for output in published if isinstance(output, Sentiment)} == {
        "bullish", "bearish", "neutral",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "setting"),
    [({"half_life_hours": 0}, "half_life_hours"), ({"half_life_hours": float("inf")}, "half_life_hours"),
     ({"lookback_days": -1}, "lookback_days")],
)  # fmt: skip
def test_settings_out_of_range_are_named(options, setting):
    with pytest.raises(UsageError, match=f"agent 'research-2': {setting}: expected"):
        SentimentAgent("research-2", options)
