"""`python -m benchmarks.flamegraph OUTPUT.svg [--raw DIRECTORY]`: where the agents and the mirror spend their time.

It runs the default swarm at full speed, and samples each of these processes with py-spy. `--raw` draws recordings that
are there already: a file for each process, in py-spy's format `raw`, named after the process.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from benchmarks.idle import processes
from benchmarks.swarm import DECISIONS, Rounds, swarm

WARM = 501
"""The first round after which samples are taken."""
RECORD_S, SAMPLES_PER_S = 10, 200
WIDTH, ROW, LEAST_PX = 1200, 16, 1.5
"""Pixels; a frame that would be narrower is left out, with what it calls."""
CHARACTER_PX = 6.2
COLOURS = {"agents": "#7eb0d5", "bus": "#b2e061", "coordinator": "#fdcce5"}
PROCESS, OTHERS, TEXT, PAPER = "#ffee65", "#d3d9df", "#24292f", "#ffffff"
BEGINNINGS = ("Runner.run (asyncio/runners.py)", "Thread.run (threading.py)")
"""What comes above the last of these is how the process was started, and is left out."""
WAITING = (
    "select (selectors.py)",
    "_worker (concurrent/futures/thread.py)",
    "_connection_worker_thread (aiosqlite/core.py)",
)
"""A stack that ends in one of these waits for work, which py-spy does not see; it is left out."""
FRAME = re.compile(r"(?P<function>.*) \((?P<file>[^()]*?)(:\d+)?\)$")


@dataclass(slots=True)
class Frame:
    """A function below its callers, with the samples in it and in what it calls."""

    name: str
    samples: int = 0
    calls: dict[str, Frame] = field(default_factory=dict)


def read(recordings: Path) -> Frame:
    """The frames of all processes, each below a frame with the name of its process; lines of one function are added."""
    root = Frame("all")
    for path in sorted(recordings.glob("*.raw")):
        process = path.stem.replace("_", " ")
        for line in path.read_text().splitlines():
            stack, _, count = line.rpartition(" ")
            names = [re.sub(r":\d+\)$", ")", called) for called in stack.split(";")]
            if names[-1].endswith(WAITING):
                continue
            begin = max((n for n, name in enumerate(names) if name in BEGINNINGS), default=-1) + 1
            frame = root
            frame.samples += int(count)
            for name in (process, *names[begin:]):
                frame = frame.calls.setdefault(name, Frame(name))
                frame.samples += int(count)
    return root


def svg(root: Frame) -> str:
    """The flame graph of `root`, callers above what they call; each frame has its share as a tooltip."""
    parts: list[str] = []
    deepest = _draw(parts, root, 0.0, WIDTH, 0, root.samples)
    height = (deepest + 1) * ROW + 8
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Flame graph" '
        f'font-family="\'DejaVu Sans Mono\', monospace" font-size="10" fill="{TEXT}">'
    )
    return "\n".join([head, f'<rect width="{WIDTH}" height="{height}" fill="{PAPER}"/>', *parts, "</svg>\n"])


def _draw(parts: list[str], frame: Frame, left: float, width: float, depth: int, total: int) -> int:
    top, share = depth * ROW, frame.samples / total
    label = escape(frame.name[: max(0, int((width - 4) / CHARACTER_PX))])
    parts.append(
        f'<g><title>{escape(frame.name)}: {share:.1%}</title><rect x="{left:.1f}" y="{top}" width="{width:.1f}" '
        f'height="{ROW - 1}" fill="{_colour(frame.name, depth)}"/>'
        f'<text x="{left + 2:.1f}" y="{top + 11}">{label if len(label) > 2 else ""}</text></g>'
    )
    deepest = depth
    for called in sorted(frame.calls.values(), key=lambda each: -each.samples):
        part = width * called.samples / frame.samples
        if part >= LEAST_PX:
            deepest = max(deepest, _draw(parts, called, left, part, depth + 1, total))
        left += part
    return deepest


def _colour(name: str, depth: int) -> str:
    if depth <= 1:
        return PROCESS
    found = FRAME.match(name)
    return COLOURS.get(found["file"].split("/")[0], OTHERS) if found else OTHERS


async def record(directory: Path) -> None:
    """Sample the agents and the mirror of a swarm at full speed into `directory`."""
    async with swarm(0) as running:
        rounds = Rounds(WARM, sys.maxsize)
        await running.client.subscribe(DECISIONS, cb=rounds.on_decision)
        async with asyncio.timeout(60):
            await rounds.started.wait()
        await running.client.close()
        recorders = []
        for role, process in (await processes(running)).items():
            if role == "mirror" or role.startswith("agent "):
                command = ["py-spy", "record", "-f", "raw", "-d", str(RECORD_S), "-r", str(SAMPLES_PER_S)]
                command += ["-o", str(directory / f"{role.replace(' ', '_')}.raw"), "-p", str(process.pid)]
                command[0] = str(Path(sys.executable).with_name("py-spy"))
                quiet = asyncio.subprocess.DEVNULL
                recorders.append(await asyncio.create_subprocess_exec(*command, stdout=quiet, stderr=subprocess.PIPE))
        for recorder in recorders:
            _, error = await recorder.communicate()
            if recorder.returncode:
                raise RuntimeError(f"py-spy: {error.decode().strip()}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flamegraph", description=__doc__)
    parser.add_argument("output", type=Path, metavar="OUTPUT.svg")
    parser.add_argument("--raw", type=Path, metavar="DIRECTORY", help="draw these recordings")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="signalmesh-flame-") as scratch:
        if options.raw is None:
            asyncio.run(record(Path(scratch)))
        options.output.write_text(svg(read(options.raw or Path(scratch))))


if __name__ == "__main__":
    main()
