"""The configuration of Compose's profile `metrics` at work: a real Prometheus scrapes a real swarm.

Needs the binary of Prometheus on PATH. Grafana is not run: its provisioning files are read in
tests/unit/project/test_provisioning.py.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from bus.utils.processes import die_with_parent
from tests.acceptance.exact import exact_toml
from tests.acceptance.subscriber import read_stream
from tests.acceptance.swarm import GUARD_S, Swarm
from tests.acceptance.test_metrics import page, scraped_until
from tests.support.collector import collecting
from tests.support.page import exemplars
from tests.support.ports import free_port
from tests.support.repository import ROOT

ACCEPT = {
    2: "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    3: "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
}
"""Major version of Prometheus -> the formats that it asks for."""
ROUNDS = 60
TOML = exact_toml(speed=0, rounds=ROUNDS) + '\n[metrics]\nlisten = "127.0.0.1:0"\n'
LATENCY = "signalmesh_tick_to_decision_seconds_bucket"


async def get(url: str, accept: str = "*/*") -> tuple[str, str]:
    """Content type and body."""

    def fetch() -> tuple[str, str]:
        request = urllib.request.Request(url, headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(answer.headers["Content-Type"]), str(answer.read().decode())

    return await asyncio.to_thread(fetch)


async def traces_of_decisions(swarm: Swarm) -> set[str]:
    """The trace of each stored decision that was sampled."""
    decisions = [message for message in await read_stream(swarm.url, swarm.name) if message.kind == "decision"]
    return {message.headers["traceparent"].split("-")[1] for message in decisions if "traceparent" in message.headers}


async def test_the_page_in_openmetrics_leads_from_latencies_to_exported_traces(tmp_path):
    async with collecting() as collector:
        environment = {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.url}/v1/traces",
            "OTEL_TRACES_SAMPLER": "always_on",
        }
        async with Swarm(tmp_path / "swarm", TOML, environment=environment) as swarm:
            await (await swarm.up()).decided(ROUNDS)
            url = await page(swarm)
            await scraped_until(url, "signalmesh_tick_to_decision_seconds_count", (), ROUNDS)
            pages = [await get(url, accept) for accept in ACCEPT.values()]
            for kind, text in pages:
                assert kind.startswith("application/openmetrics-text; version=1.0.0")
                assert text.endswith("# EOF\n")
            found, as_well = (exemplars(text) for _, text in pages)
            assert found == as_well != {}
            traces = {exemplar.labels["trace_id"] for exemplar in found.values()}
            assert traces <= await traces_of_decisions(swarm)
            for (name, bound), exemplar in found.items():
                assert name == LATENCY
                assert 0 < exemplar.value <= float(bound)
            await collector.until("the traces", lambda: traces <= collector.traces().keys())
            kind, text = await get(url, "text/plain")
            assert kind.startswith("text/plain")
            assert "trace_id" not in text, "that format has no exemplars"


async def test_a_swarm_without_traces_has_no_exemplars(tmp_path):
    async with Swarm(tmp_path / "swarm", TOML) as swarm:
        await (await swarm.up()).decided(ROUNDS)
        url = await page(swarm)
        await scraped_until(url, "signalmesh_tick_to_decision_seconds_count", (), ROUNDS)
        assert exemplars((await get(url, ACCEPT[3]))[1]) == {}


class Prometheus:
    """A running server."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def api(self, path: str, **query: str) -> Any:
        """`data` of the answer; None while the server is not there."""
        try:
            answer = json.loads((await get(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"))[1])
        except (urllib.error.URLError, ConnectionError):
            return None
        assert answer["status"] == "success", answer
        return answer["data"]

    async def until(self, path: str, **query: str) -> Any:
        """The first answer that is not empty."""
        async with asyncio.timeout(GUARD_S):
            while not (found := await self.api(path, **query)):
                await asyncio.sleep(0.1)
            return found


@asynccontextmanager
async def prometheus(directory: Path, target: str) -> AsyncIterator[Prometheus]:
    """Prometheus with the files and flags of docker-compose.yml; only addresses, paths and intervals differ."""
    binary = shutil.which("prometheus")
    assert binary is not None
    config = yaml.safe_load((ROOT / "docker/prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(ROOT / "docs/prometheus/alerts.yml")]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    (directory / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    address = f"127.0.0.1:{free_port()}"
    own = {
        "--config.file": str(directory / "prometheus.yml"),
        "--storage.tsdb.path": str(directory / "data"),
        "--web.listen-address": address,
    }
    flags = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["prometheus"]["command"]
    kept = [flag for flag in flags if flag.partition("=")[0] not in own and "$" not in flag]
    with (directory / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            binary,
            *(f"{name}={value}" for name, value in own.items()),
            *kept,
            stdout=log,
            stderr=log,
            preexec_fn=functools.partial(die_with_parent, os.getpid()),
        )
    try:
        server = Prometheus(f"http://{address}")
        async with asyncio.timeout(GUARD_S):
            while await server.api("status/buildinfo") is None:
                assert process.returncode is None, (directory / "prometheus.log").read_text()[-2000:]
                await asyncio.sleep(0.1)
        yield server
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="there is no prometheus on PATH")
async def test_prometheus_keeps_exemplars_evaluates_the_rules_and_answers_every_panel(tmp_path):
    environment = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9/v1/traces"}
    async with Swarm(tmp_path / "swarm", TOML, environment=environment) as swarm:
        await (await swarm.up()).decided(ROUNDS)
        url = await page(swarm)
        await scraped_until(url, "signalmesh_tick_to_decision_seconds_count", (), ROUNDS)
        async with prometheus(tmp_path, url.removeprefix("http://").removesuffix("/metrics")) as server:
            await server.until("query", query="up == 1")
            panels = json.loads((ROOT / "docs/grafana/signalmesh.json").read_text())["panels"]
            targets = [target for panel in panels for target in panel.get("targets", ())]
            [latency] = [target["expr"] for target in targets if target.get("exemplar")]
            whole = {"start": "0", "end": "9999999999"}
            found = await server.until("query_exemplars", query=latency.replace("$__rate_interval", "4s"), **whole)
            stored = {item["labels"]["trace_id"] for series in found for item in series["exemplars"]}
            assert stored
            assert stored <= await traces_of_decisions(swarm)
            for target in targets:
                expression = target["expr"].replace("$__rate_interval", "4s")
                assert (await server.api("query", query=expression))["resultType"] == "vector", expression
            async with asyncio.timeout(GUARD_S):
                while True:
                    [group] = (await server.api("rules"))["groups"]
                    if all(rule["health"] != "unknown" for rule in group["rules"]):
                        break
                    await asyncio.sleep(0.1)
            assert {rule["health"] for rule in group["rules"]} == {"ok"}
            names = yaml.safe_load((ROOT / "docs/prometheus/alerts.yml").read_text())["groups"][0]["rules"]
            assert [rule["name"] for rule in group["rules"]] == [rule["alert"] for rule in names]
