"""What installs signalmesh in a sandbox that has nothing of it: by uv or by pip, each file checked against its hash."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from coordinator.sandboxes import bootstrap, wheel
from coordinator.sandboxes.bootstrap import excerpt, for_uv, requirement

PLAIN = str(Path(sys.base_prefix) / "bin" / "python3")
"""An interpreter as a template has it: with nothing of ours."""
NAMES = ("setuptools", "thing", "signalmesh")


def test_pip_s_settings_are_uv_s_variables():
    listed = r"""
:env:.cert='/etc/c.pem'
:env:.find-links='/a /b'
global.index-url='https://one/simple'
install.index_url='https://two/simple'
global.extra-index-url='\nhttps://three/simple\nhttps://four/simple'
global.timeout='60'
freeze.whatever='1'
"""
    assert for_uv(listed, {}) == {
        "SSL_CERT_FILE": "/etc/c.pem",
        "UV_FIND_LINKS": "/a,/b",
        "UV_INDEX_URL": "https://two/simple",
        "UV_EXTRA_INDEX_URL": "https://three/simple https://four/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }
    assert for_uv("", {"REQUESTS_CA_BUNDLE": "/b.pem"}) == {"SSL_CERT_FILE": "/b.pem"}
    assert for_uv("", {"REQUESTS_CA_BUNDLE": "/b.pem", "SSL_CERT_FILE": "/c.pem"}) == {}


@pytest.mark.parametrize(
    ("listed", "printed"),
    [("global.no-binary=':all:'", "pip is configured with no-binary"), ("what is this", "cannot be parsed")],
)
def test_what_uv_would_not_know_is_left_to_pip(listed, printed):
    with pytest.raises(ValueError, match=printed):
        for_uv(listed, {})


def test_the_tools_have_their_hashes():
    locked = wheel.lock_file(wheel.TOOLS_LOCK).decode()
    for name in ("uv", "setuptools"):
        found = requirement(locked, name)
        assert found.startswith(f"{name}==")
        assert "--hash=sha256:" in found
        assert sum("==" in line for line in found.splitlines()) == 1
    with pytest.raises(ValueError, match="the lock file has no wheel"):
        requirement(locked, "wheel")


def test_of_long_output_both_ends_are_reported():
    assert excerpt("", "ERROR: first\n  and  last\n") == "ERROR: first and last"
    text = excerpt("ERROR: first", "between " * 1000 + "last")
    assert text.startswith("ERROR: first between")
    assert " ... " in text
    assert text.endswith("between last")
    assert len(text) < 1300


def empty_wheel(directory: Path, name: str) -> str:
    """A wheel of nothing; its line of a lock file."""
    path = directory / f"{name}-1.0-py3-none-any.whl"
    about = f"{name}-1.0.dist-info"
    contents = {
        f"{name}.py": "",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in contents.items():
            archive.writestr(file, text)
    return f"{name}==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


def run_bootstrap(directory: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    venv = directory / "venv"
    subprocess.run([PLAIN, "-m", "venv", "--without-pip", str(venv)], check=True)
    return subprocess.run(
        [str(venv / "bin" / "python"), bootstrap.__file__, PLAIN, *arguments],
        env={"PATH": os.environ["PATH"], "HOME": str(directory), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("forged", [None, "setuptools", "thing"])
def test_pip_installs_it_where_uv_may_not_and_no_hash_is_passed_over(tmp_path, forged):
    """Without an index: nothing of this comes from elsewhere."""
    links = tmp_path / ("long" * 50) / "links"  # whose name is in the error, twice: it is named all the same
    links.mkdir(parents=True)
    lines = {name: empty_wheel(links, name) for name in NAMES}
    lines["uv"] = lines["thing"].replace("thing", "uv")
    if forged:
        lines[forged] = lines["signalmesh"].replace("signalmesh", forged)
    (tmp_path / "requirements.lock").write_text(lines["thing"])
    (tmp_path / "tools.lock").write_text(lines["setuptools"] + lines["uv"])
    files = [str(tmp_path / name) for name in ("requirements.lock", "tools.lock")]
    own = str(links / "signalmesh-1.0-py3-none-any.whl")
    done = run_bootstrap(tmp_path, *files, own, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(links))
    if forged:
        assert done.returncode == 1
        assert "THESE PACKAGES DO NOT MATCH THE HASHES" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["by"].startswith("pip ")
    assert found["why"] == "installing uv: pip is configured with no-index"
    assert list(found["steps"])[-1] == "installing signalmesh"
    script = f"import {', '.join(NAMES)}; print(thing.__file__)"
    printed = subprocess.run(
        [str(tmp_path / "venv/bin/python"), "-c", script], capture_output=True, text=True, check=True
    )
    assert printed.stdout.startswith(str(tmp_path / "venv"))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("setting", "by", "why"),
    [({}, "uv ", ""), ({"UV_OFFLINE": "1"}, "pip ", "installing setuptools: exit code 1")],
    ids=["uv", "uv fails"],
)
def test_all_that_is_locked_is_installed_as_locked(tmp_path, setting, by, why):
    """The real thing: a package index, and the project itself."""
    name, content = wheel.wheel()
    (tmp_path / name).write_bytes(content)
    for lock in (wheel.LOCK, wheel.TOOLS_LOCK):
        (tmp_path / lock).write_bytes(wheel.lock_file(lock))
    index = {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
    files = [str(tmp_path / file) for file in (wheel.LOCK, wheel.TOOLS_LOCK, name)]
    done = run_bootstrap(tmp_path, *files, **index, **setting)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["by"].startswith(by)
    assert found["why"].startswith(why)
    assert bool(found["why"]) == bool(why)
    script = (
        "import importlib.metadata as m, json; from coordinator.sandboxes.wheel import digest;"
        "versions = {d.metadata['Name'].lower().replace('_', '-'): d.version for d in m.distributions()};"
        "print(json.dumps([digest(), versions]))"
    )
    python = str(tmp_path / "venv/bin/python")
    printed = subprocess.run([python, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    digest, versions = json.loads(printed.stdout)
    assert digest == wheel.digest()
    locked = [line.split(" ")[0].split("==") for line in wheel.lock_file().decode().splitlines() if "==" in line]
    assert len(versions) > 50
    assert all(versions.get(name) in (None, *[v for n, v in locked if n == name]) for name, _ in locked)
    assert sum(versions.get(name) == version for name, version in locked) >= len(versions) - 3  # uv, setuptools, we
