"""The plot of the peers: an SVG of bars, one panel for each value, drawn from the rows of the benchmark `peers`."""

from __future__ import annotations

from html import escape
from typing import Any

from benchmarks.report import format_number

PANELS = (
    ("p50, ms", "Tick to decision, p50 in ms (line: p99); shorter is better"),
    ("decisions/s", "Decisions a second, at most 256 undecided rounds; longer is better"),
    ("start, s", "Start to first decision, s; shorter is better"),
    ("SIGKILL to vote p50, ms", "SIGKILL of a voter to its next vote, p50 in ms; shorter is better"),
)
WHISKER = {"p50, ms": "p99, ms"}
"""Value of a bar -> the value that a line at it ends at."""
LEFT, BAR_WIDTH, RIGHT, BAR, GAP, HEAD = 190, 420, 150, 18, 8, 44
OURS, OTHERS, TEXT, PAPER = "#3f51b5", "#9aa5b1", "#24292f", "#ffffff"
FONT = "system-ui, 'DejaVu Sans', sans-serif"


def svg(rows: list[dict[str, Any]]) -> str:
    """The plot of `rows`. Text takes the place of a bar that has no value; the first row is the swarm's."""
    measured = [row for row in rows if "p50, ms" in row]
    height = HEAD + len(measured) * (BAR + GAP)
    parts: list[str] = []
    for index, (name, title) in enumerate(PANELS):
        parts += _panel(measured, name, title, index * height)
    width, total = LEFT + BAR_WIDTH + RIGHT, len(PANELS) * height + GAP
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" role="img" '
        f'aria-label="signalmesh beside other software" font-family="{FONT}" font-size="13" fill="{TEXT}">'
    )
    return "\n".join([head, f'<rect width="{width}" height="{total}" fill="{PAPER}"/>', *parts, "</svg>\n"])


def _panel(rows: list[dict[str, Any]], name: str, title: str, top: int) -> list[str]:
    line = WHISKER.get(name, name)
    most = max((row[key] for row in rows for key in (name, line) if row[key] is not None), default=1.0) or 1.0
    parts = [f'<text x="8" y="{top + 26}" font-weight="600">{escape(title)}</text>']
    for index, row in enumerate(rows):
        y = top + HEAD - 6 + index * (BAR + GAP)
        middle = y + BAR - 5
        parts.append(f'<text x="{LEFT - 8}" y="{middle}" text-anchor="end">{escape(row["system"])}</text>')
        if row[name] is None:
            parts.append(f'<text x="{LEFT}" y="{middle}">{_absent(row, name)}</text>')
            continue
        end = LEFT + BAR_WIDTH * row[name] / most
        colour = OTHERS if index else OURS
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{end - LEFT:.1f}" height="{BAR}" fill="{colour}"/>')
        label = format_number(row[name])
        if line != name:
            far = LEFT + BAR_WIDTH * row[line] / most
            parts.append(
                f'<path d="M{end:.1f} {y + BAR / 2}H{far:.1f}M{far:.1f} {y + 4}v{BAR - 8}" '
                f'stroke="{TEXT}" fill="none"/>'
            )
            end, label = max(end, far), f"{label} (p99 {format_number(row[line])})"
        parts.append(f'<text x="{end + 6:.1f}" y="{middle}">{label}</text>')
    return parts


def _absent(row: dict[str, Any], name: str) -> str:
    """Why `row` has no value for `name`."""
    return "no vote again" if name.startswith("SIGKILL") and row["p50, ms"] is not None else "not measured"
