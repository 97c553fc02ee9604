"""Prints an audit: a table of the agents, and the problems."""

from __future__ import annotations

from rich.text import Text

from bus.utils.terminal import escape_control
from coordinator.audit.models import Audit
from coordinator.reporting.formatting import counted
from coordinator.reporting.tables import Column, console, print_table

COLUMNS = (
    Column("agent"), Column("outputs", right=True), Column("gaps", right=True), Column("duplicated", right=True),
    Column("claims", 2, right=True), Column("skipped", 4, right=True), Column("snapshot", 1),
    Column("cursor", 3, right=True),
)  # fmt: skip
MAX_ROWS = 20
"""Problems and poison messages that are printed; --json has more."""


def print_audit(audit: Audit) -> None:
    """Print the whole audit."""
    out, stream = console(), audit.stream
    out.print(
        f"swarm {audit.swarm}, {stream.source}: {counted(stream.messages, 'message')}, sequences {stream.first:,} to "
        f"{stream.last:,}, in {audit.duration_s:.1f} s\n"
    )
    rows: list[list[str | Text]] = []
    for name, agent in audit.agents.items():
        snapshot = audit.snapshots.get(name)
        rows.append([
            name, f"{agent.outputs:,}", _count(agent.gaps), _count(agent.duplicated), str(agent.claims),
            str(agent.skipped), "" if snapshot is None else _verdict(snapshot.ok),
            "" if snapshot is None else f"{snapshot.cursor:,}",
        ])  # fmt: skip
    print_table(out, COLUMNS, rows)
    rounds, mirror = audit.rounds, audit.mirror
    out.print(
        f"\nrounds: {rounds.decided:,} decided, {rounds.missing} missing, {rounds.duplicated} duplicated, "
        f"{rounds.waiting} waiting"
    )
    if mirror.file is not None:
        out.print(
            f"mirror: {counted(mirror.compared, 'message')} compared up to {mirror.cursor:,}, "
            f"{mirror.missing} missing, {mirror.differing} differing, {mirror.damaged} damaged"
        )
    if audit.poison_total:
        out.print(f"poison: {counted(audit.poison_total, 'message')} that no agent can decode; all skip them")
        for poison in audit.poison[:MAX_ROWS]:
            out.print(escape_control(f"  {poison.sequence} {poison.subject}: {poison.problem}"))
    for note in audit.notes:
        out.print(escape_control(f"note: {note}"))
    if audit.ok:
        what = "all checks that ran passed" if audit.notes else "all checks passed"
        out.print(Text(f"\n{what}: nothing lost, nothing duplicated, nothing out of order", "green"))
        return
    out.print(Text(f"\n{counted(audit.problems_total, 'problem')}:", "red"))
    for problem in audit.problems[:MAX_ROWS]:
        out.print(escape_control(f"  {problem.check}: {problem.text}"))
    if audit.problems_total > MAX_ROWS:
        out.print(f"  … and {audit.problems_total - MAX_ROWS:,} more: --json has the first {len(audit.problems):,}")


def _count(count: int) -> Text:
    return Text(f"{count:,}", "red" if count else "")


def _verdict(ok: bool) -> Text:
    return Text("ok", "green") if ok else Text("WRONG", "red")
