"""The provider of E2B, against the stand-in: a sandbox with agents in it, and whatever can become of it.

The SDK is the real one, as are `up`, the hosts, the agents and the bus. What the stand-in is not, its module says.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from e2b import AsyncSandbox

from tests.acceptance.swarm import ENVIRONMENT, Ends, run_verb
from tests.e2b.far import FAR_AGENTS, FarSwarm, far_toml
from tests.support.cluster import free_ports

PASSWORD = "keep" + "-this-to-yourself"


# What is refused before anything starts


async def refused(directory: Path, environment: dict[str, str], *arguments: str) -> str:
    """What `up` says when it does not start; nothing is left of it."""
    directory.mkdir(exist_ok=True)
    (directory / "swarm.toml").write_text(far_toml())
    done = await run_verb(directory, "up", "--port", "0", *arguments, environment=environment)
    assert done.code == 2, done.out + done.err
    assert not (directory / ".signalmesh").exists()
    return done.err


async def test_up_without_a_key_says_where_to_get_one(tmp_path, e2b_standin):
    said = await refused(
        tmp_path, {**e2b_standin.environment, "E2B_API_KEY": ""}, "--public-nats", "nats://127.0.0.1:1"
    )
    assert "E2B_API_KEY is not set" in said
    assert "https://e2b.dev/dashboard?tab=keys" in said


async def test_up_with_a_wrong_key_does_not_show_it(tmp_path, e2b_standin):
    wrong = "e2b_" + "0" * 20
    said = await refused(
        tmp_path, {**e2b_standin.environment, "E2B_API_KEY": wrong}, "--public-nats", "nats://127.0.0.1:1"
    )
    assert "does not accept this key" in said
    assert f"another endpoint than E2B's, {e2b_standin.environment['E2B_API_URL']}" in said
    assert wrong not in said


async def test_up_needs_an_address_that_a_sandbox_can_reach(tmp_path, e2b_standin):
    assert "--public-nats" in await refused(tmp_path, e2b_standin.environment)
    at_e2b = {"E2B_API_KEY": "of no use", "E2B_API_URL": "", "E2B_SANDBOX_URL": "", "E2B_DOMAIN": ""}
    said = await refused(tmp_path, at_e2b, "--public-nats", "nats://127.0.0.1:4222")
    assert "a sandbox at E2B cannot reach nats://127.0.0.1:4222" in said


async def test_a_file_that_is_not_there_is_named_by_its_key(tmp_path, e2b_standin):
    (tmp_path / "swarm.toml").write_text(far_toml(files='["mine.py"]'))
    done = await run_verb(tmp_path, "up", "--public-nats", "nats://127.0.0.1:1", environment=e2b_standin.environment)
    assert done.code == 2
    assert "sandboxes.python.files[0]: expected a file or directory" in done.err


# A sandbox that works


@pytest.mark.slow
async def test_agents_of_a_sandbox_that_vanishes_go_on_elsewhere_and_nothing_is_lost(tmp_path, e2b_standin):
    async with FarSwarm(tmp_path, e2b_standin) as swarm:
        ear = await swarm.far_up()
        host = await swarm.far_host(ear)
        before = await swarm.agents_in(ear, host)
        [(sandbox_id, shown)] = (await e2b_standin.sandboxes()).items()
        assert host == f"python-{sandbox_id}"
        assert {beat["pid"] for beat in before.values()} <= set(shown["pids"]), "the agents do not run in the sandbox"
        assert ear.beats[host]["group"] == "python"
        status = (await swarm.verb("status", "--json")).json
        [row] = [row for row in status["sandboxes"] if row["name"] == host]
        assert (row["provider"], row["status"], sorted(row["agents"])) == ("e2b", "active", sorted(FAR_AGENTS))
        await ear.decided(280)

        await e2b_standin.vanish(sandbox_id)
        after = await ear.back({name: beat["epoch"] for name, beat in before.items()})
        assert all(beat["sandbox"] in ("base", "nodejs") for beat in after.values())
        another = await swarm.far_host(ear, other_than=host)
        [gone] = await ear.alerted("sandbox_gone")
        assert f"sandbox {host} is lost and replaced" in gone["message"]
        assert await ear.alerted("sandbox_lost"), "the watchdog did not notice"
        await ear.more_decisions(5)
        await swarm.assert_exact()
        [now] = await e2b_standin.sandboxes()
        assert another == f"python-{now}"
        assert swarm.logged("sandbox_made")[-1]["at"].startswith("another endpoint than E2B's, http://127.0.0.1:")

        down = await swarm.verb("down")
        assert down.code == 0, down.err
        await swarm.wait()
        assert await e2b_standin.sandboxes() == {}


@pytest.mark.slow
async def test_a_killed_launcher_finds_its_sandbox_again_and_makes_no_second_one(tmp_path, e2b_standin):
    async with FarSwarm(tmp_path, e2b_standin) as swarm:
        ear = await swarm.far_up()
        host = await swarm.far_host(ear)
        before = await swarm.agents_in(ear, host)
        made, pid = swarm.created(), ear.beats[host]["pid"]
        swarm.send(swarm.pid_of("provider"), signal.SIGKILL)
        [attached] = await swarm.until_logged("host_attached")
        assert attached["pid"] == pid
        assert await ear.alerted("provider_died")
        await ear.more_beats(3, host, *FAR_AGENTS)
        assert ear.beats[host]["pid"] == pid
        assert {name: ear.beats[name]["epoch"] for name in FAR_AGENTS} == {n: b["epoch"] for n, b in before.items()}
        assert swarm.created() == made
        assert list(await e2b_standin.sandboxes()) == [host.removeprefix("python-")]
        assert (await swarm.verb("down")).code == 0
        await swarm.wait()
        assert await e2b_standin.sandboxes() == {}


@pytest.mark.slow
async def test_the_next_run_takes_over_what_a_killed_one_has_left(tmp_path, e2b_standin):
    async with FarSwarm(tmp_path, e2b_standin) as swarm:
        ear = await swarm.far_up()
        host = await swarm.far_host(ear)
        await swarm.agents_in(ear, host)
        await swarm.end(signal.SIGKILL)
        assert list(await e2b_standin.sandboxes()) == [host.removeprefix("python-")]
        doctor = await run_verb(tmp_path, "doctor", environment=e2b_standin.environment)
        assert "has these of an earlier run, which cost until their lifetime ends" in doctor.out
        assert f"{host.removeprefix('python-')} (python, running)" in doctor.out
        assert f"another endpoint than E2B's, {e2b_standin.environment['E2B_API_URL']}" in doctor.out
        ear = await swarm.far_up()
        assert await swarm.far_host(ear) == host
        await swarm.agents_in(ear, host)
        [adopted] = await swarm.until_logged("sandbox_adopted")
        assert adopted["sandbox_id"] == host.removeprefix("python-")
        await swarm.until_logged("host_attached")
        assert list(await e2b_standin.sandboxes()) == [host.removeprefix("python-")]
        await swarm.assert_exact()


# Secrets


def texts(value: Any) -> Iterator[str]:
    """All texts in a JSON value, and what they say where they are base64."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        for item in value:
            yield from texts(item)
    elif isinstance(value, str):
        yield value
        with contextlib.suppress(ValueError):
            yield base64.b64decode(value, validate=True).decode()


@pytest.mark.slow
async def test_neither_key_nor_credentials_stand_where_others_can_read(tmp_path, e2b_standin):
    """The key is the launcher's alone. The bus's password passes through StreamInput, which nobody logs."""
    key = e2b_standin.api_key
    async with FarSwarm(tmp_path, e2b_standin) as swarm:
        ear = await swarm.far_up(f"nats://far:{PASSWORD}@127.0.0.1:{swarm.port}")
        host = await swarm.far_host(ear)
        await swarm.agents_in(ear, host)
        [shown] = (await e2b_standin.sandboxes()).values()
        launcher = swarm.pid_of("provider")
        ours = [process for process in swarm.everybody() if process.pid != swarm.process.pid]
        assert launcher in {process.pid for process in ours}
        for process in [*ours, *map(psutil.Process, shown["pids"])]:
            argv, environment = " ".join(process.cmdline()), process.environ()
            assert key not in argv
            assert PASSWORD not in argv
            if process.pid != launcher:
                values = " ".join(environment.values())
                known = [name for name, secret in (("key", key), ("password", PASSWORD)) if secret in values]
                assert known == [], argv  # a failure must not print anybody's environment
        ways = set()
        for line in e2b_standin.log():
            unlogged = " ".join(texts(line.pop("unlogged", None)))
            assert key not in " ".join(texts(line)) + unlogged
            assert PASSWORD not in " ".join(texts(line)), line
            if PASSWORD in unlogged:
                ways.add(line["kind"])
        assert ways == {"stream_input"}
        logs = [*(tmp_path / ".signalmesh").rglob("*.log"), *Path(shown["home"]).rglob("*.log"), tmp_path / "up.err"]
        assert {"provider.log", "host.log", "up.err"} <= {path.name for path in logs}
        for path in [*logs, tmp_path / ".signalmesh" / "e2b.json", tmp_path / ".signalmesh" / "run.json"]:
            text = path.read_text()
            assert key not in text, path
            assert PASSWORD not in text, path
        heard = b"".join(said.data for said in ear.said).decode() + json.dumps(ear.beats)
        assert key not in heard
        assert PASSWORD not in heard


# Faults


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
async def test_a_service_that_is_ill_is_asked_again_and_makes_one_sandbox(tmp_path, e2b_standin, fault):
    await e2b_standin.fail("/v2/sandboxes", method="POST", **fault)
    async with FarSwarm(tmp_path, e2b_standin) as swarm:
        ear = await swarm.far_up()
        host = await swarm.far_host(ear)
        await swarm.agents_in(ear, host)
        assert [one["used"] for one in await e2b_standin.faults()] == [fault["times"]]
        assert list(await e2b_standin.sandboxes()) == [host.removeprefix("python-")]
        if fault.get("status") != 503 or len(swarm.logged("provider_retried")):
            assert await ear.alerted("provider_ill")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"template": '"no-such-template"'}, "template 'no-such-template' not found"),
        ({"cpu": 4096}, "sandboxes.python.cpu is 4096, but template 'base' gives"),
    ],
    ids=["template", "size"],
)
async def test_what_no_repetition_mends_is_told_and_the_agents_run_elsewhere(tmp_path, e2b_standin, settings, said):
    async with FarSwarm(tmp_path, e2b_standin, far_toml(**settings)) as swarm:
        ear = await swarm.far_up()
        [alert] = await ear.alerted("sandbox_given_up")
        assert said in alert["message"]
        beats = await ear.live(*FAR_AGENTS)
        assert all(beat["sandbox"] in ("base", "nodejs") for beat in beats.values())
        await ear.more_decisions(3)
        assert await e2b_standin.sandboxes() == {}


@pytest.mark.slow
async def test_a_broken_stream_is_no_death(tmp_path, e2b_standin):
    async with FarSwarm(tmp_path, e2b_standin) as swarm:
        ear = await swarm.far_up()
        host = await swarm.far_host(ear)
        before = await swarm.agents_in(ear, host)
        [sandbox_id] = await e2b_standin.sandboxes()
        made, pid = swarm.created(), ear.beats[host]["pid"]
        for count in (1, 2):
            await e2b_standin.reset(sandbox_id)
            await swarm.until_logged("host_attached", count)
        await ear.more_beats(3, host, *FAR_AGENTS)
        assert (ear.beats[host]["pid"], swarm.created()) == (pid, made)
        assert {name: ear.beats[name]["epoch"] for name in FAR_AGENTS} == {n: b["epoch"] for n, b in before.items()}


@pytest.mark.slow
async def test_a_host_that_is_killed_in_its_sandbox_is_started_there_again(tmp_path, e2b_standin):
    async with FarSwarm(tmp_path, e2b_standin) as swarm:
        ear = await swarm.far_up()
        host = await swarm.far_host(ear)
        before = await swarm.agents_in(ear, host)
        made, pid = swarm.created(), ear.beats[host]["pid"]
        ends = await Ends.of(pid, *(beat["pid"] for beat in before.values()))
        os.kill(pid, signal.SIGKILL)
        await ends.all()
        await ear.until("another host", lambda: ear.beats[host]["pid"] != pid)
        await ear.back({name: beat["epoch"] for name, beat in before.items()})
        assert swarm.created() == made
        await swarm.assert_exact()


@pytest.mark.slow
async def test_a_paused_sandbox_is_resumed_and_what_ran_in_it_is_fenced(tmp_path, e2b_standin):
    async with FarSwarm(tmp_path, e2b_standin, far_toml(timeout_s=6)) as swarm:
        ear = await swarm.far_up()
        host = await swarm.far_host(ear)
        before = await swarm.agents_in(ear, host)
        [sandbox_id] = await e2b_standin.sandboxes()
        ends = await Ends.of(*(beat["pid"] for beat in before.values()))
        launcher = swarm.pid_of("provider")
        swarm.send(launcher, signal.SIGSTOP)  # else it is resumed before anybody is missed
        assert await AsyncSandbox.pause(sandbox_id)
        await ear.back({name: beat["epoch"] for name, beat in before.items()})
        swarm.send(launcher, signal.SIGCONT)
        await swarm.until_logged("sandbox_resumed")
        await ends.all()
        await ear.more_beats(3, host)
        assert list(await e2b_standin.sandboxes()) == [sandbox_id]
        await ear.more_decisions(3)
        await swarm.assert_exact()


@pytest.mark.slow
async def test_a_lifetime_is_renewed_and_where_it_was_not_another_sandbox_comes(tmp_path, e2b_standin):
    async with FarSwarm(tmp_path, e2b_standin, far_toml(timeout_s=6)) as swarm:
        ear = await swarm.far_up()
        host = await swarm.far_host(ear)
        before = await swarm.agents_in(ear, host)
        [sandbox_id] = await e2b_standin.sandboxes()
        async with asyncio.timeout(60):
            while len(e2b_standin.requests(f"/sandboxes/{sandbox_id}/timeout")) < 4:  # more than its first lifetime
                await asyncio.sleep(0.2)
        assert list(await e2b_standin.sandboxes()) == [sandbox_id]
        launcher = swarm.pid_of("provider")
        swarm.send(launcher, signal.SIGSTOP)
        await ear.back({name: beat["epoch"] for name, beat in before.items()})
        assert await e2b_standin.sandboxes() == {}
        swarm.send(launcher, signal.SIGCONT)
        assert await swarm.far_host(ear, other_than=host)
        await swarm.assert_exact()


@pytest.mark.slow
async def test_before_its_greatest_age_a_sandbox_hands_over_to_another(tmp_path, e2b_standin):
    settings = {"timeout_s": 6, "max_age_s": 40, "replace_at": 0.3}
    async with FarSwarm(tmp_path, e2b_standin, far_toml(**settings)) as swarm:
        ear = await swarm.far_up()
        host = await swarm.far_host(ear)
        await swarm.agents_in(ear, host)
        another = await swarm.far_host(ear, other_than=host)
        await swarm.agents_in(ear, another)
        assert not [event for event in ear.lifecycle if event["event"] == "exited" and event["agent"] == host]
        reasons = [event["reason"] for event in ear.lifecycle if event["event"] == "declared_dead"]
        assert set(reasons) == {"its sandbox host is ending"}, "they were not drained"
        await ear.more_decisions(3)
        await swarm.assert_exact()


@pytest.mark.slow
async def test_what_cannot_be_installed_is_told_with_the_end_of_what_it_said(tmp_path, e2b_standin):
    async with FarSwarm(tmp_path, e2b_standin, far_toml(python='"/nowhere/python"')) as swarm:
        made = swarm.created()
        ear = await swarm.far_up()
        alert = (await ear.alerted("sandbox_not_installed"))[0]
        assert "making an environment: exit code 127" in alert["message"]
        assert "/nowhere/python" in alert["message"]
        [given_up] = await ear.alerted("sandbox_given_up")
        assert "3 in a row were of no use" in given_up["message"]
        beats = await ear.live(*FAR_AGENTS)
        assert all(beat["sandbox"] in ("base", "nodejs") for beat in beats.values())
        assert swarm.created() - made == 3
        assert await e2b_standin.sandboxes() == {}


@pytest.mark.slow
async def test_an_api_that_is_down_is_waited_for(tmp_path, e2b_standin):
    await e2b_standin.ports(api=False)
    async with FarSwarm(tmp_path, e2b_standin) as swarm:
        ear = await swarm.far_up()
        assert "did not answer" in swarm.errors
        assert await ear.alerted("provider_ill")
        await e2b_standin.ports(api=True)
        host = await swarm.far_host(ear)
        await swarm.agents_in(ear, host)
        # and while it is down again, the sandbox and its host live on
        await e2b_standin.ports(api=False)
        await ear.more_decisions(20)
        await ear.more_beats(3, host, *FAR_AGENTS)
        await e2b_standin.ports(api=True)


@pytest.mark.slow
async def test_a_bus_that_cannot_be_reached_from_there_is_told_with_its_address(tmp_path, e2b_standin):
    async with FarSwarm(tmp_path, e2b_standin) as swarm:
        [closed] = free_ports(1)
        ear = await swarm.far_up(f"nats://far:{PASSWORD}@127.0.0.1:{closed}")
        [alert] = await ear.alerted("sandbox_unheard")
        assert f"can it reach nats://127.0.0.1:{closed} from there (--public-nats)?" in alert["message"]
        assert PASSWORD not in alert["message"]
        assert len(await e2b_standin.sandboxes()) == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_an_empty_template_gets_our_wheel_and_what_it_needs(tmp_path, e2b_standin):
    """The real thing: a virtual environment, hashes, and a package index."""
    plain = Path(sys.base_prefix) / "bin" / "python3"
    index = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_CERT_"))}
    env = "{ " + ", ".join(f"{name} = {json.dumps(value)}" for name, value in index.items()) + " }"
    async with FarSwarm(tmp_path, e2b_standin, far_toml(python=json.dumps(str(plain)), env=env)) as swarm:
        ear = await swarm.far_up()
        async with asyncio.timeout(800):
            while not swarm.logged("signalmesh_installed"):
                assert not ear.alerts, ear.alerts
                await asyncio.sleep(1)
        host = await swarm.far_host(ear)
        await swarm.agents_in(ear, host)
        [shown] = (await e2b_standin.sandboxes()).values()
        assert psutil.Process(ear.beats[host]["pid"]).cmdline()[0].startswith(shown["home"])
        await ear.more_decisions(3)
        await swarm.assert_exact()


@pytest.mark.slow
async def test_down_ends_in_spite_of_a_vanished_sandbox_and_tells_of_one_that_it_cannot_reach(tmp_path, e2b_standin):
    async with FarSwarm(tmp_path, e2b_standin) as swarm:
        ear = await swarm.far_up()
        host = await swarm.far_host(ear)
        await swarm.agents_in(ear, host)
        await e2b_standin.ports(api=False, envd=False)
        down = await swarm.verb("down")
        assert down.code == 0, down.err
        await swarm.wait()
        sandbox_id = host.removeprefix("python-")
        assert sandbox_id in down.out, down.out
        assert "may still run at another endpoint than E2B's" in down.out
        record = json.loads((tmp_path / ".signalmesh" / "e2b.json").read_text())
        assert [left["id"] for left in record["sandboxes"]] == [sandbox_id]
        doctor = await run_verb(tmp_path, "doctor", environment=ENVIRONMENT)
        assert sandbox_id in doctor.out
