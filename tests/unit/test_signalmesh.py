"""The import path of our processes, and other owners of our packages."""

from __future__ import annotations

import ast
import os
import shlex
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

import signalmesh
from signalmesh import CARRIED_PATH, find_clash, module_command, python_command, restore_python_path

SHADOWS = ("types.py", "random.py", "site_.py", "encodings.py", "orjson.py", "numpy.py", "typer.py", "nats/__init__.py",
           "agents/__init__.py", "bus/__init__.py", "coordinator.py", "signalmesh.py", "sitecustomize.py")  # fmt: skip


def run(command: list[str], cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )


def path_of(cwd: Path, **variables: str) -> list[str]:
    """The import path of one of our processes: what `python -m site` prints of it."""
    done = run(module_command("site"), cwd, **variables)
    listed = done.stdout.partition("sys.path = ")[2].partition("\n]")[0] + "\n]"
    found = ast.literal_eval(listed)
    assert isinstance(found, list)
    return found


@pytest.fixture
def shadows(tmp_path: Path) -> Path:
    directory = tmp_path / "shadows"
    for name in SHADOWS:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise SystemExit(f'{__file__} was imported')\n")
    return directory


def test_files_of_the_working_directory_and_of_pythonpath_shadow_no_module(shadows):
    for variables in ({}, {CARRIED_PATH: str(shadows)}, {CARRIED_PATH: ""}):
        done = run(python_command("doctor", "--help"), shadows, **variables)
        assert done.returncode == 0, done.stderr


def test_files_of_pythonpath_shadow_nothing_that_an_interpreter_has_not_loaded_itself(tmp_path):
    for name in (
        "typing",
        "contextlib",
        "signal",
        "runpy",
        "json",
        "logging",
        "dataclasses",
        "collections.abc",
        "asyncio",
    ):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(f'{__file__} was imported')\n")
    done = run(python_command("doctor", "--help"), tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_the_order_of_the_path(tmp_path):
    (tmp_path / "own").mkdir()
    path = path_of(tmp_path, **{CARRIED_PATH: str(tmp_path / "own")})
    library = str(Path(os.__file__).parent)
    site_packages = str(Path(pytest.__file__).parents[1])
    assert path.index(library) < path.index(signalmesh.ROOT) < path.index(site_packages) < path.index(f"{tmp_path}/own")
    assert str(tmp_path) not in path
    assert len(path) == len(set(path))


def test_pythonpath_is_kept_for_programs_of_users(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    signalmesh._order_path()
    assert "PYTHONPATH" not in os.environ
    assert sys.path[-1] == str(tmp_path) or str(tmp_path) in sys.path[-2:]
    restore_python_path()
    assert os.environ["PYTHONPATH"] == str(tmp_path)
    assert CARRIED_PATH not in os.environ


def test_a_distribution_with_a_package_of_our_name_is_named(tmp_path, monkeypatch):
    assert find_clash() is None
    info = tmp_path / "swarm_agents-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: swarm-agents\nVersion: 1.0\n")
    (info / "RECORD").write_text("other/agents/__init__.py,,\nagents/__init__.py,,\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    clash = find_clash()
    assert clash is not None
    assert "swarm-agents has a package 'agents'" in clash.problem
    assert "venv" in clash.remedy
    assert not clash.fatal


@pytest.mark.parametrize("name", signalmesh.PACKAGES)
def test_a_package_that_replaced_ours_is_named_in_one_line(tmp_path, name):
    """As after an installation of another distribution over ours, into the same directory."""
    for package in signalmesh.PACKAGES:
        if package != name:
            shutil.copytree(
                Path(signalmesh.ROOT, package), tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
            )
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("class Runner: pass\n")
    info = tmp_path / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "RECORD").write_text(f"x.py,,\n{name}/__init__.py,,\n")
    shutil.copy(signalmesh.FILE, tmp_path)
    done = run([sys.executable, "-P", str(tmp_path / "signalmesh.py"), "doctor"], tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert f"other has a package '{name}' too" in done.stderr


def shell(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    quoted = shlex.join(python_command())
    return run(["bash", "-c", f'signalmesh() {{ {quoted} "$@"; }}; {command}'], cwd)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "code", "text"),
    [
        ("signalmesh status >&-", 3, "no NATS server answers"),
        ("signalmesh doctor >&- <&-", 0, ""),
        ("signalmesh doctor 2>&-", 0, ""),
        ("signalmesh doctor > /dev/full", 1, "No space left on device: cannot write; free space"),
        ("signalmesh doctor --json > /dev/full", 1, "No space left on device: cannot write; free space"),
        (
            "mkdir gone; cd gone; rmdir ../gone; signalmesh status",
            1,
            "it does not exist; run the command in a directory",
        ),
        ("ulimit -Sn 20; ulimit -Hn 20; signalmesh up --for 1", 2, "may open 20 files here, expected 128 or more"),
    ],
)
def test_streams_directories_and_limits_that_do_not_work_are_one_line(tmp_path, command, code, text):
    command = command.replace("status", f"status --nats nats://127.0.0.1:1 --state-dir {tmp_path}/state")
    done = shell(command, tmp_path)
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    assert done.stderr.count("\n") <= 1
    assert "Traceback" not in done.stderr


def test_a_narrow_stream_gets_escapes(tmp_path):
    file = tmp_path / "schwärm.toml"
    file.write_text("[agents]\nx = 1\n")
    done = run(python_command("up", "--config", str(file)), tmp_path, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode == 2
    assert "schw\\xe4rm.toml" in done.stderr


def test_standard_streams_that_are_closed_give_their_numbers_to_nothing_else(tmp_path):
    done = shell("signalmesh --module site >&- ; ls /proc/self/fd >/dev/null", tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("given", ["", "internal.example, localhost"])
def test_nothing_of_this_machine_is_asked_through_a_proxy(monkeypatch, given):
    monkeypatch.setenv("HTTPS_PROXY", "http://192.0.2.1:3128")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("no_proxy", given)
    signalmesh._bypass_proxies()
    for url in ("http://127.0.0.1:8222/healthz", "https://localhost:4318/v1/traces"):
        assert requests.utils.should_bypass_proxies(url, None)
        assert urllib.request.proxy_bypass(urlsplit(url).netloc)
    assert not requests.utils.should_bypass_proxies("https://api.e2b.example", None)
    assert requests.utils.should_bypass_proxies("https://internal.example", None) == bool(given)


def test_an_ignored_sigchld_is_restored(tmp_path):
    command = module_command("timeit", "-n1", "-r1", "import signal; print(repr(signal.getsignal(signal.SIGCHLD)))")
    ignoring = f"import os, signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv({command[0]!r}, {command})"
    done = run([sys.executable, "-c", ignoring], tmp_path)
    assert "SIG_DFL" in done.stdout, done


@pytest.mark.parametrize("seed", ["", "7"])
def test_an_interpreter_whose_path_has_the_working_directory_runs_no_agents(monkeypatch, seed):
    assert not sys.flags.safe_path
    monkeypatch.setenv("PYTHONHASHSEED", seed)
    monkeypatch.setattr(sys, "argv", ["signalmesh", "sandbox", "base"])
    begun: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _program, command: begun.append(command))
    signalmesh._begin_again()
    assert begun == [python_command("sandbox", "base")]
    assert "-P" in begun[0]
    assert os.environ["PYTHONHASHSEED"] == (seed or "0")


@pytest.mark.slow
def test_agents_run_with_one_order_of_sets(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    (tmp_path / "own.py").write_text(SET_AGENT)
    (tmp_path / "swarm.toml").write_text('[agents.one]\nclass = "own.py:One"\n')
    orders = set()
    for seed in ({}, {}, {"PYTHONHASHSEED": "7"}):
        run(python_command("up", "--config", "swarm.toml", "--port", "0", "--for", "0.1"), tmp_path, **seed)
        orders.add((tmp_path / "order").read_text())
        (tmp_path / "order").unlink()
    assert len(orders) == 2  # one of the fixed seed, and one of the seed that the user has set


SET_AGENT = """
from pathlib import Path
from agents.agent import Agent

Path("order").write_text(" ".join({str(n) for n in range(50)}))

class One(Agent):
    kind = "one"
    listens = ("market",)

    def on_market(self, tick):
        return None
"""
