"""`python -m benchmarks.peers.environments`: an environment for each peer in build/peers, from its lock file.

A peer that cannot be installed does not end it. The reason is kept beside the environment; the benchmark reports it.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import orjson

ROOT = Path(__file__).resolve().parents[2]
DIRECTORY = ROOT / "build" / "peers"
LOCKS = Path(__file__).parent
NAMES = ("nats-py", "faststream", "autogen-core", "ray")
INSTALLED, FAILED = ".installed", "failed.txt"
LONGEST_REASON = 300
"""Characters."""


def lock_of(name: str) -> Path:
    return LOCKS / f"{name}.lock"


def python_of(name: str, directory: Path = DIRECTORY) -> Path:
    """The interpreter of the environment `name`, whether it is there or not."""
    return directory / name / "bin" / "python"


def why_not(name: str, directory: Path = DIRECTORY) -> str | None:
    """Why the peers of environment `name` cannot run; None if they can."""
    if (failed := directory / name / FAILED).exists():
        return f"cannot be installed here: {failed.read_text()}"
    if not (directory / name / INSTALLED).exists():
        return "not installed: run `make bench-peers`"
    return None


def install(name: str, directory: Path = DIRECTORY) -> str | None:
    """Make the environment `name` unless it is that of its lock file already; returns why that failed, if it did."""
    place, lock = directory / name, lock_of(name)
    if not lock.exists():
        return f"{lock.relative_to(ROOT)}: expected the lock file of this peer; run `make lock`"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    if (place / INSTALLED).exists() and (place / INSTALLED).read_text() == digest:
        return None
    shutil.rmtree(place, ignore_errors=True)
    commands = (
        [sys.executable, "-m", "venv", str(place)],
        [str(python_of(name, directory)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         "--require-hashes", "--only-binary", ":all:", "-r", str(lock)],
    )  # fmt: skip
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            place.mkdir(parents=True, exist_ok=True)
            (place / FAILED).write_text(reason_in(done.stderr))
            return why_not(name, directory)
    (place / INSTALLED).write_text(digest)
    return None


def reason_in(output: str) -> str:
    """The errors in what an installer printed, in one line and without addresses."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:] or ["no reason was given"]
    return re.sub(r"https?://\S+|\S*@ file:\S+", "(address)", " ".join(errors))[:LONGEST_REASON]


def versions_in(name: str, distributions: Sequence[str]) -> dict[str, str]:
    """Versions of `distributions` in the environment `name`."""
    program = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    command = [str(python_of(name)), "-c", program, *distributions]
    found: dict[str, str] = orjson.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return found


def main() -> None:
    for name in NAMES:
        print(f"{name}: {install(name) or 'ready'}", flush=True)


if __name__ == "__main__":
    main()
