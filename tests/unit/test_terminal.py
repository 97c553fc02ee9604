"""What was received is shown, not obeyed: no text of a message may move the cursor or pass for markup."""

from __future__ import annotations

import io
import json

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from coordinator.tables import Column, fitted, harmless


def test_controls_are_written_out():
    assert harmless("a\x1b[2Jb\x9bc\rd\u202ee\nf") == "a\\u001b[2Jb\\u009bc\\u000dd\\u202ee\\u000af"
    assert harmless("two\nlines", keep="\n") == "two\nlines"


@given(st.text())
def test_nothing_else_changes_and_json_says_the_same(text):
    line = json.dumps(text, ensure_ascii=False)
    assert json.loads(harmless(line)) == text
    shown = harmless(text)
    assert not any(character < " " or "\x7f" <= character <= "\x9f" for character in shown)
    assert harmless(shown) == shown


def test_a_cell_is_no_markup():
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, color_system="truecolor")
    console.print(fitted((Column("agent"),), [["[red]x[/red]\x1b[31m"]], 80))
    assert "[red]x[/red]\\u001b[31m" in out.getvalue()
    assert "\x1b[31m" not in out.getvalue()
