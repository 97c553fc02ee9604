"""Prints a replay: a table of the agents, and the first difference of each, field by field."""

from __future__ import annotations

from rich.text import Text

from coordinator.replay.models import Difference, Replay, describe_missing
from coordinator.reporting.formatting import counted
from coordinator.reporting.tables import Column, console, print_table

COLUMNS = (
    Column("agent"), Column("kind", 3), Column("inputs", 2, right=True), Column("outputs", right=True),
    Column("same", right=True), Column("waiting", 4, right=True),
)  # fmt: skip
FIELD_COLUMNS = (Column("field"), Column("recorded"), Column("replayed"))


def print_replay(replay: Replay) -> None:
    """Print the whole replay."""
    out = console()
    out.print(
        f"swarm {replay.swarm}, {replay.source}, sequences {replay.first:,} to {replay.last:,}, with {replay.config}\n"
        f"{counted(replay.messages, 'message')}, {counted(replay.inputs, 'input')} handled in "
        f"{replay.duration_s:.1f} s: "
        f"{replay.inputs_per_s:,.0f} per second\n",
        markup=False,
    )
    rows: list[list[str | Text]] = [
        [
            name,
            agent.kind,
            f"{agent.inputs:,}",
            f"{agent.compared:,}",
            Text(f"{max(0, agent.compared - agent.differing):,}", "red" if agent.differing else "green"),
            f"{agent.waiting:,}",
        ]
        for name, agent in replay.agents.items()
    ]
    print_table(out, COLUMNS, rows)
    out.print()
    for name, agent in replay.agents.items():
        if agent.left_out is not None:
            out.print(f"left out: {name}, {agent.left_out}", markup=False)
    for note in replay.notes:
        out.print(f"note: {note}", markup=False)
    for difference in replay.differences:
        _print_difference(difference)
    if missing := describe_missing(replay):
        out.print(Text(missing, "red"))
    if replay.ok:
        out.print(Text(f"identical bytes: {counted(replay.compared, 'output')}", "green"))
    elif replay.differences:
        count = counted(replay.differing, "difference")
        out.print(Text(f"{count} in {counted(replay.compared, 'output')}; the first of each agent is shown", "red"))


def _print_difference(difference: Difference) -> None:
    out = console()
    out.print(Text(difference.text, "red"))
    if difference.fields:
        rows = [[item.field, str(item.recorded), str(item.replayed)] for item in difference.fields]
        print_table(out, FIELD_COLUMNS, rows)
    out.print()
