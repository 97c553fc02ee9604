"""The first module of every process of signalmesh: it orders the import path, and names packages that clash with ours.

It is a module of its own, beside the three packages: `agents` is a common name, and another owner of it must not keep
the error from being reported. The path of a process of signalmesh is:

1. the standard library,
2. the directory of this file, with `agents`, `bus` and `coordinator`,
3. the installed packages,
4. PYTHONPATH, and last the packages of the user (`site.USER_SITE`), unless signalmesh itself is installed there.

The working directory is not on it. PYTHONPATH moves to the variable CARRIED_PATH: an interpreter that this process
starts would put its entries before the standard library. `restore_python_path` undoes that for programs of users.
"""

from __future__ import annotations

import os
import sys

# An interpreter has loaded these two by itself. The modules below could be anybody's while PYTHONPATH comes first.
_LIBRARY = os.path.dirname(os.path.abspath(os.__file__))
_BEGINNING = sys.path[0] if sys.path else ""
"""The working directory, or that of the script, unless the path is a safe one."""
sys.path.sort(key=lambda entry: entry not in (_LIBRARY, os.path.join(_LIBRARY, "lib-dynload")))

# ruff: noqa: E402
import contextlib
import io
import runpy
import signal
import site
from collections.abc import Iterator
from typing import NamedTuple

__all__ = [
    "CARRIED_PATH",
    "PACKAGES",
    "ROOT",
    "Clash",
    "find_clash",
    "importable",
    "main",
    "module_command",
    "python_command",
    "restore_python_path",
    "run_command",
]

FILE = os.path.abspath(__file__)  # a constant: a sandbox host hides `__file__` of its main module
ROOT = os.path.dirname(FILE)
PACKAGES = ("agents", "bus", "coordinator")
CARRIED_PATH = "SIGNALMESH_PYTHONPATH"
"""The variable that carries a PYTHONPATH to the processes that signalmesh starts."""
MODULE = "--module"
_FACTS = {"installed": True}
"""Whether an interpreter finds this module by itself."""
RUN_AGENTS = frozenset({"up", "sandbox", "agent", "replay", "certify"})
"""Commands whose processes run agents, or start one that does."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def python_command(*arguments: str) -> list[str]:
    """The command that runs signalmesh with `arguments` in a new process, whatever its working directory holds."""
    safe = ["-P"] if _installed_for_user() else ["-P", "-s"]
    return [sys.executable, *safe, FILE, *arguments]


def module_command(module: str, *arguments: str) -> list[str]:
    """As `python_command`, for a module of ours that is run as a program."""
    return python_command(MODULE, module, *arguments)


def restore_python_path() -> None:
    """Give the programs that this process starts from now on the PYTHONPATH that signalmesh was started with."""
    if carried := os.environ.pop(CARRIED_PATH, ""):
        os.environ["PYTHONPATH"] = carried


class Clash(NamedTuple):
    """Another owner of one of our packages; `fatal` if the package that is imported is not ours."""

    problem: str
    remedy: str
    fatal: bool


@contextlib.contextmanager
def importable() -> Iterator[None]:
    """Let an interpreter that is started meanwhile find this module, also where it is not installed."""
    if not _FACTS["installed"]:
        os.environ["PYTHONPATH"] = ROOT
    try:
        yield
    finally:
        if not _FACTS["installed"]:
            os.environ.pop("PYTHONPATH", None)


def find_clash() -> Clash | None:
    """What else owns one of our packages. Takes some 20 ms."""
    import importlib.metadata
    import importlib.util

    remedy = "install signalmesh into an environment of its own: python3 -m venv"
    for name in PACKAGES:
        expected = os.path.join(ROOT, name, "__init__.py")
        loaded = sys.modules.get(name)
        spec = loaded.__spec__ if loaded is not None else importlib.util.find_spec(name)
        origin = None if spec is None else spec.origin
        if origin is None or os.path.realpath(origin) != os.path.realpath(expected):
            return Clash(f"the package {name!r} is {origin or 'not found'}, expected {expected}", remedy, fatal=True)
    for distribution in importlib.metadata.distributions():
        recorded = "\n" + (distribution.read_text("RECORD") or "")
        for name in PACKAGES:
            if distribution.name != "signalmesh" and f"\n{name}/__init__.py," in recorded:
                problem = f"{distribution.name} has a package {name!r} too, and only one of the two can be imported"
                return Clash(problem, remedy, fatal=False)
    return None


def main() -> None:
    """Prepare this process, and run the command line or the module that the arguments name."""
    _open_standard_streams()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # while a parent had it ignored, children leave no exit code
    _begin_again()
    _order_path()
    _bypass_proxies()
    if sys.argv[1:2] == [MODULE]:
        module, sys.argv[:] = sys.argv[2], sys.argv[2:]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        run_command()


def run_command() -> None:
    """Run the command line in a process that is prepared already; see coordinator/cli/main.py."""
    try:
        from coordinator.cli.main import main as run

        run()
    except (ImportError, AttributeError):  # what a package of another owner lacks
        if (clash := find_clash()) is None:
            raise
        print(f"signalmesh: {clash.problem}; {clash.remedy}", file=sys.stderr)
        raise SystemExit(2) from None  # EXIT_USAGE of bus/errors.py, which may be that of another owner


def _begin_again() -> None:
    """Begin again, if this process runs agents, with a fixed seed: sets of strings would have another order each time.

    Also if the interpreters that multiprocessing starts would have the working directory on their path.
    """
    seeded = bool(os.environ.get("PYTHONHASHSEED"))
    if not (seeded and sys.flags.safe_path) and not RUN_AGENTS.isdisjoint(sys.argv[1:]):
        os.environ["PYTHONHASHSEED"] = os.environ.get("PYTHONHASHSEED") or "0"
        command = python_command(*sys.argv[1:])
        os.execv(command[0], command)  # noqa: S606 - this very program


def _bypass_proxies() -> None:
    """Let the libraries of this process and its children reach this machine without a proxy."""
    if not any(name.lower().endswith("_proxy") for name in os.environ):
        return
    excluded = [entry.strip() for entry in os.environ.get("no_proxy", os.environ.get("NO_PROXY", "")).split(",")]
    if "*" in excluded:
        return
    excluded += [host for host in LOOPBACK if host not in excluded]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, excluded))


def _open_standard_streams() -> None:
    """Open those that are closed: the next socket would get their number. Escape characters that they lack."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115 - until the end
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _installed_for_user() -> bool:
    return os.path.realpath(ROOT) == os.path.realpath(site.getusersitepackages())


def _order_path(*, carry: bool = True) -> None:
    """Order the path of this process; `carry`: PYTHONPATH is that of the user."""
    given = os.environ.pop("PYTHONPATH", None)
    if carry and given is not None:
        os.environ[CARRIED_PATH] = given
    carried = os.environ.get(CARRIED_PATH, "")
    # An empty entry of PYTHONPATH is the working directory.
    last = [_absolute(entry) for entry in carried.split(os.pathsep)] if carried else []
    _FACTS["installed"] = ROOT in sys.path and ROOT not in last
    standard = [entry for entry in sys.path if _is_standard(entry)]
    if not _installed_for_user():
        last.append(site.getusersitepackages())
    excluded = {*standard, *last, ROOT}
    if not sys.flags.safe_path:
        excluded.add(_BEGINNING)
    installed = [entry for entry in sys.path if os.path.isabs(entry) and entry not in excluded]
    sys.path[:] = [*standard, ROOT, *installed, *(entry for entry in last if os.path.isdir(entry))]


def _absolute(entry: str) -> str:
    try:
        return os.path.abspath(entry)
    except OSError:  # there is no working directory any more
        return entry


def _is_standard(entry: str) -> bool:
    return entry in (_LIBRARY, os.path.join(_LIBRARY, "lib-dynload")) or (
        entry.endswith(".zip") and os.path.dirname(entry) == os.path.dirname(_LIBRARY)
    )


if __name__ == "__main__":
    sys.modules["signalmesh"] = sys.modules["__main__"]
    main()
elif sys.argv[:1] == ["-c"] and "multiprocessing.forkserver" in sys.modules:
    _order_path(carry=False)  # this process is a fork server of agents, which begins by importing this module
