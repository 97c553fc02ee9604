"""Installs signalmesh in a sandbox, for who knows nothing of it yet: run there by the new environment's interpreter.

    python bootstrap.py ANOTHER_PYTHON REQUIREMENTS TOOLS WHEEL

Standard library only. uv does it in a tenth of pip's time on a processor; pip brings it, and does it all where uv
cannot be had or fails, or where pip was told something that uv would not know. Every file is checked against its hash,
also what builds the one wheel that is not shipped as one. What was done is printed as JSON: {"by", "why", "steps"}, of
which `why` tells why it was not uv, and `steps` how many seconds each took; what failed goes to standard error, with 1.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["for_uv", "main", "requirement", "shown"]

HASHED = ("--require-hashes", "--no-deps")
"""A lock file names everything."""
OLDEST_PYTHON = (3, 11)
OLDEST_FOR_ANOTHER = (22, 3)
"""The first pip that installs into the environment of another interpreter (--python)."""
STEP_S = 600.0
SHOWN = 600
"""Characters from the beginning of a failed command's output, where the error is named, and as many from its end."""
VARIABLES = {
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
    "extra-index-url": "UV_EXTRA_INDEX_URL",
    "find-links": "UV_FIND_LINKS",
    "index-url": "UV_INDEX_URL",
    "proxy": "ALL_PROXY",
    "trusted-host": "UV_INSECURE_HOST",
}
"""pip's settings of where packages come from, as uv is told them."""
SEPARATORS = {"UV_FIND_LINKS": ","}
"""Of a list; else a space."""
OF_NO_CONCERN = frozenset(
    {
        *(
            "break-system-packages",
            "cache-dir",
            "compile",
            "config-file",
            "default-timeout",
            "disable-pip-version-check",
        ),
        *("no-cache-dir", "no-color", "no-compile", "no-input", "no-python-version-warning", "no-warn-script-location"),
        *("progress-bar", "quiet", "require-virtualenv", "retries", "root-user-action", "timeout", "user", "verbose"),
    }
)
"""pip's settings that say nothing of what is installed, or from where."""
SETTING = re.compile(r"(?P<section>:env:|[\w-]+)\.(?P<name>[\w-]+)=(?P<value>.*)")
SECTIONS = ("global", "install", ":env:")
"""Of pip's configuration, the later the stronger. Others are for other commands."""


class Failed(Exception):
    """A command ended with an error, of which this is the end."""


def main(another_python: str, requirements: str, tools: str, wheel: str) -> int:
    """The whole installation into this interpreter's environment; its exit code."""
    locked, steps, why = Path(tools).read_text("utf-8"), Steps(), ""
    if sys.version_info[:2] < OLDEST_PYTHON:
        print(
            f"Python {sys.version.split()[0]} is too old; expected {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} or newer",
            file=sys.stderr,
        )
        return 1
    try:
        with steps.timed("looking for pip"):
            pip, options = find_pip(another_python)
        by_pip = [*pip, *options, "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-compile"]
        try:
            with steps.timed("installing uv"):
                environment = for_uv(run([*pip, "config", "list"]), os.environ)
                run_locked(by_pip, requirement(locked, "uv"))
            uv = str(Path(sys.executable).with_name("uv"))
            by_uv = [uv, "pip", "install", "--quiet", "--no-config", "--python", sys.executable]
            with tempfile.TemporaryDirectory(dir=Path(wheel).parent) as cache:
                install(by_uv, locked, requirements, wheel, {**environment, "UV_CACHE_DIR": cache}, steps)
            program = [uv]
        except (Failed, ValueError) as problem:
            why = f"{steps.last}: {problem}"
            install(by_pip, locked, requirements, wheel, {}, steps)
            program = pip
        name, version = run([*program, "--version"]).split()[:2]
    except Failed as problem:
        print(f"{steps.last}: {problem}", file=sys.stderr)
        return 1
    print(json.dumps({"by": f"{name} {version}", "why": why, "steps": steps.duration_s}))
    return 0


class Steps:
    """What was done, the `last` of it, and how long each took: seconds, all attempts of a step together."""

    def __init__(self) -> None:
        self.last = ""
        self.duration_s: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(self, step: str) -> Iterator[None]:
        self.last, started_at = step, time.monotonic()
        try:
            yield
        finally:
            self.duration_s[step] = round(self.duration_s.get(step, 0.0) + time.monotonic() - started_at, 2)


def install(
    command: list[str], locked: str, requirements: str, wheel: str, environment: Mapping[str, str], steps: Steps
) -> None:
    """All that is to be installed, by this installer.

    Raises:
        Failed: a step ended with an error.
    """
    with steps.timed("installing setuptools"):
        run_locked(command, requirement(locked, "setuptools"), environment)
    with steps.timed("installing requirements.lock"):
        run([*command, *HASHED, "--no-build-isolation", "-r", requirements], environment)
    with steps.timed("installing signalmesh"):
        run([*command, "--no-deps", "--force-reinstall", wheel], environment)


def find_pip(another_python: str) -> tuple[list[str], list[str]]:
    """The command of a pip, and the options with which it installs here: this environment's own, another interpreter's,
    or one that is made.

    Raises:
        Failed: there is none to be had.
    """
    own, another = [sys.executable, "-m", "pip"], [another_python, "-m", "pip"]
    for pip, options, oldest in ((own, [], (0,)), (another, ["--python", sys.executable], OLDEST_FOR_ANOTHER)):
        with contextlib.suppress(Failed):
            if tuple(map(int, re.findall(r"\d+", run([*pip, "--version"]))[:2])) >= oldest:
                return pip, options
    run([sys.executable, "-m", "ensurepip"])
    return own, []


def requirement(locked: str, name: str) -> str:
    """One requirement of a lock file, with its hashes.

    Raises:
        ValueError: it has none of that name.
    """
    found = re.search(rf"^{re.escape(name)}==.*(?:\n[ \t]+.*)*", locked, re.MULTILINE)
    if found is None:
        raise ValueError(f"the lock file has no {name}")
    return found.group() + "\n"


def for_uv(listed: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that tell uv what pip was told: `listed` is what `pip config list` prints.

    Raises:
        ValueError: pip was told something that this does not know.
    """
    found: dict[str, str] = {}
    lines = [line for line in listed.splitlines() if line]
    matches = [SETTING.fullmatch(line) for line in lines]
    for section in SECTIONS:
        for match in matches:
            if match is None:
                raise ValueError("the configuration of pip is not understood")
            name = match["name"].replace("_", "-").lower()
            if match["section"] != section or name in OF_NO_CONCERN:
                continue
            if name not in VARIABLES:
                raise ValueError(f"pip is configured with {name}")
            variable = VARIABLES[name]
            words = str(ast.literal_eval(match["value"])).split()
            found[variable] = SEPARATORS.get(variable, " ").join(words)
    if "UV_EXTRA_INDEX_URL" in found:
        found["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # as pip looks at them; the hashes say which file it is
    bundle = environ.get("REQUESTS_CA_BUNDLE") or environ.get("CURL_CA_BUNDLE")
    if bundle and "SSL_CERT_FILE" not in {*found, *environ}:
        found["SSL_CERT_FILE"] = bundle
    return found


def run_locked(command: list[str], locked: str, environment: Mapping[str, str] = {}) -> None:
    """Install what `locked` says, with its hashes.

    Raises:
        Failed: as run.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(locked)
        file.flush()
        run([*command, *HASHED, "-r", file.name], environment)


def run(command: list[str], environment: Mapping[str, str] = {}) -> str:
    """What it prints.

    Raises:
        Failed: it ended with an error, or did not end.
    """
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=STEP_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(str(error)) from None
    if done.returncode != 0:
        raise Failed(f"exit code {done.returncode}: {shown(done.stdout, done.stderr)}")
    return done.stdout


def shown(stdout: str, stderr: str) -> str:
    """What a failed command said, in one line: of much only both ends."""
    text = " ".join(f"{stdout} {stderr}".split())
    return text if len(text) <= 2 * SHOWN else f"{text[:SHOWN]} ... {text[-SHOWN:]}"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
