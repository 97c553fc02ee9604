"""How good or bad a piece of financial news sounds: VADER's rules with a lexicon of our own on top.

VADER (Hutto and Gilbert 2014, ICWSM) is built for social media. Three things fit it to headlines about markets: words
of finance and crypto that it lacks (feeds/data/lexicon.csv), words removed that mean something else there, and a rule
for "to X from Y". This scores one text; weighing several against each other is the business of
agents/builtin/sentiment.py.
"""

from __future__ import annotations

import re
from pathlib import Path

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from agents.feeds.csv_reader import open_table

LEXICON = "lexicon.csv"
MAX_VALENCE = 4.0
"""VADER's scale: valences lie in [-4, 4]."""
MISLEADING = (
    "alert", "asset", "assets", "authority", "block", "blocks", "challenge", "credit", "credits", "crude", "demand",
    "energy", "gross", "hard", "interest", "interested", "interests", "justice", "natural", "novel", "securities",
    "security", "share", "shared", "shares", "strike", "strikes", "treasury", "trust", "trusts", "united", "value",
    "values",
)  # fmt: skip
"""Words that VADER reads as praise or blame and that mean neither about a market (a block of a chain, a hard fork)."""

_RISE, _FALL = "\N{UPWARDS ARROW}rise", "\N{DOWNWARDS ARROW}fall"
_MOVE_VALENCE = 1.8
"""Valence of two numbers that rose or fell: that of "jumps", as the sentence is about them."""

_NUMBER = (
    r"(?:(?:usd|eur|gbp|jpy|krw|us\$|[$€£¥])\s*)?"
    r"(?P<{0}>\d+(?:,\d{{3}})*(?:\.\d+)?)\s*"
    r"(?P<{0}_unit>%|percent|pct|thousand|k|million|mln|mn|m|billion|bln|bn|b)?(?!\w)"
)
_TO_FROM = re.compile(rf"\bto\s+{_NUMBER.format('new')}[^.;\d]{{0,40}}?\bfrom\s+{_NUMBER.format('old')}", re.IGNORECASE)
_FROM_TO = re.compile(rf"\bfrom\s+{_NUMBER.format('old')}[^.;\d]{{0,40}}?\bto\s+{_NUMBER.format('new')}", re.IGNORECASE)
_UNITS = {"thousand": 1e3, "k": 1e3, "million": 1e6, "mln": 1e6, "mn": 1e6, "m": 1e6, "billion": 1e9, "bln": 1e9}
_UNITS |= {"bn": 1e9, "b": 1e9}
_YEAR = re.compile(r"(19|20)\d\d")
_LESS_IS_MORE = re.compile(
    r"\b(loss|losses|deficit|debt|debts|costs?|expenses|unemployment|fees?|fines?)\b", re.IGNORECASE
)
"""What is good news when it falls."""


def _move(match: re.Match[str]) -> int:
    """1 if the numbers of a "to X from Y" rise, -1 if they fall, 0 if neither (equal, or two years)."""
    new, old = match["new"], match["old"]
    new_unit, old_unit = (match["new_unit"] or "").lower(), (match["old_unit"] or "").lower()
    if not new_unit and not old_unit and _YEAR.fullmatch(new) and _YEAR.fullmatch(old):
        return 0
    if not new_unit or not old_unit:  # "from 8 to 10 million": the one unit is meant for both
        new_unit = old_unit = new_unit or old_unit
    after = float(new.replace(",", "")) * _UNITS.get(new_unit, 1.0)
    before = float(old.replace(",", "")) * _UNITS.get(old_unit, 1.0)
    return (after > before) - (after < before)


def mark_moves(text: str) -> str:
    """`text` with each "to X from Y" and "from Y to X" replaced by a word of ours for a rise or a fall.

    Where the sentence is about a loss, a debt or a cost, the two change places.
    """
    meaning = -1 if _LESS_IS_MORE.search(text) else 1

    def word(match: re.Match[str]) -> str:
        move = _move(match) * meaning
        return match[0] if not move else _RISE if move > 0 else _FALL

    return _FROM_TO.sub(word, _TO_FROM.sub(word, text))


def load_lexicon(path: str | Path = "") -> dict[str, float]:
    """Words with their valences; the project's own where `path` is empty.

    Raises:
        DataError: as `open_table`; or a word with a space or a capital, given twice, or a valence beyond +-4.
    """
    with open_table(path, LEXICON, ("word", "valence"), comments=True) as table:
        words: dict[str, float] = {}
        for line, fields in table.rows:
            word, valence = table.text(line, fields, "word"), table.number(line, fields, "valence")
            if word != word.lower() or len(word.split()) != 1:
                table.fail(line, "word", f"expected one word in lower case, not {word!r}")
            if word in words:
                table.fail(line, "word", f"{word!r} is given twice")
            if abs(valence) > MAX_VALENCE:
                table.fail(line, "valence", f"expected a number from -4 to 4, not {valence}")
            words[word] = valence
    return words


class Scorer:
    """Scores texts. Making one reads VADER's own lexicons from its package (some 10 ms): make it once."""

    def __init__(self, lexicon: str | Path = "") -> None:
        """Read VADER's lexicon and ours (`lexicon`: another file instead of the packaged one).

        Raises:
            DataError: our lexicon is not what it should be.
        """
        self._analyzer = SentimentIntensityAnalyzer()
        words: dict[str, float] = self._analyzer.lexicon
        for word in MISLEADING:
            words.pop(word, None)
        words |= load_lexicon(lexicon)
        words |= {_RISE: _MOVE_VALENCE, _FALL: -_MOVE_VALENCE}

    def score(self, text: str) -> float:
        """How good the news in `text` sounds, from -1 to 1; 0 for a text without a word that is known.

        Case does not count: capitals are names in a headline (ETF, CME), where VADER would hear shouting.
        """
        compound: float = self._analyzer.polarity_scores(mark_moves(text.lower()))["compound"]
        return compound
