"""docker compose up, for real: an engine, the image built from this checkout, processes killed from outside.

Needs a Docker engine with Compose v2 (and to be root on its machine, for signals to containers' processes by pid).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import re
import signal
import subprocess
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import pytest_asyncio

from bus.nats.bus import NatsBus
from bus.nats.credentials import SEED_VARIABLE, Credentials
from bus.nats.key_files import write_seed
from tests.acceptance.subscriber import Subscriber, read_stream
from tests.acceptance.swarm import AGENTS, VOTERS
from tests.acceptance.traces import PHASES, assert_tree, is_whole, recoveries
from tests.support.collector import OtlpCollector, Received, orphans, roots
from tests.support.ports import free_port
from tests.support.repository import ROOT

BUILD_S, UP_S, COMMAND_S, DOWN_S = 1500.0, 240.0, 60.0, 120.0
T = TypeVar("T")
SANDBOXES = ("sandbox-base", "sandbox-nodejs", "sandbox-python")

pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(2400),
    # nats-py leaves the streams of a connection that broke to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Project:
    """A Compose project of this checkout, under a name, with ports and images of its own."""

    def __init__(self, settings: Path, collector_url: str) -> None:
        # Not in the environment: the docker command itself would send its own traces there.
        settings.write_text(f"OTEL_EXPORTER_OTLP_ENDPOINT={collector_url}\nOTEL_TRACES_SAMPLER=always_on\n")
        self.name = f"signalmesh-{uuid.uuid4().hex[:8]}"
        self.port, self.dashboard_port, self.prometheus_port = free_port(), free_port(), free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self.image = "signalmesh:test"
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("OTEL_")},
            "NATS_PORT": str(self.port),
            "JAEGER_PORT": str(free_port()),
            "METRICS_PORT": str(free_port()),
            "DASHBOARD_PORT": str(self.dashboard_port),
            "PROMETHEUS_PORT": str(self.prometheus_port),
            "SIGNALMESH_IMAGE": self.image,
            "SIGNALMESH_NODEJS_IMAGE": "signalmesh-nodejs:test",
            "SPEED": "20",
        }
        self._files = ["-f", str(ROOT / "docker-compose.yml"), "-f", str(ROOT / "tests/compose/override.yml")]
        self._files += ["--env-file", str(settings)]

    async def compose(self, *arguments: str, within_s: float = COMMAND_S) -> str:
        """What `docker compose ARGUMENTS` printed; it must succeed."""
        code, out, err = await self.try_compose(*arguments, within_s=within_s)
        assert code == 0, f"docker compose {' '.join(arguments)}: {code}\n{out[-4000:]}\n{err[-4000:]}"
        return out

    async def try_compose(self, *arguments: str, within_s: float = COMMAND_S) -> tuple[int, str, str]:
        return await run("docker", "compose", "-p", self.name, *self._files, *arguments,
                         environment=self._environment, within_s=within_s)  # fmt: skip

    async def docker(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code and both outputs of `docker ARGUMENTS`."""
        return await run("docker", *arguments, environment=self._environment)

    async def containers(self) -> dict[str, dict[str, Any]]:
        """Service -> the output of `docker inspect` for its first container."""
        ids = (await self.compose("ps", "-q", "-a")).split()
        _, out, _ = await self.docker("inspect", *ids)
        found: dict[str, dict[str, Any]] = {}
        for item in json.loads(out):
            found.setdefault(item["Config"]["Labels"]["com.docker.compose.service"], item)
        return found

    async def use_prometheus(self) -> None:
        """The pinned image if it is on this machine; otherwise the server of Debian's package takes its place."""
        [pinned] = re.findall(r"\{PROMETHEUS_IMAGE:-(.+)\}", (ROOT / "docker-compose.yml").read_text())
        if (await self.docker("image", "inspect", pinned))[0] == 0:
            return
        [base] = re.findall(r"^ARG PYTHON_IMAGE=(.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
        self._environment["PROMETHEUS_IMAGE"] = "signalmesh-prometheus:test"
        arguments = ("build", "--network", "host", "--build-arg", f"BASE={base}", "-t", "signalmesh-prometheus:test")
        code, out, err = await run("docker", *arguments, str(ROOT / "tests/compose/prometheus"),
                                   environment=self._environment, within_s=BUILD_S)  # fmt: skip
        assert code == 0, f"{out[-2000:]}\n{err[-2000:]}"

    async def command(self, *arguments: str) -> Any:
        """The JSON of a command of signalmesh with the operator's key, run in a container of its own."""
        return json.loads(await self.compose("run", "--rm", "-T", "cli", *arguments, "--json"))

    async def keys_in(self, service: str) -> list[str]:
        """The names of the keys that this service's container can read."""
        listing = "import pathlib; print(*sorted(file.stem for file in pathlib.Path('/').glob('keys/**/*.nk')))"
        found = await self.compose("exec", "-T", service, "/opt/signalmesh/bin/python", "-c", listing)
        return found.split()


async def run(*arguments: str, environment: dict[str, str], within_s: float = COMMAND_S) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *arguments,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(within_s):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise AssertionError(f"{arguments} did not end within {within_s:.0f} s") from None
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def engine_missing() -> str | None:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        for probe in (["docker", "info"], ["docker", "compose", "version"]):
            answer = subprocess.run(probe, capture_output=True, text=True, timeout=30, check=False)
            if answer.returncode != 0:
                return f"{' '.join(probe)}: {answer.stderr.strip()[:200]}"
        return None
    return "there is no docker command"


def host_address() -> str:
    """This machine, as containers see it: the engine's own end of its default network, the first address of that.

    An engine that has just been set up does not name it as the gateway yet.
    """
    probe = ["docker", "network", "inspect", "bridge", "--format", "{{json (index .IPAM.Config 0)}}"]
    network = json.loads(subprocess.run(probe, capture_output=True, text=True, timeout=30, check=True).stdout)
    return network.get("Gateway") or str(next(ipaddress.ip_network(network["Subnet"]).hosts()))


@pytest.fixture(scope="module")
def collector() -> Iterator[OtlpCollector]:
    """In the place of Jaeger: takes what the containers export, in a thread, whatever loop the tests run in."""
    if (missing := engine_missing()) is not None:
        pytest.skip(missing)
    collector, loop = OtlpCollector(), asyncio.new_event_loop()
    loop.run_until_complete(collector.start(host_address()))
    thread = threading.Thread(target=loop.run_forever, name="collector")
    thread.start()
    try:
        yield collector
    finally:
        asyncio.run_coroutine_threadsafe(collector.stop(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def received(what: str, found: Callable[[], T | None]) -> T:
    """Wait until the collector has it."""
    try:
        async with asyncio.timeout(COMMAND_S):
            while not (result := found()):
                await asyncio.sleep(0.1)
            return result
    except TimeoutError:
        raise AssertionError(f"waited in vain: {what}") from None


async def traces_of(collector: OtlpCollector, rounds: Iterable[int]) -> list[dict[str, Received]]:
    """The whole traces of these rounds."""

    def found(number: int) -> dict[str, Received] | None:
        trace = collector.of_round(number)
        return trace if is_whole(trace) else None

    return [await received(f"the trace of round {number}", partial(found, number)) for number in rounds]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def project(collector: OtlpCollector, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Project]:
    project = Project(tmp_path_factory.mktemp("compose") / "settings.env", collector.url)
    await project.compose("build", within_s=BUILD_S)
    try:
        await project.compose("up", "-d", "--wait", within_s=UP_S)
        yield project
    finally:
        logs = await project.try_compose("logs", "--no-color", "--tail", "40")
        print(logs[1][-12000:])  # noqa: T201 - pytest shows it with a failure
        await project.try_compose("--profile", "metrics", "down", "-v", "--timeout", "10", within_s=DOWN_S)


@pytest.fixture
async def subscriber(project: Project) -> AsyncIterator[Subscriber]:
    """A third-party client on the host, which has a live heartbeat of every agent."""
    subscriber = await Subscriber.open(project.url, "swarm.>", "swarm")
    try:
        await subscriber.live(*AGENTS)
        yield subscriber
    finally:
        await subscriber.close()


def contiguous(subscriber: Subscriber) -> bool:
    rounds = [decision["round"] for decision in subscriber.decisions]
    return rounds == list(range(rounds[0], rounds[0] + len(rounds)))


async def test_a_client_on_the_host_receives_every_decision_and_each_role_is_healthy(
    project: Project, subscriber: Subscriber
):
    await subscriber.more_decisions(40)
    assert contiguous(subscriber)
    status = await project.command("status")
    assert (status["active_agents"], status["processes"], len(status["sandboxes"])) == (5, 5, 3)
    assert [agent["name"] for agent in status["agents"]] == sorted(AGENTS)
    where = {agent["name"]: agent["sandbox"].partition("-")[0] for agent in status["agents"]}
    assert where == dict(zip(AGENTS, ("base", "nodejs", "nodejs", "python", "python"), strict=True))
    doctor = await project.command("doctor")
    assert [row for row in doctor["findings"] if row["level"] != "ok"] == []
    for service, container in (await project.containers()).items():
        if service in ("rebuild", "keys"):
            assert (container["State"]["Status"], container["State"]["ExitCode"]) == ("exited", 0)
        elif service != "nats":  # its image has no client
            assert container["State"]["Health"]["Status"] == "healthy", service
        host = container["HostConfig"]
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] == ["ALL"], service
        assert not any("docker.sock" in mount["Source"] for mount in container["Mounts"]), service
        if service != "nats":
            assert container["Config"]["User"] not in ("", "root", "0"), service


async def test_the_dashboard_is_reached_from_the_host_with_its_link(project: Project, subscriber: Subscriber):
    link = (await project.compose("exec", "-T", "dashboard", "signalmesh", "dashboard", "--link")).strip()
    token = link.partition("?token=")[2]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{project.dashboard_port}", timeout=COMMAND_S) as http:
        assert (await http.get("/api/overview")).status_code == 401  # the container's address is not its loopback
        assert (await http.get("/", params={"token": token})).status_code == 303
        await subscriber.more_decisions(2)
        found = (await http.get("/api/overview")).json()
        assert found["source"]["connected"]
        assert {agent["name"] for agent in found["agents"]} == set(AGENTS)
    assert token not in await project.compose("logs", "--no-color", "dashboard")


async def test_prometheus_of_the_profile_scrapes_exemplars_of_exported_traces(
    project: Project, subscriber: Subscriber, collector: OtlpCollector
):
    """A real Prometheus. Grafana is not started: its image is not everywhere, and nothing can stand in for it."""
    await project.use_prometheus()
    # Without the dependencies: the swarm is up.
    await project.compose("--profile", "metrics", "up", "-d", "--no-deps", "prometheus", within_s=UP_S)
    address = f"http://127.0.0.1:{project.prometheus_port}/api/v1/"
    try:
        async with httpx.AsyncClient(base_url=address, timeout=COMMAND_S) as http:

            async def answer(path: str, **query: str) -> Any:
                """The first answer that is not empty."""
                async with asyncio.timeout(COMMAND_S):
                    while True:
                        with contextlib.suppress(httpx.TransportError):
                            response = await http.get(path, params=query)
                            if response.status_code == 200 and (data := response.json()["data"]) not in ([], {}):
                                return data
                        await asyncio.sleep(0.2)

            await subscriber.more_decisions(20)
            latencies = {"query": "signalmesh_tick_to_decision_seconds_bucket", "start": "0", "end": "9999999999"}
            series = await answer("query_exemplars", **latencies)
            traces = {exemplar["labels"]["trace_id"] for item in series for exemplar in item["exemplars"]}
            await received("the traces of the exemplars", lambda: traces <= collector.traces().keys())
            [target] = (await answer("targets"))["activeTargets"]
            assert (target["scrapeUrl"], target["health"]) == ("http://metrics:9464/metrics", "up")
            [group] = (await answer("rules"))["groups"]
            assert len(group["rules"]) == (ROOT / "docs/prometheus/alerts.yml").read_text().count("- alert: ")
        container = (await project.containers())["prometheus"]
        assert container["HostConfig"]["ReadonlyRootfs"]
        assert container["HostConfig"]["CapDrop"] == ["ALL"]
        assert container["Config"]["User"] not in ("", "root", "0")
    finally:
        await project.compose("--profile", "metrics", "rm", "--stop", "--force", "-v", "prometheus", within_s=DOWN_S)


async def test_the_image_is_as_large_as_documented_and_has_no_build_tools(project: Project):
    dockerfile, page = (ROOT / "Dockerfile").read_text(), (ROOT / "docs/deploy/compose.md").read_text()
    [base] = re.findall(r"^ARG PYTHON_IMAGE=(.+)$", dockerfile, re.MULTILINE)
    [reported_mb] = re.findall(r"adds to its base is\s(\d+) MB", page)
    sizes = []
    for image in (project.image, base):
        code, out, err = await project.docker("image", "inspect", "--format", "{{.Size}}", image)
        assert code == 0, err
        sizes.append(int(out))
    assert (sizes[0] - sizes[1]) / 1e6 == pytest.approx(int(reported_mb), rel=0.1)
    left = "import importlib.util as u; print([m for m in ('pip', 'setuptools', 'uv', 'hatchling') if u.find_spec(m)])"
    assert await project.compose("exec", "-T", "watchdog", "/opt/signalmesh/bin/python", "-c", left) == "[]\n"


async def test_a_decision_is_one_trace_over_the_containers(
    project: Project, subscriber: Subscriber, collector: OtlpCollector
):
    decisions = await subscriber.more_decisions(20)
    for trace in await traces_of(collector, [decision["round"] for decision in decisions if not decision["absent"]]):
        assert_tree(trace, set(VOTERS))
        where = {span.service: span.resource["mesh.sandbox"] for span in trace.values()}
        assert where == {agent: subscriber.heartbeats[agent]["sandbox"] for agent in AGENTS}


async def test_rounds_that_an_agent_missed_are_whole_and_lead_to_its_recovery(
    project: Project, subscriber: Subscriber, collector: OtlpCollector
):
    agent = "strategy-momentum"
    *_, before = await subscriber.more_decisions(1)
    known = {root.id for trace in recoveries(collector, agent) for root in roots(trace)}
    kill_report = await project.command("kill", agent, "--signal", "STOP")
    assert (kill_report["outcome"], kill_report["outputs_lost"], kill_report["outputs_duplicated"]) == (
        "recovered",
        0,
        0,
    )
    await subscriber.more_decisions(5)
    missed = [decision["round"] for decision in subscriber.decisions if agent in decision["absent"]]
    assert missed != [], "silent for 0.6 s, at 20 candles a second"
    for trace in await traces_of(collector, range(before["round"] + 1, subscriber.decisions[-1]["round"])):
        assert orphans(trace) == []
        assert [(root.name, root.service) for root in roots(trace)] == [("send swarm.market", "research-1")]

    def recovered() -> dict[str, Received] | None:
        return next((t for t in recoveries(collector, agent) if not known & t.keys()), None)

    recovery = await received("the trace of the recovery", recovered)
    assert orphans(recovery) == []
    [root] = roots(recovery)
    assert {span.name for span in recovery.values()} == {root.name, *PHASES}
    linked = [span for span in collector.spans if (root.trace, root.id) in {link[:2] for link in span.links}]
    assert {span.service for span in linked} == {agent}
    assert {span.attributes.get("mesh.round") for span in linked} >= set(missed)


@pytest.mark.parametrize("agent", AGENTS)
async def test_an_agent_killed_in_its_container_loses_nothing(project: Project, subscriber: Subscriber, agent: str):
    await subscriber.more_decisions(5)
    kill_report = await project.command("kill", agent)
    assert (kill_report["outcome"], kill_report["outputs_lost"], kill_report["outputs_duplicated"]) == (
        "recovered",
        0,
        0,
    )
    await subscriber.more_decisions(10)
    assert contiguous(subscriber)


@pytest.mark.parametrize(
    "service", [*SANDBOXES, "watchdog", "watchdog-standby", "mirror", "metrics", "dashboard", "nats"]
)
async def test_a_containers_main_process_killed_with_9_comes_back(
    project: Project, subscriber: Subscriber, service: str
):
    await subscriber.more_decisions(5)
    before = (await project.containers())[service]
    os.kill(before["State"]["Pid"], signal.SIGKILL)
    while True:
        state = (await project.containers())[service]["State"]
        if state["Running"] and state["StartedAt"] != before["State"]["StartedAt"]:
            break
    since = subscriber.decisions[-1]["round"]
    await subscriber.decided(since + 40)
    await subscriber.live(*AGENTS)
    if service != "nats":  # no client receives what passes while it is down; the stream has it, as the audit shows
        assert contiguous(subscriber)
    await audited(project)


async def test_the_agents_of_a_stopped_sandbox_move_to_another(project: Project, subscriber: Subscriber):
    status = await project.command("status")
    container = (await project.containers())["sandbox-python"]
    name = next(
        name
        for name, heartbeat in subscriber.heartbeats.items()
        if heartbeat["machine"] == container["Config"]["Hostname"] and heartbeat["role"] == "sandbox"
    )
    host = next(row for row in status["sandboxes"] if row["name"] == name)
    await project.compose("stop", "sandbox-python")
    for agent in host["agents"]:
        await subscriber.happened("moved", agent)
    await subscriber.live(*AGENTS)
    await subscriber.more_decisions(20)
    assert contiguous(subscriber)
    assert host["name"] not in {
        heartbeat["sandbox"] for name, heartbeat in subscriber.heartbeats.items() if name in AGENTS
    }
    await project.compose("start", "sandbox-python")
    await audited(project)


async def test_each_container_has_its_own_keys_and_no_others(project: Project, subscriber: Subscriber):
    hosts = [f"-{number}" for number in range(1, 5)]
    for sandbox in ("base", "nodejs", "python"):
        assert await project.keys_in(f"sandbox-{sandbox}") == [f"sandbox-{sandbox}{host}" for host in hosts]
    for role in ("mirror", "metrics", "dashboard"):
        assert await project.keys_in(role) == [role]
    for role in ("watchdog", "watchdog-standby"):
        assert await project.keys_in(role) == [*sorted(f"agent-{agent}" for agent in AGENTS), "watchdog"]
    unnamed = await NatsBus.connect(project.url, "swarm", "unnamed", credentials=Credentials())
    try:
        before = len(subscriber.decisions)
        unnamed.connection.write("in.swarm.decision.BTC-USD.coordinator", b'{"forged": true}')
        await unnamed.flush()
        await subscriber.more_decisions(5)
        assert [decision for decision in subscriber.decisions[before:] if "forged" in decision] == []
    finally:
        await unnamed.close()


async def test_a_refused_attempt_raises_one_alert_though_the_server_and_its_reader_were_killed(
    project: Project, subscriber: Subscriber
):
    seed = await project.compose("exec", "-T", "sandbox-base", "cat", "/keys/sandbox-base-4.nk")

    async def forge(topic: str, count: int, credentials: Credentials) -> None:
        bus = await NatsBus.connect(project.url, "swarm", "forger", credentials=credentials)
        try:
            for _ in range(count):
                bus.connection.write(f"in.swarm.decision.{topic}.coordinator", b"{}")
            await bus.flush()
        finally:
            await bus.close()

    def reported(topic: str) -> list[tuple[str, str, int]]:
        found = [alert for alert in subscriber.alerts if alert["code"] == "client_refused"]
        return [
            (alert["source"], alert["detail"]["who"].partition(" at ")[0], alert["detail"]["count"])
            for alert in found
            if alert["detail"]["attempt"] == f"publish to in.swarm.decision.{topic}.coordinator"
        ]

    async def counted() -> int:
        refused = (await project.command("status"))["refused"]
        return 0 if refused is None else int(refused["count"])

    before = await counted()
    await forge("ONE", 3, Credentials(nkey_seed=seed.strip()))
    await subscriber.until("the first alert", lambda: reported("ONE"))
    await project.compose("kill", "metrics")
    await forge("TWO", 2, Credentials())
    os.kill((await project.containers())["nats"]["State"]["Pid"], signal.SIGKILL)
    await subscriber.more_decisions(20)
    await project.compose("start", "metrics")
    await subscriber.until("the second alert", lambda: reported("TWO"))
    await forge("THREE", 1, Credentials())
    await subscriber.until("the third alert", lambda: reported("THREE"))
    assert reported("ONE") == [("metrics", "sandbox-base-4", 3)]
    assert reported("TWO") == [("metrics", "clients without a key", 2)]
    assert reported("THREE") == [("metrics", "clients without a key", 1)]
    assert await counted() == before + 6


async def test_a_new_key_is_served_after_the_next_up_and_no_container_is_replaced(
    project: Project, subscriber: Subscriber
):
    before = {name: container["Id"] for name, container in (await project.containers()).items() if name != "keys"}
    await project.compose("run", "--rm", "-T", "keys", "keys", "rotate", "agent-research-1")
    await project.compose("run", "--rm", "-T", "keys", "keys", "add", "acme", "--role", "subscriber")
    epoch = subscriber.heartbeats["research-1"]["epoch"]
    await project.compose("up", "-d", "--wait", within_s=UP_S)
    await subscriber.back({"research-1": epoch})
    await subscriber.more_decisions(5)
    after = {name: container["Id"] for name, container in (await project.containers()).items() if name != "keys"}
    assert after == before
    await audited(project)


async def test_a_sandbox_is_served_by_as_many_containers_as_requested(project: Project, subscriber: Subscriber):
    await project.compose("up", "-d", "--no-recreate", "--scale", "sandbox-base=3", within_s=UP_S)
    await subscriber.until(
        "three hosts of sandbox base",
        lambda: (
            len({name for name, heartbeat in subscriber.heartbeats.items() if heartbeat.get("group") == "base"}) >= 3
        ),
    )
    await subscriber.more_decisions(10)
    assert contiguous(subscriber)


async def test_down_leaves_nothing_and_the_next_up_goes_on(project: Project, subscriber: Subscriber):
    await subscriber.more_decisions(5)
    await project.compose("down", within_s=DOWN_S)
    last = subscriber.decisions[-1]["round"]
    assert (await project.compose("ps", "-q", "-a")).split() == []
    await project.compose("up", "-d", "--wait", within_s=UP_S)
    again = await Subscriber.open(project.url, "swarm.>", "swarm")
    try:
        await again.decided(last + 20)
        assert again.decisions[0]["round"] > last
        assert contiguous(again)
    finally:
        await again.close()
    await audited(project)


async def test_a_bus_that_has_lost_its_volume_is_restored_from_the_mirror(
    project: Project, subscriber: Subscriber, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    await subscriber.more_decisions(20)
    await project.compose("down", within_s=DOWN_S)
    code, _, err = await run("docker", "volume", "rm", f"{project.name}_nats", environment=dict(os.environ))
    assert code == 0, err
    last = subscriber.decisions[-1]["round"]  # now: this subscriber will receive the next swarm as well
    received = [
        (message.subject, message.data, message.sequence)
        for message in subscriber.messages
        if message.kind == "decision"
    ]
    await project.compose("up", "-d", "--wait", within_s=UP_S)
    again = await Subscriber.open(project.url, "swarm.>", "swarm")
    try:
        await again.decided(last + 20)
        assert again.decisions[0]["round"] > last, "it goes on"
        assert contiguous(again)
        seed = await project.compose("run", "--rm", "-T", "--entrypoint", "cat", "cli", "/keys/operator.nk")
        write_seed(tmp_path / "operator.nk", seed.strip())
        monkeypatch.setenv(SEED_VARIABLE, str(tmp_path / "operator.nk"))
        stored = await read_stream(project.url, "swarm")
        assert set(received) <= {(message.subject, message.data, message.sequence) for message in stored}
        rounds = [message.json["round"] for message in stored if message.kind == "decision"]
        assert rounds == list(range(1, rounds[-1] + 1)), "from the first one on, each once"
        [rebuilt] = [
            message.json for message in stored if message.kind == "lifecycle" and message.json["event"] == "rebuilt"
        ]
        assert rebuilt["detail"]["clean"], "the swarm had ended in order"
    finally:
        await again.close()
    await audited(project)


async def audited(project: Project) -> None:
    report = await project.command("audit")
    assert report["ok"], report["problems"]
