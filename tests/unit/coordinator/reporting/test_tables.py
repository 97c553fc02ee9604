"""Tables and printed lines: no text in them is markup."""

from __future__ import annotations

import io

from rich.console import Console

from coordinator.reporting.tables import Column, console, fitted


def test_a_cell_is_no_markup():
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, color_system="truecolor")
    console.print(fitted((Column("agent"),), [["[red]x[/red]\x1b[31m"]], 80))
    assert "[red]x[/red]\\u001b[31m" in out.getvalue()
    assert "\x1b[31m" not in out.getvalue()


def test_what_is_printed_is_no_markup(capsys):
    console().print("[red]x[/red] :smile: [/nothing]")
    assert capsys.readouterr().out == "[red]x[/red] :smile: [/nothing]\n"
