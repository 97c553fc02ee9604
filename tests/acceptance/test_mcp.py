"""`signalmesh mcp` on whole swarms, by the SDK's own client: every figure is that of the command line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from mcp import Client, MCPDeprecationWarning
from mcp.client.subscriptions import ResourceUpdated
from mcp_types import ElicitRequestParams, ElicitResult, ResourceUpdatedNotification, TextContent

from coordinator.security.keys import KeyStore
from tests.acceptance.exact import exact_toml
from tests.acceptance.swarm import AGENTS, GUARD_S, SIGNALMESH, Ends, Swarm, agents_toml
from tests.support.children import child_process
from tests.support.mcp_client import MODES, TRANSPORTS, answer, commands_below, connect, http_server, resource, text_of

pytestmark = pytest.mark.slow

ROUNDS = 300
MEASURED = {
    "age_s", "cost", "cpu_s", "cursor", "disk_free_mb", "duration_ms", "duration_s", "heartbeat_age_ms", "health",
    "inputs_per_s", "lag", "lag_ms", "uptime_s",
}  # fmt: skip
"""Fields that are measured anew by each reading."""
STATUS = "swarm://status"


def same(value: Any) -> Any:
    """`value` without what each reading measures anew."""
    if isinstance(value, dict):
        return {name: same(one) for name, one in value.items() if name not in MEASURED}
    return [same(one) for one in value] if isinstance(value, list) else value


async def printed(swarm: Swarm, *words: str) -> Any:
    found = await swarm.command(*words, "--json")
    assert found.code == 0, found.err
    return found.json


async def finished_swarm(swarm: Swarm, *options: str) -> None:
    """A swarm that runs, all of whose figures stand still: its source has published all, the mirror has it."""
    subscriber = await swarm.up(*options)
    await subscriber.decided(ROUNDS)
    async with asyncio.timeout(GUARD_S):
        while len((await printed(swarm, "history", "decision", "--limit", "9999"))["entries"]) < ROUNDS:
            pass


async def same_figures(swarm: Swarm, client: Client) -> dict[str, Any]:
    """The status; it, the newest decision and the audit have been compared with what the command line prints."""
    results = []
    for tool, arguments, words in (
        ("swarm_status", {}, ["status"]),
        ("explain", {"decision": "latest"}, ["explain", "latest"]),
        ("audit", {}, ["audit"]),
    ):
        found = await answer(client, tool, **arguments)
        assert same(found["result"]) == same(await printed(swarm, *words)), tool
        assert (found["read"]["source"], found["read"]["nats"]) == ("bus", swarm.url)
        results.append(found["result"])
    assert results[-1]["ok"]
    status: dict[str, Any] = results[0]
    return status


@pytest.mark.parametrize(("transport", "mode"), list(zip(TRANSPORTS, MODES, strict=True)))
async def test_either_transport_and_protocol_answers_as_the_command_line_does(tmp_path: Path, transport, mode):
    async with Swarm(tmp_path, exact_toml(speed=0, rounds=ROUNDS)) as swarm:
        await finished_swarm(swarm)
        flags = ("--allow-control",)
        async with connect(SIGNALMESH, tmp_path, transport, swarm.environment, mode, flags) as client:
            await same_figures(swarm, client)
            name = "strategy-momentum"
            killed = (await answer(client, "agent_kill", agent=name, wait_s=1, confirm=True))["result"]
            status = await same_figures(swarm, client)
            [agent] = [one for one in status["agents"] if one["name"] == name]
            assert (agent["status"], agent["epoch"], agent["restarts"]) == ("active", killed["epoch_after"], 1)
            [exited] = [
                one["payload"]["epoch"]
                for one in (await printed(swarm, "history", "lifecycle"))["entries"]
                if (one["payload"]["event"], one["payload"]["agent"]) == ("exited", name)
            ]
            assert exited == killed["epoch_before"]


@pytest.mark.slow
@pytest.mark.parametrize(("transport", "mode"), list(zip(TRANSPORTS, MODES, strict=True)))
async def test_assistants_change_the_agents_of_a_running_swarm(tmp_path: Path, transport, mode):
    async with Swarm(tmp_path, exact_toml(speed=0, rounds=ROUNDS, top="max_agents = 7")) as swarm:
        await finished_swarm(swarm)
        flags = ("--allow-control",)
        async with connect(SIGNALMESH, tmp_path, transport, swarm.environment, mode, flags) as client:
            options = {"rsi_period": 9}
            new = {"agent": "fourth-vote", "kind": "momentum", "options": options, "sandbox": "base", "confirm": True}
            added = (await answer(client, "agent_add", **new))["result"]
            moved = (await answer(client, "agent_move", agent="fourth-vote", to="python", confirm=True))["result"]
            assert (added["sandbox"], moved["sandbox"], moved["epoch"] > added["epoch"]) == ("base", "python", True)
            status = await same_figures(swarm, client)
            [agent] = [one for one in status["agents"] if one["name"] == "fourth-vote"]
            assert (agent["status"], agent["epoch"], agent["sandbox"]) == ("active", moved["epoch"], "python")
            refused = await client.call_tool("swarm_scale", {"kind": "momentum", "count": 2, "confirm": True})
            assert "8 agents would run, at most 7 are allowed" in text_of(refused)
            scaled = (await answer(client, "swarm_scale", kind="momentum", count=1, confirm=True))["result"]
            assert [one["agent"] for one in scaled["agents"]] == ["momentum-1"]
            added = (await answer(client, "sandbox_add", sandbox="extra", confirm=True))["result"]
            assert added == {"sandbox": "extra", "change": "added", "provider": "local", "moved": []}
            await answer(client, "agent_move", agent="momentum-1", to="extra", confirm=True)
            left = (await answer(client, "sandbox_remove", sandbox="extra", confirm=True))["result"]
            assert [(one["agent"], one["status"]) for one in left["moved"]] == [("momentum-1", "running")]
            gone = (await answer(client, "agent_remove", agent="fourth-vote", forget=True, confirm=True))["result"]
            assert gone == {"agent": "fourth-vote", "forgotten": True, "warnings": []}
            status = await same_figures(swarm, client)
            assert {one["name"] for one in status["agents"]} == {*AGENTS, "momentum-1"}


async def test_every_figure_is_that_of_the_command_line(tmp_path: Path):
    async with Swarm(tmp_path, exact_toml(speed=0, rounds=ROUNDS)) as swarm:
        await finished_swarm(swarm)
        async with connect(SIGNALMESH, tmp_path, "http", swarm.environment) as client:
            last = (await printed(swarm, "audit"))["stream"]["last"]
            for tool, arguments, words in (
                ("explain", {"symbol": "BTC/USD", "round": 7}, ["explain", "--symbol", "BTC/USD", "--round", "7"]),
                ("history", {"kind": "signal", "limit": 5}, ["history", "signal", "--limit", "5"]),
                ("history", {"kind": "snapshot"}, ["history", "snapshot"]),
                ("audit", {"source": "mirror"}, ["audit", "--file", ".signalmesh/mirror.sqlite"]),
                ("replay", {"first": 100, "last": 400}, ["replay", "--from", "100", "--to", "400"]),
            ):
                found = await answer(client, tool, **arguments)
                assert same(found["result"]) == same(await printed(swarm, *words)), tool
                expected = 400 if arguments.get("last") else last
                assert found["read"]["stream_sequence"] == expected, tool
                where = found["read"]["nats"] if found["read"]["source"] == "bus" else found["read"]["file"]
                assert where in (swarm.url, ".signalmesh/mirror.sqlite")
                command = found["read"]["command"]
                assert command is None or command.startswith(f"signalmesh {words[0]}")

            status = (await answer(client, "swarm_status"))["result"]
            sandboxes = (await answer(client, "sandboxes"))["result"]
            assert same(sandboxes["sandboxes"]) == same(status["sandboxes"])
            shown = (await printed(swarm, "history", "decision", "--limit", "20"))["entries"]
            assert (await answer(client, "decisions"))["result"]["entries"] == shown
            assert (await answer(client, "decisions", source="mirror"))["result"]["entries"] == shown
            assert (await answer(client, "decisions", symbol="BTC/USD", limit=3))["result"]["entries"] == shown[-3:]
            name = shown[4]["payload"]["decision_id"]
            assert (await answer(client, "decisions", decision=name))["result"]["entries"] == [shown[4]]
            unknown = await client.call_tool("decisions", {"symbol": "ETH/USD"})
            assert text_of(unknown).endswith("expected one of the symbols BTC/USD")

            memory = (await answer(client, "memory"))["result"]
            keys = [entry["key"] for entry in memory["entries"]]
            assert keys == sorted(keys)
            assert "swarm/strategy-momentum/signal" in keys
            [entry] = (await answer(client, "memory", key="swarm/coordinator/decision"))["result"]["entries"]
            assert entry["value"] == shown[-1]["payload"]
            at_rest = (await answer(client, "memory", source="mirror"))["result"]["entries"]
            assert [{**one, "stored_at": None} for one in at_rest] == memory["entries"]
            missing = await client.call_tool("memory", {"key": "swarm/coordinator/decisions"})
            assert "did you mean 'swarm/coordinator/decision'?" in text_of(missing)

            diagnosis = await answer(client, "doctor")
            ours, theirs = diagnosis["result"], (await swarm.command("doctor", "--json")).json
            assert [(one["check"], one["level"]) for one in ours["findings"]] == [
                (one["check"], one["level"]) for one in theirs["findings"]
            ]
            assert (ours["ok"], ours["running"], ours["nats"]) == (theirs["ok"], True, swarm.url)
            await check_resources(client, shown, status)


async def check_resources(client: Client, shown: list[Any], status: dict[str, Any]) -> None:
    assert same(json.loads(await resource(client, STATUS))["result"]) == same(status)
    escaped = shown[3]["payload"]["decision_id"].replace("/", "%2F")
    assert json.loads(await resource(client, f"swarm://decisions/{escaped}"))["result"]["entries"] == [shown[3]]
    found = json.loads(await resource(client, "swarm://agents/strategy-momentum"))["result"]
    assert same(found["agent"]) in same(status["agents"])
    assert [entry["key"] for entry in found["memory"]] == ["swarm/strategy-momentum/signal"]
    report = await resource(client, "swarm://report")
    assert f"| {shown[-1]['sequence']} | {shown[-1]['payload']['decision_id']} |" in report
    assert {one.uri for one in (await client.list_resources()).resources} == {STATUS, "swarm://report"}
    [message] = (await client.get_prompt("why_this_decision", {"decision": "latest"})).messages
    assert isinstance(message.content, TextContent)
    assert "Call the tool `explain`" in message.content.text


@pytest.mark.parametrize(("transport", "mode"), list(zip(TRANSPORTS, MODES, strict=True)))
async def test_subscribers_are_told_of_a_death_and_a_cancelled_audit_leaves_nothing(tmp_path: Path, transport, mode):
    updated = asyncio.Event()

    async def on_message(message: object) -> None:
        if isinstance(message, ResourceUpdatedNotification) and str(message.params.uri) == STATUS:
            updated.set()

    async with Swarm(tmp_path, agents_toml(speed=50)) as swarm:
        subscriber = await swarm.up()
        await subscriber.live(*AGENTS)
        async with connect(
            SIGNALMESH, tmp_path, transport, swarm.environment, mode, message_handler=on_message
        ) as client:
            if mode == "legacy":
                with pytest.warns(MCPDeprecationWarning):
                    await client.subscribe_resource(STATUS)
                await kill_until(swarm, updated)
            else:
                async with client.listen(resource_subscriptions=[STATUS]) as events:
                    reading = asyncio.create_task(anext(aiter(events)))
                    reading.add_done_callback(lambda _: updated.set())
                    await kill_until(swarm, updated)
                    assert reading.result() == ResourceUpdated(uri=STATUS)

            steps: list[tuple[float, float | None]] = []
            running = asyncio.Event()

            async def note(progress: float, total: float | None, message: str | None) -> None:
                steps.append((progress, total))
                running.set()

            await client.call_tool("audit", {}, progress_callback=note)
            assert steps[-1][0] == steps[-1][1]
            async with anyio.create_task_group() as group:
                group.start_soon(client.call_tool, "audit", {})
                process = await stopped_audit()
                ends = await Ends.of(process.pid)
                group.cancel_scope.cancel()
            await ends.all()
            assert (await client.call_tool("swarm_status", {})).is_error is False


async def kill_until(swarm: Swarm, updated: asyncio.Event) -> None:
    """Kill an agent again and again: the status is read for the first time some moment after the subscription."""
    while not updated.is_set():
        assert (await swarm.command("kill", "strategy-momentum")).code == 0
    await updated.wait()


async def stopped_audit() -> psutil.Process:
    """The process of an audit below this one, stopped: it does not end by itself."""
    async with asyncio.timeout(GUARD_S):
        while True:
            for process in commands_below(os.getpid(), "audit"):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.suspend()
                    if process.status() == psutil.STATUS_STOPPED:
                        return process
            await asyncio.sleep(0.01)


async def no_children(server: int) -> None:
    """Wait until the server has taken note of the ends of its processes."""
    async with asyncio.timeout(GUARD_S):
        while psutil.Process(server).children():
            await asyncio.sleep(0.01)


async def certifying(server: int) -> list[int]:
    """The processes of a certify of this server, once its temporary swarm has agents."""
    async with asyncio.timeout(GUARD_S):
        while True:
            for process in commands_below(server, "certify"):
                with contextlib.suppress(psutil.NoSuchProcess):
                    descendants = process.children(recursive=True)
                    if any("agent" in " ".join(one.cmdline()) for one in descendants):
                        return [process.pid, *(one.pid for one in descendants)]
            await asyncio.sleep(0.01)


CALLING = """
import asyncio, json, sys
import httpx2
from mcp import Client, MCPDeprecationWarning
from mcp.client.streamable_http import streamable_http_client

async def main(url, token, mode, call):
    async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=60) as http:
        async with Client(streamable_http_client(url, http_client=http), mode=mode) as client:
            while True:
                await client.call_tool(*json.loads(call))

asyncio.run(main(*sys.argv[1:]))
"""


def calling_client(
    url: str, token: str, mode: str, tool: str, **arguments: Any
) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    """A process with a client that calls this tool again and again."""
    words = (url, token, mode, json.dumps([tool, arguments]))
    return child_process(sys.executable, "-c", CALLING, *words, stderr=asyncio.subprocess.DEVNULL)


async def test_a_client_that_hangs_up_in_the_middle_of_an_audit_or_certify_leaves_nothing(tmp_path: Path):
    async with Swarm(tmp_path, agents_toml(speed=50)) as swarm:
        await (await swarm.up()).live(*AGENTS)
        environment = {**swarm.environment, "TMPDIR": str(tmp_path)}
        async with http_server(SIGNALMESH, tmp_path, "--allow-control", environment=environment) as (
            url,
            token,
            server,
        ):
            async with calling_client(url, token, MODES[0], "audit") as client:
                process = await stopped_audit()
                ends = await Ends.of(process.pid)
                client.kill()
                await ends.all()
            await no_children(server.pid)
            async with calling_client(url, token, MODES[0], "certify", confirm=True) as client:
                ends = await Ends.of(*await certifying(server.pid))
                client.kill()
                await ends.all()
            await no_children(server.pid)
        assert [path.name for path in tmp_path.glob("signalmesh-certify-*")] == []
        assert not (tmp_path / ".signalmesh" / "certify.md").exists()


async def test_a_server_that_is_killed_leaves_no_audit(tmp_path: Path):
    async with Swarm(tmp_path, agents_toml(speed=50)) as swarm:
        await (await swarm.up()).live(*AGENTS)
        async with (
            http_server(SIGNALMESH, tmp_path, environment=swarm.environment) as (url, token, server),
            calling_client(url, token, "auto", "audit"),
        ):
            process = await stopped_audit()
            ends = await Ends.of(process.pid)
            server.kill()
            await server.wait()
            await ends.all()


async def test_a_swarm_that_is_down_is_read_from_its_mirror(tmp_path: Path):
    async with Swarm(tmp_path, exact_toml(speed=0, rounds=ROUNDS)) as swarm:
        await finished_swarm(swarm)
        live = await printed(swarm, "status")
        url = swarm.url
        async with connect(SIGNALMESH, tmp_path, "stdio", swarm.environment) as client:
            alive = await answer(client, "swarm_status")
            assert alive["read"]["source"] == "bus"
            await swarm.end(signal.SIGTERM)
            for tool, arguments in (
                ("swarm_status", {}),
                ("decisions", {}),
                ("explain", {"decision": "latest"}),
                ("memory", {}),
                ("audit", {}),
                ("replay", {}),
            ):
                found = await answer(client, tool, **arguments)
                read = found["read"]
                assert (read["source"], read["file"], read["nats"]) == ("mirror", ".signalmesh/mirror.sqlite", None)
                assert read["note"].startswith("the bus was not read: "), tool
                refused = await client.call_tool(tool, {**arguments, "source": "bus"})
                assert refused.is_error
            down = (await answer(client, "swarm_status"))["result"]
            assert down["decisions"] == live["decisions"]
            assert {agent["status"] for agent in down["agents"]} == {"stopped"}
            assert url not in json.dumps(down)
            assert "Read from the mirror .signalmesh/mirror.sqlite" in await resource(client, "swarm://report")


async def test_secrets_never_appear_and_a_swarm_with_keys_is_read_with_the_operators(tmp_path: Path):
    hook = "http://127.0.0.1:9/hook-s3cret"
    toml = f'[alerts]\nwebhook = "{hook}"\n{exact_toml(speed=0, rounds=ROUNDS)}'
    async with Swarm(tmp_path, toml) as swarm:
        await finished_swarm(swarm, "--authentication", "keys")
        async with connect(SIGNALMESH, tmp_path, "http", swarm.environment) as client:
            shown = ""
            for tool, arguments in (
                ("swarm_status", {}), ("decisions", {}), ("explain", {"decision": "latest"}), ("memory", {}),
                ("history", {"kind": "config"}), ("history", {"kind": "lifecycle"}), ("history", {"kind": "alert"}),
                ("history", {"kind": "epoch"}), ("audit", {}), ("replay", {}), ("sandboxes", {}), ("doctor", {}),
            ):  # fmt: skip
                shown += json.dumps(await answer(client, tool, **arguments))
            for uri in (STATUS, "swarm://report", "swarm://agents/coordinator"):
                shown += await resource(client, uri)
        seeds = [path.read_text().strip() for path in KeyStore(tmp_path / ".signalmesh").directory.glob("*.nk")]
        token = (tmp_path / ".signalmesh" / "mcp.token").read_text().strip()
        assert len(seeds) > len(AGENTS)
        assert [secret for secret in (*seeds, token, "hook-s3cret") if secret in shown] == []


@pytest.mark.parametrize("mode", MODES)
async def test_tools_that_act_need_the_flag_and_the_consent_of_a_person(tmp_path: Path, mode):
    asked: list[str] = []
    answers = [ElicitResult(action="decline"), ElicitResult(action="accept", content={"confirm": True})]

    async def person(context: object, params: ElicitRequestParams) -> ElicitResult:
        asked.append(params.message)
        return answers[len(asked) - 1]

    async with Swarm(tmp_path, agents_toml(speed=20)) as swarm:
        await (await swarm.up()).live(*AGENTS)
        async with connect(SIGNALMESH, tmp_path, "stdio", swarm.environment, mode) as client:
            refused = await client.call_tool("agent_kill", {"agent": "coordinator", "confirm": True})
            assert "this server only reads; a person can start it as `signalmesh mcp --allow-cont" in text_of(refused)
        flags = ("--allow-control",)
        async with connect(SIGNALMESH, tmp_path, "stdio", swarm.environment, mode, flags) as client:
            refused = await client.call_tool("agent_kill", {"agent": "coordinator"})
            assert text_of(refused).startswith("agent_kill: argument confirm: expected true, because this acts; ask ")
            report = await answer(client, "agent_kill", agent="strategy-momentum", confirm=True)
            assert (report["result"]["outputs_lost"], report["result"]["outputs_duplicated"]) == (0, 0)
            unknown = await client.call_tool("agent_restart", {"agent": "strategy-mom", "confirm": True})
            assert "strategy-mom" in text_of(unknown)
        async with connect(
            SIGNALMESH, tmp_path, "stdio", swarm.environment, mode, flags, elicitation_callback=person
        ) as client:
            refused = await client.call_tool("agent_restart", {"agent": "coordinator"})
            assert text_of(refused) == "agent_restart: the person did not agree, so nothing was done"
            restarted = (await answer(client, "agent_restart", agent="coordinator"))["result"]
            assert restarted["epoch_after"] > restarted["epoch_before"]
            assert asked == ["Restart the agent coordinator?"] * 2
            ended = (await answer(client, "swarm_down", confirm=True))["result"]
            assert ended["pid"] == swarm.process.pid
        assert await swarm.wait() == 0


@contextlib.asynccontextmanager
async def ended_at_last(swarm: Swarm) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """Kills what `swarm_up` has started, if it still runs; gives a function that returns its pid, once it is known."""
    record = swarm.directory / ".signalmesh" / "run.json"

    async def pid() -> int:
        async with asyncio.timeout(GUARD_S):
            while not record.exists():
                await asyncio.sleep(0.01)
        return int(swarm.record["pid"])

    try:
        yield pid
    finally:
        if record.exists():
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(swarm.record["pid"]).kill()


async def test_an_assistant_starts_a_swarm_that_outlives_it_breaks_it_and_ends_it(tmp_path: Path):
    swarm = Swarm(tmp_path, agents_toml(speed=20))
    start = {"port": 0, "confirm": True}
    steps: list[Any] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        steps.append((progress, total))

    async with ended_at_last(swarm) as pid_of_up:
        flags = ("--allow-control",)
        async with connect(SIGNALMESH, tmp_path, "stdio", swarm.environment, "auto", flags) as client:
            (tmp_path / "swarm.toml").rename(tmp_path / "good.toml")
            (tmp_path / "swarm.toml").write_text("agnets = 1")
            wrong = await client.call_tool("swarm_up", start)
            assert f"signalmesh: {text_of(wrong)}\n" == (await swarm.command("up", "--port", "0")).err
            (tmp_path / "good.toml").rename(tmp_path / "swarm.toml")

            async with anyio.create_task_group() as group:
                group.start_soon(client.call_tool, "swarm_up", start)
                ends = await Ends.of(await pid_of_up())
                group.cancel_scope.cancel()
            await ends.all()

            found = await client.call_tool("swarm_up", start, progress_callback=note)
            assert not found.is_error, text_of(found)
            status = (found.structured_content or {})["result"]
            assert status["active_agents"] == len(AGENTS)
            assert steps[-1] == (len(AGENTS), len(AGENTS))
            again = await client.call_tool("swarm_up", start)
            assert f"signalmesh: {text_of(again)}\n" == (await swarm.command("up", "--port", "0")).err
        later = await printed(swarm, "status")
        assert {one["name"]: one["pid"] for one in later["agents"]} == {
            one["name"]: one["pid"] for one in status["agents"]
        }

        async with connect(SIGNALMESH, tmp_path, "http", swarm.environment, "auto", flags) as client:
            name = "strategy-momentum"
            drained = await answer(client, "agent_kill", agent=name, signal="TERM", confirm=True)
            assert drained["result"]["outcome"] == "drained"
            revived = await answer(client, "agent_revive", agent=name, confirm=True)
            assert revived["result"] == {"agent": name, "was": "drained"}
            chaos = (await answer(client, "chaos", for_s=3, seed=1, confirm=True))["result"]
            assert (chaos["seed"], chaos["ok"], chaos["problems"]) == (1, True, [])
            certificate = await answer(client, "certify", confirm=True)
            assert certificate["result"]["ok"]
            report = tmp_path / ".signalmesh" / "certify.json"
            assert certificate["result"] == json.loads(report.read_text())
            ends = await Ends.of(await pid_of_up())
            assert (await answer(client, "swarm_down", confirm=True))["result"]["swarm"] == "swarm"
            await ends.all()
