"""`certify` of a swarm whose sandboxes are made elsewhere: the stand-in of E2B's, by the provider."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.acceptance.swarm import AGENTS, run_verb
from tests.e2b.far import FAR_AGENTS, far_toml
from tests.e2b.standin.launch import StandIn
from tests.support.cluster import free_ports


@pytest.mark.slow
async def test_a_swarm_with_a_far_sandbox_is_certified(tmp_path: Path, e2b_standin: StandIn):
    [port] = free_ports(1)
    environment = {**e2b_standin.environment, "SIGNALMESH_PUBLIC_NATS": f"nats://127.0.0.1:{port}"}
    file = tmp_path / "swarm.toml"
    file.write_text(far_toml(price_per_hour=0.4, price_source='"a bill"'))
    done = await run_verb(
        tmp_path,
        "certify",
        "--json",
        "--config",
        str(file),
        "--nats-port",
        str(port),
        guard_s=280,
        environment=environment,
    )
    assert done.code == 0, done.out + done.err
    found = json.loads((tmp_path / "certify.json").read_text())
    assert found["provider"] == "e2b, local"
    assert found["endpoint"] == f"another endpoint than E2B's, {e2b_standin.environment['E2B_API_URL']}"
    assert found["endpoint"] in (tmp_path / "certify.md").read_text()
    [far] = [row for row in found["sandboxes"] if row["provider"] == "e2b"]
    assert far["sandbox"] == "python"
    assert far["name"] != "python", "its host has the name of the sandbox that was made"
    assert far["agents"] == sorted(FAR_AGENTS)
    assert (far["health"]["price_per_hour"], far["health"]["price_source"]) == (0.4, "a bill")
    assert far["health"]["cost"] == pytest.approx(0.4 * far["uptime_s"] / 3600)
    assert {row["name"] for row in found["agents"]} == set(AGENTS)
    assert e2b_standin.api_key not in done.out + done.err + (tmp_path / "certify.md").read_text()
