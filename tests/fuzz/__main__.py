"""`python -m tests.fuzz`: every parser of foreign bytes, by coverage, for some seconds each.

The results are in build/fuzz/results.md, and inputs that failed beside it. Ends with 1 if a target failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "build" / "fuzz"
GRACE_S = 120.0
"""For the imports, which are instrumented, and for the end of an input that hangs."""
STATISTIC = re.compile(rb"stat::(\w+):\s+(\d+)")


@dataclass(frozen=True)
class Result:
    """The run of one target: how many inputs it took, its largest memory in MiB, and how it failed, if it did."""

    name: str
    inputs: int
    memory_mb: int
    problem: str


def fuzz(name: str, seconds: int) -> Result:
    """Run a target in a process of its own, from its seeds and from what earlier runs have found."""
    corpus = RESULTS / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name].seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    command = [sys.executable, "-m", "tests.fuzz.worker", name, str(corpus), str(seconds)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=seconds + GRACE_S, check=False)
    except subprocess.TimeoutExpired:
        return Result(name, 0, 0, "it did not end")
    statistics = {key.decode(): int(value) for key, value in STATISTIC.findall(done.stderr)}
    problem = ""
    if done.returncode:
        (RESULTS / f"{name}.log").write_bytes(done.stdout + done.stderr)
        problem = f"exit code {done.returncode}; see build/fuzz/{name}.log, and the input in build/fuzz/corpus/{name}.*"
    return Result(name, statistics.get("number_of_executed_units", 0), statistics.get("peak_rss_mb", 0), problem)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("targets", nargs="*", help=f"some of: {', '.join(TARGETS)}; default: all")
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - TARGETS.keys():
        parser.error(f"unknown target {min(unknown)!r}; expected some of {', '.join(TARGETS)}")
    if importlib.util.find_spec("atheris") is None:
        print("nothing was fuzzed: atheris is not installed; it has packages for Linux and some Pythons only")
        return 0
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    results: list[Result] = []
    for name in arguments.targets or TARGETS:
        results.append(fuzz(name, arguments.seconds))
        last = results[-1]
        print(f"{name}: {last.inputs} inputs, {last.memory_mb} MiB; {last.problem or 'passed'}", flush=True)
    rows = [f"| {one.name} | {one.inputs} | {one.memory_mb} | {one.problem or 'passed'} |" for one in results]
    lines = [f"{arguments.seconds} seconds each.", "", "| target | inputs | MiB | result |", "|---|---|---|---|", *rows]
    (RESULTS / "results.md").write_text("\n".join(lines) + "\n")
    return int(any(one.problem for one in results))


if __name__ == "__main__":
    sys.exit(main())
