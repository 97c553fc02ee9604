"""What a person sees of `certify` in the end: the targets, and what went wrong. The report has the rest."""

from __future__ import annotations

from rich.text import Text

from bus.plain import harmless
from coordinator.certify_markdown import target_text, verdict
from coordinator.certify_report import Certificate
from coordinator.tables import Column, console, print_table

COLUMNS = (Column("target"), Column("wanted", right=True), Column("measured", right=True), Column(""), Column("how", 1))


def print_certificate(found: Certificate) -> None:
    """As wide as there is room for."""
    out = console()
    rows: list[list[str | Text]] = []
    for target in found.targets:
        wanted, measured = target_text(target)
        rows.append(
            [
                target.name,
                wanted,
                measured,
                Text("met", "green") if target.ok else Text("MISSED", "bold red"),
                target.how,
            ]
        )
    print_table(out, COLUMNS, rows)
    for problem in found.problems:
        out.print(harmless(f"PROBLEM: {problem}"), soft_wrap=True)
    out.print(Text(f"{verdict(found)}; in {found.took_s:.1f} s", "green" if found.ok else "bold red"), soft_wrap=True)
