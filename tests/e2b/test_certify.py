"""`certify` of a swarm with remote sandboxes: those of the stand-in of E2B, by the provider."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from bus.utils.processes import die_with_parent
from coordinator.sandboxes import bootstrap, wheel
from tests.acceptance.swarm import (
    AGENTS,
    ENVIRONMENT,
    GUARD_S,
    SANDBOXES,
    SIGNALMESH,
    Ends,
    Finished,
    agents_toml,
    run_command,
)
from tests.e2b.remote import REMOTE_AGENTS, env_toml, remote_toml
from tests.e2b.standin.launch import StandIn
from tests.support.ports import free_port

PLAIN = Path(sys.base_prefix) / "bin" / "python3"
"""An interpreter as a template has it: with nothing of ours."""
INDEX = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
"""pip's settings on this machine; in a sandbox they come from its template or its configuration."""


async def certify(directory: Path, standin: StandIn, *arguments: str) -> Finished:
    port = free_port()
    environment = {**standin.environment, "SIGNALMESH_PUBLIC_NATS": f"nats://127.0.0.1:{port}"}
    requested = ("--json", "--nats-port", str(port), *arguments)
    return await run_command(directory, "certify", *requested, guard_s=280, environment=environment)


def last_probe(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["what"]: row for row in found["cleanup"]["checks"]}


def sandboxes_toml(**settings: Any) -> str:
    """The default swarm with all of its sandboxes remote."""
    lines = "\n".join(f"{key} = {value}" for key, value in settings.items())
    tables = (f'[sandboxes.{name}]\nprovider = "e2b"\n{lines}\n' for name in SANDBOXES)
    return "".join(tables) + agents_toml(speed=20)


@pytest.mark.slow
@pytest.mark.serial
async def test_a_swarm_with_a_remote_sandbox_is_certified(tmp_path: Path, e2b_standin: StandIn):
    file = tmp_path / "swarm.toml"
    file.write_text(remote_toml(price_per_hour=0.4, price_source='"a bill"'))
    done = await certify(tmp_path, e2b_standin, "--config", str(file))
    assert done.code == 0, done.out + done.err
    found = json.loads((tmp_path / "certify.json").read_text())
    assert found["provider"] == "e2b, local"
    assert found["endpoint"] == f"custom endpoint {e2b_standin.environment['E2B_API_URL']}"
    text = (tmp_path / "certify.md").read_text()
    assert f"e2b: {found['endpoint']}" in text
    assert "| e2b |" not in text, "it was not"
    assert "(e2b)" not in text
    [remote] = [row for row in found["sandboxes"] if row["provider"] == "e2b"]
    assert remote["sandbox"] == "python"
    assert remote["name"] != "python", "its host has the name of the sandbox that was made"
    assert remote["agents"] == sorted(REMOTE_AGENTS)
    assert (remote["health"]["price_per_hour"], remote["health"]["price_source"]) == (0.4, "a bill")
    assert remote["health"]["cost"] == pytest.approx(0.4 * remote["health"]["age_s"] / 3600)
    assert remote["health"]["age_s"] > remote["uptime_s"]
    assert {row["name"] for row in found["agents"]} == set(AGENTS)
    assert last_probe(found)["remote sandboxes"]["orphans"] == []
    created = remote["name"].removeprefix("python-")
    how = last_probe(found)["remote sandboxes"]["how"]
    assert f"over the whole run the provider's log has 1 ({created}) created; listed " in how
    assert f" s after `up` was started: 1 ({created} (python, running))" in how
    assert e2b_standin.api_key not in done.out + done.err + (tmp_path / "certify.md").read_text()


@pytest.mark.slow
async def test_sandboxes_that_came_and_went_are_reported(tmp_path: Path, e2b_standin: StandIn):
    """Of no use, so that none is there when they are listed."""
    file = tmp_path / "swarm.toml"
    file.write_text(remote_toml(python='"/nope/python"'))
    before = len(e2b_standin.requests("/v2/sandboxes"))
    done = await certify(tmp_path, e2b_standin, "--config", str(file))
    assert done.code == 1, done.out + done.err
    created = sum(
        line["method"] == "POST" and line["status"] == 201 and not line["path"].endswith("/connect")
        for line in e2b_standin.requests("/v2/sandboxes")[before:]
    )
    assert created >= 1
    how = last_probe(json.loads((tmp_path / "certify.json").read_text()))["remote sandboxes"]["how"]
    assert f"over the whole run the provider's log has {created} (" in how
    assert "after `up` was started: none" in how


@pytest.mark.slow
@pytest.mark.serial
@pytest.mark.timeout(300)
async def test_empty_templates_get_the_program_and_the_report_has_how(tmp_path: Path, e2b_standin: StandIn):
    """The real thing, in all three sandboxes at once, from a package index."""
    env = "{ " + ", ".join(f"{name} = {json.dumps(value)}" for name, value in INDEX.items()) + " }"
    file = tmp_path / "swarm.toml"
    file.write_text(sandboxes_toml(python=json.dumps(str(PLAIN)), env=env))
    done = await certify(tmp_path, e2b_standin, "--config", str(file))
    assert done.code == 0, done.out + done.err
    found = json.loads((tmp_path / "certify.json").read_text())
    text = (tmp_path / "certify.md").read_text()
    assert {row["sandbox"] for row in found["sandboxes"]} == set(SANDBOXES)
    assert any(".whl" in json.dumps(line) for line in e2b_standin.log())
    for row in found["sandboxes"]:
        installed = row["probe"]["installed"]
        assert row["name"] == f"{row['sandbox']}-{installed['sandbox_id']}"
        assert installed["by"].startswith("uv "), installed["why"]
        assert installed["duration_s"] * 1000 < row["received_ms"]
        assert sum(installed["steps"].values()) <= installed["duration_s"] + 0.1
        assert f"- {row['name']}: installed by {installed['by']} in {installed['duration_s']:.2f} s" in text


@pytest.mark.slow
@pytest.mark.serial
@pytest.mark.timeout(300)
async def test_a_template_with_the_program_is_used_as_it_is(tmp_path: Path, e2b_standin: StandIn):
    """Its installation is a real one: everything that is locked, and the wheel of this code."""
    venv = tmp_path / "template"
    name, content = wheel.wheel()
    (tmp_path / name).write_bytes(content)
    for lock in (wheel.LOCK, wheel.TOOLS_LOCK):
        (tmp_path / lock).write_bytes(wheel.lock_file(lock))
    subprocess.run([PLAIN, "-m", "venv", "--without-pip", venv], check=True)
    files = [tmp_path / file for file in (wheel.LOCK, wheel.TOOLS_LOCK, name)]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **INDEX}
    subprocess.run([venv / "bin/python", bootstrap.__file__, PLAIN, *files], env=environment, check=True)
    await e2b_standin.limits(templates=["signalmesh"])
    before = len(e2b_standin.log())
    file = tmp_path / "swarm.toml"
    file.write_text(sandboxes_toml(template='"signalmesh"', python=json.dumps(str(venv / "bin/python"))))
    done = await certify(tmp_path, e2b_standin, "--config", str(file))
    assert done.code == 0, done.out + done.err
    found = json.loads((tmp_path / "certify.json").read_text())
    text = (tmp_path / "certify.md").read_text()
    assert len(found["sandboxes"]) == len(SANDBOXES)
    for row in found["sandboxes"]:
        assert row["probe"]["installed"] is None
        assert f"- {row['name']}: it was installed before\n" in text
    assert not any(".whl" in json.dumps(line) for line in e2b_standin.log()[before:]), "something was installed"


@pytest.mark.slow
async def test_a_sandbox_that_cannot_be_deleted_is_left_and_its_record_stays(
    tmp_path: Path, e2b_standin: StandIn, monkeypatch: pytest.MonkeyPatch
):
    """As the provider lists it: deletions fail, and nothing else does."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setitem(ENVIRONMENT, "TMPDIR", str(temporary))
    await e2b_standin.fail("/sandboxes/*", method="DELETE", status=500, times=None)
    file = tmp_path / "swarm.toml"
    file.write_text(remote_toml())
    done = await certify(tmp_path, e2b_standin, "--config", str(file))
    assert done.code == 1, done.out + done.err
    found = json.loads((tmp_path / "certify.json").read_text())
    [left_there] = await e2b_standin.sandboxes()
    [output] = last_probe(found)["remote sandboxes"]["orphans"]
    assert output.startswith(f"sandbox {left_there} (python, running) at custom endpoint")
    assert any(output in problem for problem in found["problems"])
    [directory] = temporary.glob("signalmesh-certify-*")
    assert str(directory) in last_probe(found)["directory"]["orphans"][0]
    doctor = await run_command(tmp_path, "doctor", "--json", environment=e2b_standin.environment)
    found = {row["check"]: row for row in doctor.json["findings"]}
    assert left_there in found["earlier certify: sandboxes"]["text"]
    await e2b_standin.clear()


@pytest.mark.slow
@pytest.mark.serial
@pytest.mark.parametrize("for_good", [True, False], ids=["failed", "replaced"])
async def test_a_sandbox_that_vanishes_in_the_run_is_not_called_active(
    tmp_path: Path, e2b_standin: StandIn, for_good: bool
):
    process = await certify_until_rounds(tmp_path, e2b_standin)
    [gone] = await e2b_standin.sandboxes()
    if for_good:
        await e2b_standin.fail("/v2/sandboxes", method="POST", status=403, times=None)
    await e2b_standin.vanish(gone)
    _, err = await process.communicate()
    await e2b_standin.clear()
    output, found = err.decode(), json.loads((tmp_path / "certify.json").read_text())
    text = (tmp_path / "certify.md").read_text()
    rows = {row["name"]: row for row in found["sandboxes"] if row["sandbox"] == "python"}
    lost = rows.pop(f"python-{gone}")
    assert (lost["state"], lost["agents"]) == ("lost", [])
    assert "last heartbeat of its host" in lost["why"]
    assert f'["python-{gone} (' not in text, "it is in no drawing"
    deployed = next(target for target in found["targets"] if target["name"] == "sandboxes deployed")
    assert f"**Sandbox python-{gone} was lost**" in text
    if for_good:
        assert (process.returncode, deployed["measured"], rows) == (1, 2.0, {})
        assert any("sandbox python failed permanently" in problem for problem in found["problems"])
        assert "- 2 of 3 sandboxes and 5 of 5 agents were active at the end of the run." in text
        assert "critical: sandbox_failed: sandbox python failed permanently" in output
        assert "sandbox python failed permanently" in found["alert_texts"]["sandbox_failed"]
    else:
        assert (process.returncode, deployed["measured"]) == (0, 3.0), output
        [another] = rows.values()
        assert (another["state"], another["why"]) == ("active", "it started after the probing")
        assert "- 3 of 3 sandboxes and 5 of 5 agents were active at the end of the run." in text


@pytest.mark.slow
@pytest.mark.serial
async def test_a_sandbox_that_vanishes_in_the_last_moment_is_not_called_active(tmp_path: Path, e2b_standin: StandIn):
    """Certify itself is held meanwhile, so that it has no time to notice by chance."""
    process = await certify_until(tmp_path, e2b_standin, b"reading back what is stored", remote_toml())
    process.send_signal(signal.SIGSTOP)
    [gone] = await e2b_standin.sandboxes()
    await e2b_standin.vanish(gone)
    process.send_signal(signal.SIGCONT)
    _, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    found = json.loads((tmp_path / "certify.json").read_text())
    states = {row["name"]: row["state"] for row in found["sandboxes"] if row["sandbox"] == "python"}
    assert states.pop(f"python-{gone}") == "lost"
    assert list(states.values()) == ["active"], "the run ended before there was another one"
    assert {row["status"] for row in found["agents"]} == {"active"}
    assert f"**Sandbox python-{gone} was lost**" in (tmp_path / "certify.md").read_text()


async def certify_until_rounds(directory: Path, standin: StandIn) -> asyncio.subprocess.Process:
    """Started, and at a step at which its sandbox exists."""
    return await certify_until(directory, standin, b"until rounds are decided", remote_toml())


async def certify_until(
    directory: Path, standin: StandIn, step: bytes, toml: str, public: str = ""
) -> asyncio.subprocess.Process:
    """Started, and at that step; `public` is the address that sandboxes are given, if not the right one."""
    port = free_port()
    public = public or f"nats://127.0.0.1:{port}"
    environment = {**ENVIRONMENT, **standin.environment, "SIGNALMESH_PUBLIC_NATS": public}
    file = directory / "swarm.toml"
    file.write_text(toml)
    process = await asyncio.create_subprocess_exec(
        str(SIGNALMESH), "certify", "--config", str(file), "--nats-port", str(port),
        cwd=directory, env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE, preexec_fn=functools.partial(die_with_parent, os.getpid()),
    )  # fmt: skip
    assert process.stderr is not None
    async with asyncio.timeout(2 * GUARD_S):
        async for line in process.stderr:
            if step in line:
                break
    return process


@pytest.mark.slow
async def test_each_sandbox_without_heartbeat_is_reported_while_it_is_waited_for(tmp_path: Path, e2b_standin: StandIn):
    """Nothing listens at the bus URL of the sandboxes. Certify ends with that, and waits for nothing else."""
    toml = sandboxes_toml(python=json.dumps(sys.executable), env=env_toml())
    step, nowhere = b"waiting for the hosts", "nats://somebody:secret-word@127.0.0.1:9"
    process = await certify_until(tmp_path, e2b_standin, step, toml, nowhere)
    assert process.stderr is not None
    without_heartbeat: dict[str, str] = {}
    async with asyncio.timeout(2 * GUARD_S):
        while len(without_heartbeat) < len(SANDBOXES):
            line = (await process.stderr.readline()).decode()
            _, alert, text = line.partition("warning: sandbox_no_heartbeat: sandbox ")
            assert alert, f"not what the user needs to know: {line}"
            assert "check that it can reach nats://127.0.0.1:9 (--public-nats" in text
            without_heartbeat[text.partition("-")[0]] = text
    assert set(without_heartbeat) == set(SANDBOXES)
    assert "secret-word" not in "".join(without_heartbeat.values())
    await process.communicate()
    assert process.returncode == 1
    found = json.loads((tmp_path / "certify.json").read_text())
    assert [step["name"].partition(" ")[0] for step in found["steps"]] == ["deploying", "waiting", "cleaning"]
    for name in SANDBOXES:
        [problem] = [text for text in found["problems"] if text.startswith(f"sandbox {name}-")]
        assert "check that it can reach nats://127.0.0.1:9 (--public-nats" in problem
    assert not any(target["ok"] for target in found["targets"])
    assert last_probe(found)["remote sandboxes"]["orphans"] == []


@pytest.mark.slow
async def test_one_sandbox_without_heartbeat_ends_certify_too(tmp_path: Path, e2b_standin: StandIn):
    """The others, of this machine, run the agents meanwhile."""
    nowhere = "nats://127.0.0.1:9"
    process = await certify_until(tmp_path, e2b_standin, b"waiting for the hosts", remote_toml(), nowhere)
    await process.communicate()
    assert process.returncode == 1
    found = json.loads((tmp_path / "certify.json").read_text())
    assert [step["name"].partition(" ")[0] for step in found["steps"]] == ["deploying", "waiting", "cleaning"]
    assert any(f"check that it can reach {nowhere}" in problem for problem in found["problems"])
    states = {row["sandbox"]: row["state"] for row in found["sandboxes"]}
    assert (states["base"], states["nodejs"]) == ("active", "active")


@pytest.mark.slow
async def test_breaking_it_off_names_the_sandbox_that_could_not_be_ended(
    tmp_path: Path, e2b_standin: StandIn, monkeypatch: pytest.MonkeyPatch
):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setitem(ENVIRONMENT, "TMPDIR", str(temporary))
    process = await certify_until_rounds(tmp_path, e2b_standin)
    await e2b_standin.fail("/sandboxes/*", method="DELETE", status=500, times=None)
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert process.returncode == 130
    [left_there] = await e2b_standin.sandboxes()
    [directory] = temporary.glob("signalmesh-certify-*")
    output = err.decode()
    assert f"left behind: sandbox {left_there} (python, running) at custom endpoint" in output
    assert f"the directory {directory}: `signalmesh doctor` prints the remedy" in output
    await e2b_standin.clear()


@pytest.mark.slow
async def test_sandboxes_of_a_certify_that_was_killed_are_found(
    tmp_path: Path, e2b_standin: StandIn, monkeypatch: pytest.MonkeyPatch
):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setitem(ENVIRONMENT, "TMPDIR", str(temporary))
    process = await certify_until_rounds(tmp_path, e2b_standin)
    ends = await Ends.of(*(child.pid for child in psutil.Process(process.pid).children(recursive=True)))
    process.kill()
    await process.wait()
    await ends.all()
    [left_there] = await e2b_standin.sandboxes()
    [directory] = temporary.glob("signalmesh-certify-*")
    doctor = await run_command(tmp_path, "doctor", "--json", environment=e2b_standin.environment)
    found = {row["check"]: row for row in doctor.json["findings"]}
    sandboxes = found["earlier certify: sandboxes"]
    assert sandboxes["level"] == "warning"
    assert f"{left_there} (python, running)" in sandboxes["text"]
    assert sandboxes["remedy"] == f"signalmesh down --state-dir {directory}/state"
    assert found["earlier certify"]["remedy"].startswith(f"rm -r {directory}, once none of its sandboxes is left")
    state_dir = ("--state-dir", f"{directory}/state")
    down = await run_command(tmp_path, "down", *state_dir, environment=e2b_standin.environment)
    assert (down.code, await e2b_standin.sandboxes()) == (0, {})
    assert left_there in down.out
