"""Checks of versions, disk, ports and limits of this machine."""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
from dataclasses import replace

import orjson
import pytest

from coordinator.config.loader import parse_swarm
from coordinator.doctor import machine_checks
from coordinator.doctor.machine_checks import _at_least, _descriptors, check_disk, check_port, check_versions
from coordinator.runner.run_record import Recorded
from signalmesh import python_command
from tests.support.run_records import living_run

CONFIG = parse_swarm({}, "swarm.toml", "")
BIG = replace(CONFIG, stream=replace(CONFIG.stream, max_bytes=1 << 60))


def test_versions_of_this_environment_are_in_order():
    assert {finding.level for finding in check_versions(embedded=True)} == {"ok"}
    assert check_versions(embedded=False)[-1].skipped


@pytest.mark.parametrize(
    ("version", "level"), [("2.15.9", "error"), ("2.16", "ok"), ("2.16.0", "ok"), ("3.0b1", "ok"), ("1.99", "error")]
)
def test_a_version_that_is_too_old(version, level):
    assert _at_least("nats-py", "nats-py", version, (2, 16), "upgrade").level == level


def test_a_server_that_is_too_old(tmp_path, monkeypatch):
    fake = tmp_path / "nats-server"
    fake.write_text("#!/bin/sh\necho nats-server: v2.11.4\n")
    fake.chmod(0o755)
    monkeypatch.setattr(machine_checks, "find_binary", lambda: fake)
    finding = check_versions(embedded=True)[-1]
    assert (finding.check, finding.level) == ("nats-server program", "error")
    assert "2.11.4" in finding.text
    assert "2.12" in finding.text


def test_a_disk_with_too_little_room(tmp_path, monkeypatch):
    assert check_disk(tmp_path / "not" / "yet", CONFIG).level == "ok"
    store = tmp_path / "nats" / "store"
    store.mkdir(parents=True)
    (store / "1.blk").write_bytes(b"x" * (3 << 20))
    finding = check_disk(tmp_path, BIG)
    assert finding.level == "warning"
    assert "the store has 3.0 MiB" in finding.text
    monkeypatch.setattr(machine_checks, "LEAST_FREE_BYTES", 1 << 60)
    assert check_disk(tmp_path, CONFIG).level == "error"


def test_descriptors():
    assert _descriptors("x", "pid 1", 20_000, 10).level == "ok"
    assert _descriptors("x", "pid 1", -1, 10).level == "ok"
    assert _descriptors("x", "pid 1", 256, 10).level == "warning"
    assert _descriptors("x", "pid 1", 1024, 900).level == "error"


async def test_a_port_that_another_program_has():
    async def on_client(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(on_client, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = f"nats://127.0.0.1:{port}"
    async with server:
        taken = await check_port(url, None, named=False)
        its = living_run(Recorded(kind="nats-server", name="nats-server", pid=1, started=""))
        instead = await check_port(url, its, named=False)
        elsewhere = await check_port(url, living_run(), named=False)
        named = await check_port(url, None, named=True)
    free = await check_port(url, None, named=False)
    gone = await check_port(url, None, named=True)
    assert (taken.level, free.level) == ("warning", "ok")
    assert f"pid {os.getpid()}" in taken.text
    assert "--port 0" in taken.remedy
    assert (instead.level, elsewhere.level) == ("error", "error")
    assert (named.level, gone.skipped) == ("error", True)
    assert str(os.getpid()) in instead.text


def test_the_limit_of_this_shell(tmp_path):
    doctor = shlex.join(python_command("doctor", "--json", "--state-dir", f"{tmp_path}/state"))
    command = f"ulimit -n 200; exec {doctor}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, check=False, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
    [finding] = [item for item in orjson.loads(done.stdout)["findings"] if item["check"] == "file descriptors"]
    assert finding["level"] == "warning"
    assert "200" in finding["text"]
