"""A decision as Jaeger shows it: what `up` exports, read by Jaeger's own API. Needs its binary on PATH."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import shutil
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bus.utils.processes import die_with_parent
from tests.acceptance.exact import exact_toml
from tests.acceptance.swarm import AGENTS, GUARD_S, VOTERS, Swarm

BINARIES = ("jaeger", "jaeger-all-in-one")
PORTS = (4317, 4318, 16685, 16686)
"""Where both listen that are given no options: OTLP by gRPC and HTTP, queries by gRPC and HTTP."""
OTLP, QUERY = "http://127.0.0.1:4318", "http://127.0.0.1:16686"
ROUNDS = 40


def missing() -> str | None:
    if not any(map(shutil.which, BINARIES)):
        return f"none of {', '.join(BINARIES)} is on PATH"
    for port in PORTS:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return f"port {port}, which Jaeger needs, is taken"
    return None


async def requested(path: str, **query: str) -> Any:
    """`data` of the answer to GET /api/…; None while Jaeger is not there."""

    def get() -> Any:
        try:
            with urllib.request.urlopen(f"{QUERY}/api/{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.URLError:
            return None

    return await asyncio.to_thread(get)


@pytest.fixture
async def jaeger(tmp_path: Path) -> AsyncIterator[None]:
    if (why := missing()) is not None:
        pytest.skip(why)
    binary = next(filter(None, map(shutil.which, BINARIES)))
    with (tmp_path / "jaeger.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            binary, stdout=log, stderr=log, preexec_fn=functools.partial(die_with_parent, os.getpid())
        )
    try:
        async with asyncio.timeout(GUARD_S):
            while await requested("services") is None:
                assert process.returncode is None, (tmp_path / "jaeger.log").read_text()[-2000:]
                await asyncio.sleep(0.1)
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def service_of(trace: dict[str, Any], span: dict[str, Any]) -> str:
    return str(trace["processes"][span["processID"]]["serviceName"])


async def trace_of(number: int) -> dict[str, Any]:
    """The trace of a round, found as docs/ops/traces.md describes, once all five services have exported their spans."""
    async with asyncio.timeout(GUARD_S):
        while True:
            tags = json.dumps({"mesh.round": str(number)})
            for trace in await requested("traces", service="coordinator", tags=tags, limit="20", lookback="1h") or ():
                if {service_of(trace, span) for span in trace["spans"]} >= set(AGENTS):
                    return dict(trace)
            await asyncio.sleep(0.1)


@pytest.mark.slow
async def test_a_decision_is_one_trace_at_jaegers_api(tmp_path: Path, jaeger: None):
    environment = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{OTLP}/v1/traces", "OTEL_TRACES_SAMPLER": "always_on"}
    async with Swarm(tmp_path / "swarm", exact_toml(speed=0, rounds=ROUNDS), environment=environment) as swarm:
        subscriber = await swarm.up()
        await subscriber.decided(ROUNDS)
        for number in (1, ROUNDS // 2, ROUNDS):
            trace = await trace_of(number)
            spans = {span["spanID"]: span for span in trace["spans"]}
            named = {service_of(trace, span): span["operationName"] for span in trace["spans"]}
            assert named == {
                "research-1": "send swarm.market",
                "research-2": named["research-2"],
                "strategy-momentum": "send swarm.signal",
                "strategy-mean-reversion": "send swarm.signal",
                "coordinator": "send swarm.decision",
            }
            parents: dict[str, list[str]] = {span_id: [] for span_id in spans}
            linked: dict[str, set[str]] = {span_id: set() for span_id in spans}
            for span_id, span in spans.items():
                for reference in span["references"]:
                    assert reference["traceID"] == trace["traceID"]
                    assert reference["spanID"] in spans, "no orphan"
                    if reference["refType"] == "CHILD_OF":
                        parents[span_id].append(reference["spanID"])
                    linked[span_id].add(service_of(trace, spans[reference["spanID"]]))
            [root] = [span_id for span_id, above in parents.items() if not above]
            assert spans[root]["operationName"] == "send swarm.market"
            [decision] = [span_id for span_id, span in spans.items() if service_of(trace, span) == "coordinator"]
            assert linked[decision] - {"research-1"} == set(VOTERS), "its parent, or linked"
