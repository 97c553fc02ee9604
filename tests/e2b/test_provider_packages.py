"""What a sandbox at E2B gets besides: the user's files, packages of pip and npm, our own wheel."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import psutil
import pytest
from e2b import AsyncSandbox

from tests.acceptance.swarm import AGENTS, agents_toml
from tests.e2b.remote import REMOTE_AGENTS, RemoteSwarm, env_toml, remote_sandbox, remote_toml

MINE = """
from agents.agent import Agent
from bus.messages import MarketData, Signal


class Mine(Agent):
    kind = "mine"
    listens = ("market",)

    def on_market(self, tick: MarketData) -> Signal:
        import far_numbers  # here, as `up` imports this module where that package is not

        return self.signal(tick, "hold", far_numbers.STRENGTH)
"""


def write_wheel(directory: Path) -> None:
    """A package of one module, as pip installs it."""
    files = {
        "far_numbers.py": "STRENGTH = 0.625\n",
        "far_numbers-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: far-numbers\nVersion: 1.0\n",
        "far_numbers-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "far_numbers-1.0.dist-info/RECORD"
    files[record] = "".join(f"{name},,\n" for name in (*files, record))
    directory.mkdir()
    with zipfile.ZipFile(directory / "far_numbers-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)


def write_npm_package(path: Path) -> None:
    files = {"package.json": '{"name": "far-words", "version": "1.0.0"}', "index.js": 'module.exports = "far away"'}
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))


def environment_of_its_own(directory: Path) -> Path:
    """An interpreter that sees the libraries of this one, and into which pip may install."""
    subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
    [libraries] = (directory / "lib").glob("python*/site-packages")
    (libraries / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return directory / "bin" / "python"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not here")
async def test_files_and_packages_are_there_before_the_agents_are(tmp_path, e2b_standin):
    swarm_directory = tmp_path / "swarm"
    swarm_directory.mkdir()
    write_wheel(tmp_path / "wheels")
    write_npm_package(swarm_directory / "far-words.tgz")
    (swarm_directory / "mine.py").write_text(MINE)
    python = await asyncio.to_thread(environment_of_its_own, tmp_path / "venv")
    sandbox = remote_sandbox(
        python=json.dumps(str(python)),
        env=env_toml(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path / "wheels")),
        files='["mine.py", "far-words.tgz"]',
        packages='{ pip = ["far-numbers==1.0"], npm = ["far-words.tgz"] }',
    )
    toml = (
        f"max_agents = 6\n[sandboxes.base]\n[sandboxes.nodejs]\n{sandbox}\n{agents_toml(speed=20)}"
        '[agents.mine]\nclass = "mine.py:Mine"\nsandbox = "python"\n'
    )
    async with RemoteSwarm(swarm_directory, e2b_standin, toml) as swarm:
        there = await swarm.started()
        heartbeats = await there.subscriber.live(*AGENTS, "mine")
        assert heartbeats["mine"]["sandbox"] == there.host
        subscriber = there.subscriber
        votes = await subscriber.until(
            "its votes",
            lambda: [one.json for one in subscriber.messages if one.kind == "signal" and one.writer == "mine"],
        )
        assert {vote["strength"] for vote in votes} == {0.625}, "not what its package says"
        remote = await AsyncSandbox.connect(there.sandbox_id)
        output = await remote.commands.run("cd .signalmesh/files && node -p 'require(\"far-words\")'")
        assert output.stdout == "far away\n"
        assert swarm.logged("signalmesh_installed") == [], "it was there already"
        await swarm.assert_exact()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("packages", "output"),
    [
        ('{ pip = ["no-such-package-of-mine"] }', "No matching distribution found for no-such-package-of-mine"),
        pytest.param(
            '{ npm = ["no-such-package-of-mine.tgz"] }',
            "npm not being able to find a file",
            marks=pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not here"),
        ),
    ],
    ids=["pip", "npm"],
)
async def test_a_package_that_cannot_be_installed_is_named_with_its_installers_output(
    tmp_path, e2b_standin, packages, output
):
    toml = remote_toml(packages=packages, env=env_toml(PIP_NO_INDEX="1"))
    async with RemoteSwarm(tmp_path, e2b_standin, toml) as swarm:
        subscriber = await swarm.up_with_remote()
        alert = (await subscriber.alerted("sandbox_not_installed"))[0]
        assert "installing packages." in alert["message"]
        assert "(no-such-package-of-mine" in alert["message"]
        assert output in alert["message"]
        await subscriber.alerted("sandbox_failed")
        heartbeats = await subscriber.live(*REMOTE_AGENTS)
        assert all(heartbeat["sandbox"] in ("base", "nodejs") for heartbeat in heartbeats.values())
        assert await e2b_standin.sandboxes() == {}


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_an_empty_template_gets_our_wheel_and_what_it_needs(tmp_path, e2b_standin):
    """The real thing: a virtual environment, hashes, and a package index."""
    plain = Path(sys.base_prefix) / "bin" / "python3"
    index = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_CERT_"))}
    env = "{ " + ", ".join(f"{name} = {json.dumps(value)}" for name, value in index.items()) + " }"
    async with RemoteSwarm(tmp_path, e2b_standin, remote_toml(python=json.dumps(str(plain)), env=env)) as swarm:
        subscriber = await swarm.up_with_remote()
        async with asyncio.timeout(800):
            while not swarm.logged("signalmesh_installed"):
                assert not subscriber.alerts, subscriber.alerts
                await asyncio.sleep(1)
        host = await swarm.remote_host(subscriber)
        await swarm.agents_in(subscriber, host)
        [result] = (await e2b_standin.sandboxes()).values()
        assert psutil.Process(subscriber.heartbeats[host]["pid"]).cmdline()[0].startswith(result["home"])
        await subscriber.more_decisions(3)
        await swarm.assert_exact()
