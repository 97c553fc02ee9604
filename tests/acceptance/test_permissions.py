"""Users whose permissions are too small: each command and each role reports the subject and the user within seconds."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bus.utils.processes import die_with_parent
from tests.acceptance.swarm import ENVIRONMENT, SIGNALMESH, Swarm, agents_toml, run_command
from tests.support.nats import Connections, plain_server

WITHIN_S = 30.0
"""For the start of a process on a busy machine; the report itself takes milliseconds."""


def write_configuration(directory: Path, permissions: str) -> Path:
    file = directory / "nats.conf"
    file.write_text(f"""
jetstream {{ store_dir: "{directory}/store" }}
authorization {{ users: [
  {{ user: all, password: p }}
  {{ user: u, password: p, permissions: {{ {permissions} }} }}
] }}
no_auth_user: all
""")
    return file


@asynccontextmanager
async def denying(directory: Path, permissions: str, *, streams: bool = True) -> AsyncIterator[str]:
    """The url, with user u, of a server with these permissions and with the streams of a swarm."""
    file = write_configuration(directory, permissions)
    async with plain_server(directory, "-c", str(file)) as url, Connections() as connections:
        await connections.bus(url.replace("//", "//all:p@"), streams=streams)
        yield url.replace("//", "//u:p@")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "permissions", "subject"),
    [
        (("up",), 'publish: { deny: ["$JS.API.CONSUMER.>"] }', "publish to $JS.API.CONSUMER.CREATE.swarm_events.*"),
        (("up",), 'subscribe: { deny: ["swarm.heartbeat.*"] }', "subscribe to swarm.heartbeat.*"),
        (("watch", "decision"), 'subscribe: { deny: ["swarm.decision.>"] }', "subscribe to swarm.decision.>"),
        (("status",), 'subscribe: { deny: ["swarm.heartbeat.*"] }', "subscribe to swarm.heartbeat.*"),
        (("audit",), 'publish: { deny: ["$JS.API.CONSUMER.>"] }', "publish to $JS.API.CONSUMER.CREATE"),
        (("kill", "research-1"), 'subscribe: { deny: ["_INBOX.>"] }', "subscribe to _INBOX.*.*"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else str(value)[:40],
)
async def test_a_command_ends_with_the_subject_and_the_user(tmp_path, arguments, permissions, subject):
    async with denying(tmp_path, permissions, streams=arguments[0] != "up") as url:
        finished = await run_command(tmp_path, *arguments, "--nats", url, guard_s=WITHIN_S)
    assert finished.code == 2, finished
    assert "permission denied: the NATS server at nats://127.0.0.1" in finished.err
    assert "does not let user 'u'" in finished.err
    assert subject in finished.err


ROLES = [
    (("sandbox", "base"), 'subscribe: { deny: ["swarm.control.>"] }', "subscribe to swarm.control.base."),
    (("watchdog",), 'subscribe: { deny: ["swarm.heartbeat.*"] }', "subscribe to swarm.heartbeat.*"),
    (
        ("agent", "research-1"),
        'publish: { deny: ["in.swarm.market.>"] }',
        "publish to in.swarm.market.BTC-USD",
    ),
    (("agent", "coordinator"), 'publish: { deny: ["$JS.API.CONSUMER.>"] }', "publish to $JS.API.CONSUMER.CREATE"),
    (("mirror",), 'publish: { deny: ["$JS.API.CONSUMER.>"] }', "publish to $JS.API.CONSUMER.CREATE"),
    (("metrics", "--listen", "off"), 'publish: { deny: ["$JS.API.CONSUMER.>"] }', "publish to $JS.API.CONSUMER.CREATE"),
    (("proxy",), 'subscribe: { deny: ["swarm.control.>"] }', "subscribe to swarm.control.proxy."),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "permissions", "subject"), ROLES, ids=lambda value: " ".join(value)[:40] if value else ""
)
async def test_a_role_logs_the_subject_and_the_user(tmp_path, arguments, permissions, subject):
    async with denying(tmp_path, permissions) as url:
        process = await asyncio.create_subprocess_exec(
            str(SIGNALMESH),
            *arguments,
            "--nats",
            url,
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            preexec_fn=functools.partial(die_with_parent, os.getpid()),
        )
        assert process.stderr is not None
        try:
            async with asyncio.timeout(WITHIN_S):
                while line := (await process.stderr.readline()).decode():
                    if "permission denied" in line and "user 'u'" in line and subject in line:
                        break
            assert line, "it ended without a report"
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()


@pytest.mark.slow
async def test_doctor_tries_what_is_needed_and_names_what_is_refused(tmp_path):
    permissions = (
        'publish: { deny: ["swarm.heartbeat.>", "$KV.swarm_state.>"] }, subscribe: { deny: ["swarm.alert.>"] }'
    )
    async with denying(tmp_path, permissions) as url:
        finished = await run_command(tmp_path, "doctor", "--nats", url, "--json", guard_s=WITHIN_S)
        [finding] = [each for each in finished.json["findings"] if each["check"] == "permissions of the bus"]
        assert finding["level"] == "error"
        for subject in ("swarm.heartbeat.research-1", "$KV.swarm_state.research-1", "subscribe to swarm.alert.>"):
            assert subject in finding["text"]
        allowed = await run_command(tmp_path, "doctor", "--nats", url.replace("u:p", "all:p"), "--json")
        [finding] = [each for each in allowed.json["findings"] if each["check"] == "permissions of the bus"]
        assert finding["level"] == "ok"


@pytest.mark.slow
async def test_up_reports_what_is_denied_while_it_runs(tmp_path):
    async with denying(tmp_path, "") as url, Swarm(tmp_path, agents_toml()) as swarm:
        subscriber = await swarm.up("--nats", url, "--speed", "20")
        await subscriber.more_decisions(1)
        write_configuration(tmp_path, 'publish: { deny: ["$JS.API.CONSUMER.>"] }')
        [ports] = tmp_path.glob("*.ports")
        os.kill(int(ports.stem.rpartition("_")[2]), signal.SIGHUP)
        [alert] = await subscriber.alerted("permission_denied", 1)
        assert "does not let user 'u' publish to $JS.API.CONSUMER.CREATE.swarm_events.*" in alert["message"]
        assert "permission denied" in swarm.errors
        assert json.loads((tmp_path / ".signalmesh" / "run.json").read_text())
