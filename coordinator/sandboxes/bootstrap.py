"""Installs signalmesh in a sandbox; runs there, with the interpreter of the new environment. Standard library only.

    python bootstrap.py ANOTHER_PYTHON REQUIREMENTS TOOLS WHEEL

Installs with uv, which pip installs first. Falls back to pip if uv is unavailable, fails, or does not support a setting
of pip. Checks every file against its hash. Prints JSON: {"by", "why", "steps"}: the installer, why it was not uv, and
the seconds of each step. Prints an error to standard error and exits with 1.
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

__all__ = ["excerpt", "for_uv", "main", "requirement"]

HASHED = ("--require-hashes", "--no-deps")
"""A lock file lists every package, so no dependency has to be resolved."""
OLDEST_PYTHON = (3, 11)
OLDEST_FOR_ANOTHER = (22, 3)
"""The first pip that installs into the environment of another interpreter (--python)."""
STEP_S = 600.0
EXCERPT_CHARACTERS = 600
"""Characters kept from the beginning of a failed command's output, and as many from its end."""
VARIABLES = {
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
    "extra-index-url": "UV_EXTRA_INDEX_URL",
    "find-links": "UV_FIND_LINKS",
    "index-url": "UV_INDEX_URL",
    "proxy": "ALL_PROXY",
    "trusted-host": "UV_INSECURE_HOST",
}
"""pip setting for package sources -> the variable of uv with the same meaning."""
SEPARATORS = {"UV_FIND_LINKS": ","}
"""Separator of a list value; a space for all other variables."""
IGNORED_SETTINGS = frozenset(
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
"""Settings of pip that affect neither what is installed nor from where."""
SETTING = re.compile(r"(?P<section>:env:|[\w-]+)\.(?P<name>[\w-]+)=(?P<value>.*)")
SECTIONS = ("global", "install", ":env:")
"""Sections of pip's configuration that apply to `install`; a later one overrides an earlier one."""


class Failed(Exception):
    """A command failed; the message contains an excerpt of its output."""


def main(another_python: str, requirements: str, tools: str, wheel: str) -> int:
    """Run the whole installation into this interpreter's environment; returns the exit code."""
    locked, steps, why = Path(tools).read_text("utf-8"), Steps(), ""
    if sys.version_info[:2] < OLDEST_PYTHON:
        print(
            f"Python {sys.version.split()[0]} is too old; expected {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} or newer",
            file=sys.stderr,
        )
        return 1
    try:
        with steps.timed("finding pip"):
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
    """The name of the `last` step, and the seconds of each step, summed over its attempts."""

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
    """Install everything with the installer `command`.

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
    """The command of a pip, and the options with which it installs here.

    Tries this environment's pip, then another interpreter's, then installs one with ensurepip.

    Raises:
        Failed: no pip is available.
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
        ValueError: the lock file does not contain that name.
    """
    found = re.search(rf"^{re.escape(name)}==.*(?:\n[ \t]+.*)*", locked, re.MULTILINE)
    if found is None:
        raise ValueError(f"the lock file has no {name}")
    return found.group() + "\n"


def for_uv(listed: str, environ: Mapping[str, str]) -> dict[str, str]:
    """pip's configuration as variables for uv; `listed` is the output of `pip config list`.

    Raises:
        ValueError: a setting of pip has no counterpart in uv, or cannot be parsed.
    """
    found: dict[str, str] = {}
    lines = [line for line in listed.splitlines() if line]
    matches = [SETTING.fullmatch(line) for line in lines]
    for section in SECTIONS:
        for match in matches:
            if match is None:
                raise ValueError("the configuration of pip cannot be parsed")
            name = match["name"].replace("_", "-").lower()
            if match["section"] != section or name in IGNORED_SETTINGS:
                continue
            if name not in VARIABLES:
                raise ValueError(f"pip is configured with {name}")
            variable = VARIABLES[name]
            words = str(ast.literal_eval(match["value"])).split()
            found[variable] = SEPARATORS.get(variable, " ").join(words)
    if "UV_EXTRA_INDEX_URL" in found:
        found["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # as pip does; the hashes select the file
    bundle = environ.get("REQUESTS_CA_BUNDLE") or environ.get("CURL_CA_BUNDLE")
    if bundle and "SSL_CERT_FILE" not in {*found, *environ}:
        found["SSL_CERT_FILE"] = bundle
    return found


def run_locked(command: list[str], locked: str, environment: Mapping[str, str] = {}) -> None:
    """Install the requirements `locked`, checking their hashes.

    Raises:
        Failed: the installer failed.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(locked)
        file.flush()
        run([*command, *HASHED, "-r", file.name], environment)


def run(command: list[str], environment: Mapping[str, str] = {}) -> str:
    """Run `command` and return its standard output.

    Raises:
        Failed: it exited with an error, or ran longer than STEP_S.
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
        raise Failed(f"exit code {done.returncode}: {excerpt(done.stdout, done.stderr)}")
    return done.stdout


def excerpt(stdout: str, stderr: str) -> str:
    """The output of a failed command in one line; only its two ends if it is long."""
    text = " ".join(f"{stdout} {stderr}".split())
    return (
        text if len(text) <= 2 * EXCERPT_CHARACTERS else f"{text[:EXCERPT_CHARACTERS]} ... {text[-EXCERPT_CHARACTERS:]}"
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
