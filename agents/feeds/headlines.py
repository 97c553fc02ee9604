"""Recorded headlines: a strict reader of the packaged file, or of one in the same form.

It owns when a headline could be known, and nothing else: agents/builtin/sentiment.py decides which symbol needs it
at which time.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

from agents.feeds.csv_reader import open_table
from bus.messages import Headline

COLUMNS = ("date", "symbols", "text")
"""Columns that a file of headlines must have, in any order; others are ignored."""
RECORDING = "headlines.csv"
"""The packaged file; its first lines describe it, and warn of its hindsight."""
RECORDED = "recorded-headlines"
"""Source of the packaged headlines. Those of another file have its name for their source."""

MAX_BYTES = 64 << 20
"""Largest file, unpacked: its headlines are in memory as a whole."""

_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_LAST_DATE = date.max - timedelta(days=1)


def source_name(path: str | Path = "") -> str:
    """The `source` of the headlines read from `path`."""
    return Path(path).name if str(path) else RECORDED


def load_headlines(path: str | Path = "") -> tuple[Headline, ...]:
    """The headlines of a CSV or CSV.gz file, oldest first; the packaged ones where `path` is empty.

    The file gives days, not hours. So that none is known too early, each is dated to the midnight (UTC) after its day.

    Raises:
        DataError: as `open_table`; or a missing value, a date that is not YYYY-MM-DD or older than the one before it,
            a symbol that is empty or given twice, a text that the same day has twice.
    """
    with open_table(path, RECORDING, COLUMNS, comments=True, max_bytes=MAX_BYTES) as table:
        source = source_name(path)
        headlines: list[Headline] = []
        seen: set[tuple[date, str]] = set()
        before: date | None = None
        for line, fields in table.rows:
            written = table.text(line, fields, "date")
            try:
                day = date.fromisoformat(written) if _DATE.fullmatch(written) else None
            except ValueError:
                day = None
            if day is None or day > _LAST_DATE:
                table.fail(line, "date", f"expected a date like 2017-08-01, not {written!r}")
            if before is not None and day < before:
                table.fail(line, "date", f"{written} is older than the one before it, expected the oldest first")
            before = day
            symbols = tuple(symbol.strip() for symbol in table.text(line, fields, "symbols").split(";"))
            if not all(symbols) or len(set(symbols)) < len(symbols):
                table.fail(
                    line, "symbols", f"expected different symbols with ';' between them, not {';'.join(symbols)!r}"
                )
            text = table.text(line, fields, "text")
            if (day, text) in seen:
                table.fail(line, "text", f"{text!r} is given twice for {written}")
            seen.add((day, text))
            known = datetime.combine(day + timedelta(days=1), time(), tzinfo=UTC)
            headlines.append(Headline(text=text, timestamp=known, source=source, symbols=symbols))
    return tuple(headlines)
