"""The provider of E2B before any agent runs in a sandbox: refusals, faults of the service, what cannot be made.

In all of `test_provider_*.py` the SDK is the real one, as are `up`, the hosts, the agents and the bus. What the
stand-in is not, its module says.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.swarm import run_command
from tests.e2b.remote import REMOTE_AGENTS, RemoteSwarm, remote_toml, until
from tests.support.ports import free_port

PASSWORD = "keep" + "-this-to-yourself"
CREATE = "/v2/sandboxes"


# What is refused before anything starts


async def refused(directory: Path, environment: dict[str, str], *arguments: str) -> str:
    """The output of `up` when it does not start; nothing is left of it."""
    directory.mkdir(exist_ok=True)
    (directory / "swarm.toml").write_text(remote_toml())
    done = await run_command(directory, "up", "--port", "0", *arguments, environment=environment)
    assert done.code == 2, done.out + done.err
    assert not (directory / ".signalmesh").exists()
    return done.err


async def test_up_without_a_key_prints_where_to_get_one(tmp_path, e2b_standin):
    output = await refused(
        tmp_path, {**e2b_standin.environment, "E2B_API_KEY": ""}, "--public-nats", "nats://127.0.0.1:1"
    )
    assert "E2B_API_KEY is not set" in output
    assert "https://e2b.dev/dashboard?tab=keys" in output


@pytest.mark.slow
async def test_up_with_a_wrong_key_does_not_show_it(tmp_path, e2b_standin):
    wrong = "e2b_" + "0" * 20
    output = await refused(
        tmp_path, {**e2b_standin.environment, "E2B_API_KEY": wrong}, "--public-nats", "nats://127.0.0.1:1"
    )
    assert "does not accept this key" in output
    assert f"custom endpoint {e2b_standin.environment['E2B_API_URL']}" in output
    assert wrong not in output


@pytest.mark.slow
async def test_the_key_of_a_command_is_used_and_not_shown(tmp_path, e2b_standin):
    wrong = "e2b_" + "0" * 20
    environment = {**e2b_standin.environment, "E2B_API_KEY": ""}
    (tmp_path / "key").write_text(wrong)
    source = '[secrets.e2b_api_key]\ncommand = ["cat", "key"]\n'
    (tmp_path / "swarm.toml").write_text(remote_toml() + source)
    up = await run_command(
        tmp_path, "up", "--port", "0", "--public-nats", "nats://127.0.0.1:1", environment=environment
    )
    assert up.code == 2
    assert "does not accept this key" in up.err
    assert wrong not in up.out + up.err
    (tmp_path / "key").write_text(e2b_standin.api_key)
    doctor = await run_command(tmp_path, "doctor", environment=environment)
    assert "has no sandboxes of .signalmesh" in doctor.out
    (tmp_path / "key").unlink()
    doctor = await run_command(tmp_path, "doctor", environment=environment)
    assert doctor.code == 1
    assert "secrets.e2b_api_key.command: 'cat' ended with exit code 1" in doctor.out
    check = await run_command(tmp_path, "provider", "--check", environment=environment)
    assert check.code == 2
    assert "secrets.e2b_api_key.command: 'cat' ended with exit code 1" in check.err


@pytest.mark.slow
async def test_up_with_a_key_of_two_lines_does_not_show_it(tmp_path, e2b_standin):
    environment = {**e2b_standin.environment, "E2B_API_KEY": f"{e2b_standin.api_key}\n# of the desk"}
    output = await refused(tmp_path, environment, "--public-nats", "nats://127.0.0.1:1")
    assert "E2B_API_KEY: expected only the key" in output
    assert e2b_standin.api_key not in output
    doctor = await run_command(tmp_path, "doctor", environment=environment)
    assert "E2B_API_KEY: expected only the key" in doctor.out
    assert "fix the reported problem" in doctor.out
    assert e2b_standin.api_key not in doctor.out + doctor.err


async def test_doctor_sends_no_request_where_the_sdk_would_use_another_server(tmp_path, e2b_standin):
    (tmp_path / "swarm.toml").write_text(remote_toml(files='["mine.py"]'))
    doctor = await run_command(tmp_path, "doctor", environment={**e2b_standin.environment, "E2B_DEBUG": "true"})
    assert doctor.code == 1
    assert "E2B_DEBUG=true is not supported" in doctor.out
    assert "sandboxes.python.files[0]: expected a file or directory" in doctor.out


@pytest.mark.slow
async def test_an_address_for_sandboxes_that_is_none_is_named_by_its_flag(tmp_path, e2b_standin):
    for address in ("http://bus.example.org", "bus example.org"):
        output = await refused(tmp_path, e2b_standin.environment, "--public-nats", address)
        assert f"--public-nats {address}: expected nats://HOST:PORT" in output


@pytest.mark.slow
async def test_up_needs_an_address_that_a_sandbox_can_reach(tmp_path, e2b_standin):
    assert "--public-nats" in await refused(tmp_path, e2b_standin.environment)
    at_e2b = {"E2B_API_KEY": "of_no_use", "E2B_API_URL": "", "E2B_SANDBOX_URL": "", "E2B_DOMAIN": ""}
    output = await refused(tmp_path, at_e2b, "--public-nats", "nats://127.0.0.1:4222")
    assert "a sandbox at E2B cannot reach nats://127.0.0.1:4222" in output


@pytest.mark.slow
async def test_a_file_that_is_not_there_is_named_by_its_key(tmp_path, e2b_standin):
    (tmp_path / "swarm.toml").write_text(remote_toml(files='["mine.py"]'))
    done = await run_command(tmp_path, "up", "--public-nats", "nats://127.0.0.1:1", environment=e2b_standin.environment)
    assert done.code == 2
    assert "sandboxes.python.files[0]: expected a file or directory" in done.err


# What a create requests, and what becomes of it


@pytest.mark.slow
async def test_a_sandbox_is_requested_as_it_is_configured(tmp_path, e2b_standin):
    settings: dict[str, Any] = {
        "template": '"base"',
        "timeout_s": 120,
        "allow": '["203.0.113.7/32"]',
        "deny": '["0.0.0.0/0"]',
        "metadata": '{ team = "desk" }',
    }
    async with RemoteSwarm(tmp_path, e2b_standin, remote_toml(**settings)) as swarm:
        there = await swarm.started()
        [new_ones] = [line for line in e2b_standin.requests(CREATE) if line["status"] == 201][-1:]
        requested = new_ones["body"]
        assert (requested["templateID"], requested["timeout"]) == ("base", 120)
        assert requested["network"] == {
            "allowOut": ["203.0.113.7/32"],
            "denyOut": ["0.0.0.0/0"],
            "allowPublicTraffic": False,
        }
        assert not requested.get("autoPause")
        assert set(requested["envVars"]) == {"PYTHONPATH"}
        metadata = requested["metadata"]
        assert metadata.keys() == {"team", "pool", "sandbox", "swarm", "version", "settings"}
        assert (metadata["team"], metadata["sandbox"], metadata["swarm"]) == ("desk", "python", "swarm")
        await there.untouched()


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        {"status": 503, "times": 5, "retry_after": 0},
        {"status": 500, "times": 3},
        {"status": 429, "times": 5, "retry_after": 0},
        {"drop": "after", "times": 1},
    ],
    ids=["busy", "broken", "too fast", "answer lost"],
)
async def test_an_unhealthy_service_is_retried_and_creates_one_sandbox(tmp_path, e2b_standin, fault):
    await e2b_standin.fail(CREATE, method="POST", **fault)
    async with RemoteSwarm(tmp_path, e2b_standin) as swarm:
        there = await swarm.started()
        assert [one["used"] for one in await e2b_standin.faults()] == [fault["times"]]
        [alert] = await there.subscriber.alerted("provider_unavailable")
        assert alert["message"].startswith("creating a sandbox failed at custom endpoint http://127.0.0.1:")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "output"),
    [
        ({"template": '"no-such-template"'}, "template 'no-such-template' not found"),
        ({"cpu": 4096}, "sandboxes.python.cpu is 4096, but template 'base' gives"),
    ],
    ids=["template", "size"],
)
async def test_what_no_retry_fixes_is_reported_and_the_agents_run_locally(tmp_path, e2b_standin, settings, output):
    async with RemoteSwarm(tmp_path, e2b_standin, remote_toml(**settings)) as swarm:
        subscriber = await swarm.up_with_remote()
        [alert] = await subscriber.alerted("sandbox_failed")
        assert output in alert["message"]
        heartbeats = await subscriber.live(*REMOTE_AGENTS)
        assert all(heartbeat["sandbox"] in ("base", "nodejs") for heartbeat in heartbeats.values())
        await subscriber.more_decisions(3)
        assert await e2b_standin.sandboxes() == {}
        await subscriber.until("its word", lambda: subscriber.heartbeats["provider"]["phases"] == {"python": "failed"})
        status = await swarm.command("status", "--json")
        assert [(row["name"], row["status"], row["pid"], row["agents"]) for row in status.json["sandboxes"]][-1] == (
            "python", "failed", None, [],
        )  # fmt: skip
        assert output in status.json["sandboxes"][-1]["reason"]
        [line] = [line for line in (await swarm.command("status")).out.splitlines() if "failed permanently" in line]
        assert line.startswith("python: failed permanently: ")
        assert output in line
        history = await swarm.command("history", "alert")
        assert output in history.out
        doctor = await run_command(tmp_path, "doctor", environment=e2b_standin.environment)
        assert doctor.code == 1
        [line] = [line for line in doctor.out.splitlines() if "failed permanently" in line]
        assert output in line
        assert line.endswith("; its agents run in other sandboxes")
        unhealthy = await swarm.command("health", "provider", "--timeout", "1", "--json")
        assert (unhealthy.code, unhealthy.json["failed"], unhealthy.json["status"]) == (1, ["python"], "live")
        assert "these sandboxes have failed: python" in unhealthy.json["text"]
        assert (await swarm.command("health")).code == 0


@pytest.mark.slow
async def test_a_missing_interpreter_is_reported_and_fails_at_once(tmp_path, e2b_standin):
    async with RemoteSwarm(tmp_path, e2b_standin, remote_toml(python='"/nowhere/python"')) as swarm:
        new_ones = swarm.created()
        subscriber = await swarm.up_with_remote()
        [failed] = await subscriber.alerted("sandbox_failed")
        assert "creating an environment: exit code 127" in failed["message"]
        assert "/nowhere/python" in failed["message"]
        assert len(subscriber.alerts) == 1
        heartbeats = await subscriber.live(*REMOTE_AGENTS)
        assert all(heartbeat["sandbox"] in ("base", "nodejs") for heartbeat in heartbeats.values())
        assert swarm.created() - new_ones == 1
        assert await e2b_standin.sandboxes() == {}


@pytest.mark.slow
async def test_a_bus_that_a_sandbox_cannot_reach_is_reported_with_its_address(tmp_path, e2b_standin):
    async with RemoteSwarm(tmp_path, e2b_standin) as swarm:
        closed = free_port()
        subscriber = await swarm.up_with_remote(f"nats://far:{PASSWORD}@127.0.0.1:{closed}")
        [alert] = await subscriber.alerted("sandbox_no_heartbeat")
        status = await swarm.command("status", "--json")
        assert status.json["sandboxes"][-1]["status"] == "creating"
        assert (
            f"check that it can reach nats://127.0.0.1:{closed} (--public-nats; `allow` and `deny` of the sandbox)"
            in alert["message"]
        )
        assert PASSWORD not in alert["message"]
        assert len(await e2b_standin.sandboxes()) == 1
        swarm.send(swarm.pid_of("provider"), signal.SIGSTOP)
        without_provider = (await swarm.command("status", "--json")).json
        assert without_provider["provider"] is None
        found = without_provider["sandboxes"][-1]
        assert (found["name"], found["provider"], found["status"]) == ("python", "e2b", "not running")
        assert found["reason"] == "no provider is running"
        assert found.keys() == status.json["sandboxes"][-1].keys()


@pytest.mark.slow
async def test_down_waits_for_the_sandbox_that_was_just_requested_and_ends_it(tmp_path, e2b_standin):
    await e2b_standin.fail(CREATE, method="POST", delay_s=3)
    async with RemoteSwarm(tmp_path, e2b_standin) as swarm:
        new_ones = swarm.created()
        await swarm.up_with_remote()

        async def requested():
            return [one["used"] for one in await e2b_standin.faults()] == [1]

        await until(requested)
        await swarm.down()
        assert swarm.created() - new_ones == 1
        assert await e2b_standin.sandboxes() == {}


@pytest.mark.slow
async def test_down_in_the_middle_of_an_installation_ends_the_sandbox_and_invents_no_fault(tmp_path, e2b_standin):
    begun_at = tmp_path / "begun"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ "$1" = -m ] || exit 1\ntouch {begun_at}\nexec sleep 600\n')
    python.chmod(0o755)
    async with RemoteSwarm(tmp_path / "swarm", e2b_standin, remote_toml(python=f'"{python}"', env="{}")) as swarm:
        subscriber = await swarm.up_with_remote()

        async def installing():
            return begun_at.exists()

        await until(installing)
        await swarm.down()
        assert await e2b_standin.sandboxes() == {}
        assert subscriber.alerts == []
        log = (swarm.directory / ".signalmesh/logs/provider.log").read_text()
        assert "provider_retried" not in log
        assert "sandboxes_not_deleted" not in log
