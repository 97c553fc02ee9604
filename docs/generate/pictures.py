"""`make pictures`: runs a swarm, kills an agent, and draws the live view, the report of `kill` and the dashboard into
docs/assets.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import tempfile
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console, RenderableType
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from coordinator.config.live_swarm import LiveSwarm
from coordinator.config.loader import load_swarm
from coordinator.config.overrides import Overrides
from coordinator.monitor.live_view import LiveView
from coordinator.runner.child_process import UpOptions
from coordinator.runner.dashboard_link import read_place
from coordinator.runner.launcher import Launcher
from coordinator.runner.preflight import check_agents
from coordinator.runner.up import Up, run_up
from docs.generate.screenshots import take_screenshots
from docs.generate.source import ROOT
from signalmesh import python_command

ASSETS = ROOT / "docs" / "assets"
VICTIM = "strategy-momentum"
WIDTH = 88
LIVE_LINES, KILL_LINES = 44, 14
SHOWN_DECISIONS = 280
"""The first 250 are those of the unpaced candles, most of them hold at 0.5."""
AFTER_KILL_S = 3.0
LATER_DECISIONS = 400
"""By then the first 250 are no longer in the rates of the last minute."""
LONGEST_S = 240.0
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
BACKGROUND, FOREGROUND = (27, 31, 36), (213, 217, 222)
RED, GREEN, YELLOW = (240, 113, 120), (126, 198, 120), (224, 190, 100)
BLUE, MAGENTA, CYAN = (110, 160, 240), (200, 140, 230), (90, 200, 200)
COLOURS = [BACKGROUND, RED, GREEN, YELLOW, BLUE, MAGENTA, CYAN, FOREGROUND]
THEME = TerminalTheme(BACKGROUND, FOREGROUND, COLOURS)


def svg(picture: RenderableType, title: str, label: str, lines: int) -> str:
    """A terminal of `lines` lines that shows `picture`; no font is loaded from anywhere."""
    out = Console(
        record=True, width=WIDTH, height=lines, file=io.StringIO(), force_terminal=True, color_system="truecolor",
        highlight=False, markup=False, emoji=False, _environ={},
    )  # fmt: skip
    out.print(picture)
    shape = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    shape = shape.replace("Fira Code, monospace", FONT)
    shape = shape.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1).replace(
        "<!-- Generated with Rich https://www.textualize.io -->", ""
    )
    text = out.export_svg(title=title, theme=THEME, code_format=shape, unique_id="terminal")
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip()) + "\n"


async def draw(up: Up, stop: asyncio.Event, failures: list[Exception]) -> None:
    """Wait for decisions, kill an agent, draw both pictures, and end the swarm."""
    try:
        async with asyncio.timeout(LONGEST_S):
            await _draw(up)
    except Exception as error:  # noqa: BLE001 - raised by main, when the swarm has ended
        failures.append(error)
    finally:
        stop.set()


async def _draw(up: Up) -> None:
    view = LiveView(up)
    await view.start()
    while view.count < SHOWN_DECISIONS:
        await asyncio.sleep(0.1)
        view.render(WIDTH, LIVE_LINES)
    command = python_command("kill", VICTIM, "--state-dir", str(Path.cwd()))
    kill = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    report, _ = await kill.communicate()
    if kill.returncode != 0:
        raise RuntimeError(f"`signalmesh kill {VICTIM}` ended with {kill.returncode}: {report.decode()}")
    for _ in range(round(AFTER_KILL_S / 0.25)):
        await asyncio.sleep(0.25)
        view.render(WIDTH, LIVE_LINES)
    report_text = Text.assemble((f"$ signalmesh kill {VICTIM}\n", "bold"), report.decode().rstrip())
    pictures = {
        "live-view.svg": svg(view.render(WIDTH, LIVE_LINES), "make up", "The live view of up", LIVE_LINES),
        "kill.svg": svg(report_text, f"signalmesh kill {VICTIM}", "The report of kill", KILL_LINES),
    }
    for name, text in pictures.items():
        (ASSETS / name).write_text(text, "utf-8")
    while view.count < LATER_DECISIONS:
        await asyncio.sleep(0.1)
        view.render(WIDTH, LIVE_LINES)
    place = read_place(Path.cwd())
    assert place is not None
    await take_screenshots(place.url, ASSETS)


def main() -> None:
    """Run the default swarm in a temporary directory, and draw."""
    with tempfile.TemporaryDirectory(prefix="signalmesh-pictures-") as directory:
        os.chdir(directory)  # no swarm.toml here
        options = UpOptions(
            config_file=None, state_dir=Path(directory), port=0, url=None, for_s=LONGEST_S, log_level="warning"
        )
        checked, failures = check_agents(load_swarm(None, Overrides())), list[Exception]()
        asyncio.run(run_up(LiveSwarm(checked), options, Launcher(None), lambda up, stop: draw(up, stop, failures)))
        os.chdir(ROOT)
    for failure in failures:
        raise failure


if __name__ == "__main__":
    main()
