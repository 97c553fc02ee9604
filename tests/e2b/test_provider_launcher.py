"""The launcher of sandboxes at E2B dies, hangs or aborts, and what it has made lives on until it is ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from signalmesh import python_command
from tests.acceptance.swarm import AGENTS, ENVIRONMENT, run_command
from tests.e2b.remote import RemoteSwarm


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT], ids=["killed", "aborted"])
async def test_a_launcher_that_dies_finds_its_sandbox_again_and_makes_no_second_one(tmp_path, e2b_standin, number):
    async with RemoteSwarm(tmp_path, e2b_standin) as swarm:
        there = await swarm.started()
        swarm.send(there.launcher, number)
        [attached] = await swarm.until_logged("host_attached")
        assert attached["pid"] == there.pid
        [died] = await there.subscriber.alerted("provider_died")
        assert f"ended with signal {number.value}" in died["message"]
        await there.untouched()
        await swarm.down()


@pytest.mark.slow
async def test_an_unresponsive_launcher_is_replaced_and_its_successor_ends_nothing(tmp_path, e2b_standin):
    async with RemoteSwarm(tmp_path, e2b_standin) as swarm:
        there = await swarm.started()
        unresponsive = there.launcher
        status = await swarm.command("status", "--json")
        at = f"custom endpoint {e2b_standin.environment['E2B_API_URL']}"
        assert status.json["provider"] == {"pid": unresponsive, "status": "live", "endpoint": at}
        assert (
            f"remote sandboxes are created at {at}, by provider {unresponsive}: live"
            in (await swarm.command("status")).out
        )
        assert (await swarm.command("health", "provider")).code == 0
        swarm.send(unresponsive, signal.SIGSTOP)
        without_heartbeat = (await swarm.command("status")).out
        assert f"no provider runs: the lifetimes of the sandboxes are not renewed at {at}" in without_heartbeat
        [row] = [line for line in without_heartbeat.splitlines() if line.startswith(f"{there.host} ")]
        assert row.split("  ")[1] == "e2b, custom endpoint"
        [found] = [
            row for row in (await swarm.command("status", "--json")).json["sandboxes"] if row["name"] == there.host
        ]
        assert (found["provider"], found["endpoint"]) == ("e2b", at)
        [alert] = await there.subscriber.alerted("provider_unresponsive")
        assert f"(pid {unresponsive}) runs, but has sent no heartbeat for" in alert["message"]
        [attached] = await swarm.until_logged("host_attached")
        assert attached["pid"] == there.pid
        [adopted] = swarm.logged("sandbox_adopted")
        assert adopted["sandbox_id"] == there.sandbox_id
        assert swarm.logged("orphan_sandbox_deleted") == []
        await there.untouched()
        assert there.launcher != unresponsive
        status = await swarm.command("status", "--json")
        assert status.json["provider"] == {"pid": there.launcher, "status": "live", "endpoint": at}
        assert [alert["code"] for alert in there.subscriber.alerts] == ["provider_unresponsive", "provider_died"]
        assert not [event for event in there.subscriber.lifecycle if event["event"] in ("exited", "declared_dead")]
        await swarm.assert_exact()
        await swarm.down()


@pytest.mark.slow
async def test_the_next_run_takes_over_what_a_killed_one_has_left(tmp_path, e2b_standin):
    async with RemoteSwarm(tmp_path, e2b_standin) as swarm:
        there = await swarm.started()
        await swarm.end(signal.SIGKILL)
        assert list(await e2b_standin.sandboxes()) == [there.sandbox_id]
        doctor = await run_command(tmp_path, "doctor", environment=e2b_standin.environment)
        assert "has these sandboxes of an earlier run, which cost money until their lifetime ends" in doctor.out
        assert f"{there.sandbox_id} (python, running)" in doctor.out
        assert f"custom endpoint {e2b_standin.environment['E2B_API_URL']}" in doctor.out
        again = await swarm.started()
        assert again.host == there.host
        [adopted] = await swarm.until_logged("sandbox_adopted")
        assert adopted["sandbox_id"] == there.sandbox_id
        await swarm.until_logged("host_attached")
        assert list(await e2b_standin.sandboxes()) == [there.sandbox_id]
        await swarm.assert_exact()


@pytest.mark.slow
async def test_down_ends_what_a_killed_run_has_left_without_starting_a_swarm(tmp_path, e2b_standin):
    async with RemoteSwarm(tmp_path, e2b_standin) as swarm:
        there = await swarm.started()
        await swarm.end(signal.SIGKILL)
        without = await run_command(tmp_path, "down")
        assert without.code == 2
        assert f"which cost until their lifetime ends: {there.sandbox_id}; set E2B_API_KEY" in without.err
        assert list(await e2b_standin.sandboxes()) == [there.sandbox_id]
        await e2b_standin.fail("/sandboxes/*", method="DELETE", status=404)  # "not there": but it is
        unheeded = await run_command(tmp_path, "down", environment=e2b_standin.environment)
        assert unheeded.code == 1
        assert f"could not be deleted: {there.sandbox_id}: it is still listed" in unheeded.out
        down = await run_command(tmp_path, "down", "--json", environment=e2b_standin.environment)
        assert down.code == 0, down.err
        reported = down.json
        assert reported.pop("duration_s") > 0
        assert reported == {
            "swarm": None,
            "pid": None,
            "endpoint": f"custom endpoint {e2b_standin.environment['E2B_API_URL']}",
            "ended": [f"{there.sandbox_id} (python, running)"],
            "orphans": [],
        }
        assert await e2b_standin.sandboxes() == {}
        again = await run_command(tmp_path, "down", environment=e2b_standin.environment)
        assert again.code == 2
        assert "has no sandbox of it" in again.err


@pytest.mark.slow
async def test_the_next_run_ends_what_does_not_fit_it(tmp_path, e2b_standin):
    async with RemoteSwarm(tmp_path, e2b_standin) as swarm:
        there = await swarm.started()
        await swarm.end(signal.SIGKILL)
        file = tmp_path / "swarm.toml"
        file.write_text(file.read_text().replace('provider = "e2b"', 'provider = "e2b"\nmetadata = { team = "desk" }'))
        subscriber = await swarm.up_with_remote()
        [ended] = await swarm.until_logged("orphan_sandbox_deleted")
        assert ended["sandbox_id"] == there.sandbox_id
        another = await swarm.remote_host(subscriber, other_than=there.host)
        await subscriber.live(*AGENTS)
        assert [f"python-{name}" for name in await e2b_standin.sandboxes()] == [another]
        await swarm.assert_exact()


ABORTING = Path(__file__).parents[1] / "support" / "abort_at_exit.c"


@pytest.mark.slow
async def test_an_sdk_that_aborts_at_exit_spoils_no_exit_code(tmp_path, e2b_standin):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler is here (Debian: apt install gcc libc6-dev)")
    preload = {"LD_PRELOAD": str(tmp_path / "abort_at_exit.so")}
    subprocess.run([compiler, "-shared", "-fPIC", "-o", preload["LD_PRELOAD"], ABORTING], check=True)
    ordinary = subprocess.run(
        python_command("provider", "--help"),
        env=os.environ | preload,
        capture_output=True,
        check=False,
    )
    assert ordinary.returncode == -signal.SIGABRT, "the hook does nothing"
    async with RemoteSwarm(tmp_path / "swarm", e2b_standin) as swarm:
        swarm.environment |= preload
        there = await swarm.started()
        assert "warning" not in swarm.errors, "the process that tries the key has failed"
        doctor = await run_command(tmp_path / "swarm", "doctor", environment=e2b_standin.environment | preload)
        assert f"{there.sandbox_id} (python, running)" in doctor.out
        await swarm.down()
        log = (tmp_path / "swarm" / ".signalmesh" / "logs" / "provider.log").read_text()
        assert "Aborted" not in log, "faulthandler would say so"
        assert not there.alerts("provider_died")


@pytest.mark.slow
async def test_down_ends_in_spite_of_sandboxes_that_it_cannot_reach_and_names_them(tmp_path, e2b_standin):
    async with RemoteSwarm(tmp_path, e2b_standin) as swarm:
        there = await swarm.started()
        await e2b_standin.ports(api=False, envd=False)
        down = await swarm.command("down")
        assert down.code == 1, down.err
        await swarm.wait()
        assert there.sandbox_id in down.out, down.out
        assert "may still run at custom endpoint" in down.out
        record = json.loads((tmp_path / ".signalmesh" / "e2b.json").read_text())
        assert [left["id"] for left in record["sandboxes"]] == [there.sandbox_id]
        doctor = await run_command(tmp_path, "doctor", environment=ENVIRONMENT)
        assert there.sandbox_id in doctor.out
