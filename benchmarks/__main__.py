"""`python -m benchmarks [--quick] [--long] [NAME ...]`: prints results; stores those of a whole run and of `peers`."""

from __future__ import annotations

import argparse
import asyncio
import time
from functools import partial
from pathlib import Path

from benchmarks import page, report
from benchmarks.comparing import peers
from benchmarks.dashboard import dashboard
from benchmarks.explaining import explaining
from benchmarks.idle import idle
from benchmarks.machine import load, machine, versions
from benchmarks.mirroring import mirroring
from benchmarks.pipeline import latency, throughput
from benchmarks.publishing import durability, outbox
from benchmarks.recovery import first_decision, kill, roles, stop
from benchmarks.replaying import replaying
from benchmarks.scaling import scale
from benchmarks.snapshotting import snapshotting
from benchmarks.starving import starving
from benchmarks.tracing import tracing

BENCHMARKS = {
    "first-decision": first_decision,
    "latency": latency,
    "throughput": throughput,
    "kill": kill,
    "stop": stop,
    "roles": roles,
    "idle": idle,
    "outbox": outbox,
    "durability": durability,
    "replay": replaying,
    "explain": explaining,
    "mirror": mirroring,
    "dashboard": dashboard,
    "snapshots": snapshotting,
    "starved": starving,
    "scale": scale,
    "tracing": tracing,
}
ALONE = {"peers": peers}
"""Run only by name: it needs environments that `make bench-peers` makes."""
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    known = {**BENCHMARKS, **ALONE}
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(known)}; default: all but peers")
    parser.add_argument("--quick", action="store_true", help="few repetitions, to check that everything runs")
    parser.add_argument("--long", action="store_true", help="ten minutes instead of one for `starved`")
    parser.add_argument("--output", type=Path, help="where to write; default: results/ for a whole run, else nowhere")
    options = parser.parse_args()
    for name in options.names:
        if name not in known:
            parser.error(f"unknown benchmark {name!r}, expected some of {', '.join(known)}")
    names = options.names or list(BENCHMARKS)
    about, found = machine(), versions()
    for key, value in {**about, **found}.items():
        print(f"{key}: {value}")
    results = []
    for name in names:
        before, started_at = load(), time.monotonic()
        benchmark = partial(starving, long=options.long) if name == "starved" else known[name]
        result = asyncio.run(benchmark(quick=options.quick))
        result.duration_s = round(time.monotonic() - started_at, 1)
        result.notes.append(f"Load average before {before}, after {load()}; took {result.duration_s:.0f} s.")
        results.append(result)
        print(f"\n{result.markdown()}", flush=True)
    stem = "peers" if names == ["peers"] else "latest"
    whole = not options.quick and (stem == "peers" or not options.names)
    if (directory := options.output or (RESULTS if whole else None)) is not None:
        written = report.write(directory, about, found, results, stem)
        if directory == RESULTS and whole:
            written += page.write(RESULTS)
        for path in written:
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
