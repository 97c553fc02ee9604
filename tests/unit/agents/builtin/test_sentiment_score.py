"""The score of one headline: its words, its numbers, the lexicon."""

from __future__ import annotations

import pytest

from agents.builtin.sentiment_score import MISLEADING, Scorer, load_lexicon, mark_moves
from bus.errors import DataError


@pytest.fixture(scope="module")
def scorer():
    return Scorer()


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("Exchange recovers stolen coins", "Exchange hacked, coins stolen"),
        ("Regulator approves bitcoin ETF", "Regulator rejects bitcoin ETF"),
        ("Analysts upgrade the stock", "Analysts downgrade the stock"),
        ("Quarterly profit beats forecasts", "Quarterly profit misses forecasts"),
        ("Bitcoin soars", "Bitcoin rises"),
        ("Bitcoin rises", "Bitcoin falls"),
        ("Bitcoin falls", "Bitcoin crashes"),
        ("Turnover came to EUR 13.1 mn from EUR 8.7 mn", "Turnover came to EUR 8.7 mn from EUR 13.1 mn"),
        ("Turnover moved from $900k to $1.2 million", "Turnover moved from $1.2 million to $900k"),
        ("Margin at 5%, to 5% from 3%", "Margin at 3%, to 3% from 5%"),
        ("The loss came to 2 million from 8 million", "The loss came to 8 million from 2 million"),
    ],
)
def test_better_news_scores_higher(scorer, better, worse):
    assert scorer.score(better) > scorer.score(worse)


@pytest.mark.parametrize(
    "text", ["", "Share of interest in the security", "Moved to 2018 from 2017", "Still to 5 from 5"]
)
def test_an_empty_text_scores_zero(scorer, text):
    assert scorer.score(text) == 0


def test_capitals_are_names_and_not_shouting(scorer):
    assert scorer.score("China BANS coin offerings") == scorer.score("china bans coin offerings") < 0
    assert -1 <= scorer.score("hack theft fraud crash ban " * 50) < -0.99


@pytest.mark.parametrize(
    ("text", "move"),
    [
        ("to 1,200 from 900", "rise"),
        ("to 1.2 from 1.25", "fall"),
        ("to 8 from 10 million", "fall"),
        ("to $2 bn in March from $900 million", "rise"),
        ("from 8 to 10", "rise"),
        ("costs fell from 10 to 8", "rise"),
        ("from Tokyo to 10 places", None),
        ("to 5. Then from 3", None),
    ],
)
def test_figures_that_moved(text, move):
    marked = mark_moves(text)
    assert ("rise" in marked, "fall" in marked.replace("fell", "")) == (move == "rise", move == "fall")


def test_lexicon_is_ours_and_active(scorer):
    lexicon = load_lexicon()
    assert len(lexicon) >= 110
    assert not set(lexicon) & set(MISLEADING)
    words = scorer._analyzer.lexicon
    assert {word: words[word] for word in lexicon} == lexicon
    assert not set(MISLEADING) & set(words)


def test_every_misleading_word_is_one_that_vader_has():
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    assert set(MISLEADING) <= set(SentimentIntensityAnalyzer().lexicon)


@pytest.mark.parametrize(
    ("lines", "line", "column"),
    [
        (["# c", "word,valence", "up,one"], 3, "valence"),
        (["word,valence", "up,4.5"], 2, "valence"),
        (["word,valence", "Up,1"], 2, "word"),
        (["word,valence", "go up,1"], 2, "word"),
        (["word,valence", "up,1", "up,2"], 3, "word"),
        (["word,valence", "up,"], 2, "valence"),
    ],
)
def test_lexicon_mistakes_name_file_line_and_column(tmp_path, lines, line, column):
    path = tmp_path / "words.csv"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError) as caught:
        load_lexicon(path)
    assert (caught.value.file, caught.value.line, caught.value.column) == (str(path), line, column)
