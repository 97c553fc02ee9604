"""`signalmesh doctor` beside a swarm that runs, hangs, was killed, has ended."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.swarm import AGENTS, SANDBOXES, Ends, Swarm


async def diagnose(swarm: Swarm, code: int) -> dict[str, Any]:
    done = await swarm.command("doctor", "--json")
    assert done.code == code, done
    found: dict[str, Any] = done.json
    assert found["ok"] is (code == 0)
    found["by"] = {finding["check"]: finding for finding in found["findings"]}
    return found


def not_ok(found: dict[str, Any]) -> dict[str, str]:
    return {finding["check"]: finding["level"] for finding in found["findings"] if finding["level"] != "ok"}


@pytest.mark.slow
async def test_a_swarm_that_runs_stalls_is_killed_and_ends(tmp_path: Path):
    async with Swarm(tmp_path, '[stream]\ndurability = "power"\n') as swarm:
        subscriber = await swarm.up("--speed", "50")
        await subscriber.decided(260)
        await subscriber.live(*AGENTS)
        found = await diagnose(swarm, 0)
        assert not_ok(found) == {}
        assert found["running"]
        assert "active: power" in found["by"]["durability"]["text"]
        assert {f"cursor of {name}" for name in AGENTS} <= set(found["by"])
        children = {child["kind"]: child for child in swarm.record["children"]}
        assert {child["name"] for child in swarm.record["children"]} >= {*SANDBOXES, "watchdog", "nats-server"}
        assert f"pid {swarm.process.pid}" in found["by"]["lock of the directory"]["text"]

        server = children["nats-server"]["pid"]
        swarm.send(server, signal.SIGSTOP)
        found = await diagnose(swarm, 1)
        assert not_ok(found) == {"processes": "error", "port": "error", "bus": "error"}
        assert found["by"]["processes"]["remedy"] == f"kill -CONT {server}"
        swarm.send(server, signal.SIGCONT)
        host = children["sandbox"]["pid"]
        ends = await Ends.of(host, server)
        swarm.send(host, signal.SIGKILL)
        swarm.send(server, signal.SIGKILL)  # the record names the processes that are there now
        await ends.all()
        await subscriber.more_heartbeats(2, *AGENTS, *SANDBOXES)
        found = await diagnose(swarm, 0)
        assert f"{len(swarm.record['children'])} recorded children" in found["by"]["processes"]["text"]
        assert not {host, server} & {child["pid"] for child in swarm.record["children"]}

        await swarm.end(signal.SIGKILL)
        found = await diagnose(swarm, 0)
        assert not_ok(found) == {"run record": "warning"}
        assert not found["running"]
        assert found["by"]["bus"]["skipped"]
        assert "no swarm runs here" in found["by"]["bus"]["text"]

        subscriber = await swarm.up("--speed", "50")
        await subscriber.live(*AGENTS)
        assert await swarm.end(signal.SIGTERM) == 0
        text = await swarm.command("doctor")
        assert text.code == 0
        assert "the last one ended in order" in text.out
