"""The reader of headlines, and what the packaged file promises in its first lines."""

from __future__ import annotations

from datetime import UTC, datetime, time
from importlib import resources

import pytest

from agents.feeds.headlines import RECORDED, load_headlines
from bus.errors import DataError

HEADER = "date,symbols,text"


def write(tmp_path, *lines):
    path = tmp_path / "news.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_packaged_headlines():
    headlines = load_headlines()
    assert len(headlines) >= 120
    assert all(headline.source == RECORDED and "BTC/USD" in headline.symbols for headline in headlines)
    assert all(headline.timestamp.time() == time() and headline.timestamp.tzinfo is UTC for headline in headlines)
    assert all(10 <= len(headline.text) <= 120 for headline in headlines)
    assert max(headline.timestamp for headline in headlines) <= datetime(2019, 10, 18, tzinfo=UTC)


def test_packaged_file_documents_itself():
    text = resources.files("agents.feeds").joinpath("data/headlines.csv").read_text()
    comment = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    for promise in (
        "Written by this project",
        "well-known public events",
        "hindsight",
        "midnight (UTC) after its date",
    ):
        assert promise in comment


@pytest.mark.parametrize(
    ("day", "word"),
    [
        (datetime(2017, 8, 1, tzinfo=UTC), "Bitcoin Cash"),
        (datetime(2017, 9, 4, tzinfo=UTC), "China"),
        (datetime(2017, 12, 17, tzinfo=UTC), "CME"),
        (datetime(2018, 1, 26, tzinfo=UTC), "Coincheck"),
        (datetime(2019, 5, 7, tzinfo=UTC), "Binance"),
        (datetime(2019, 6, 18, tzinfo=UTC), "Libra"),
        (datetime(2019, 9, 23, tzinfo=UTC), "Bakkt"),
    ],
)
def test_each_counts_from_the_midnight_after_its_date(day, word):
    known = [headline.timestamp for headline in load_headlines() if word in headline.text]
    assert day.replace(day=day.day + 1) in known


def test_end_of_a_month_symbols_and_source(tmp_path):
    path = write(tmp_path, "# about us", "# more", HEADER, '2019-12-31,BTC/USD; ETH/USD,"One, two"')
    (headline,) = load_headlines(path)
    assert headline.timestamp == datetime(2020, 1, 1, tzinfo=UTC)
    assert headline.symbols == ("BTC/USD", "ETH/USD")
    assert (headline.text, headline.source) == ("One, two", "news.csv")


@pytest.mark.parametrize(
    ("lines", "line", "column", "problem"),
    [
        (["# only this"], None, None, "empty"),
        (["# c", "date,text", "2019-01-01,x"], 2, "symbols", "missing from the header"),
        (["# c", HEADER], 3, None, "empty"),
        (["# c", HEADER, "2019-01-01,A,x", "2019-01-01,A,"], 4, "text", "missing value"),
        ([HEADER, "2019-01-01,,x"], 2, "symbols", "missing value"),
        ([HEADER, "2019-01-01,A;,x"], 2, "symbols", "different symbols"),
        ([HEADER, "2019-01-01,A;A,x"], 2, "symbols", "different symbols"),
        ([HEADER, "01.02.2019,A,x"], 2, "date", "expected a date"),
        ([HEADER, "2019-02-30,A,x"], 2, "date", "expected a date"),
        ([HEADER, "20190201,A,x"], 2, "date", "expected a date"),
        ([HEADER, "9999-12-31,A,x"], 2, "date", "expected a date"),
        ([HEADER, "2019-01-02,A,x", "2019-01-01,A,y"], 3, "date", "older"),
        ([HEADER, "2019-01-02,A,x", "2019-01-02,B,x"], 3, "text", "twice"),
        ([HEADER, "2019-01-02,A,x, y"], 2, "4", "expected 3 values"),
    ],
)
def test_mistakes_name_file_line_and_column(tmp_path, lines, line, column, problem):
    path = write(tmp_path, *lines)
    with pytest.raises(DataError, match=problem) as caught:
        load_headlines(path)
    assert (caught.value.file, caught.value.line, caught.value.column) == (str(path), line, column)
