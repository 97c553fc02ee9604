"""`signalmesh certify` as its user has it: the report, its verdict, and that nothing of the run is left."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import socket
from pathlib import Path

import psutil
import pytest

from bus.messages import Alert, encode, now
from bus.nats.bus import NatsBus
from bus.nats.credentials import Credentials
from bus.utils.processes import die_with_parent
from coordinator.security.keys import KeyStore
from tests.acceptance.swarm import AGENTS, ENVIRONMENT, GUARD_S, SANDBOXES, SIGNALMESH, Ends, run_command
from tests.support.ports import free_port

GUARD = 3 * GUARD_S


def leftovers(directory: Path) -> list[str]:
    return [path.name for path in directory.glob("signalmesh-certify-*")]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where certify puts its temporary directory."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setitem(ENVIRONMENT, "TMPDIR", str(directory))
    return directory


async def started_until(
    directory: Path, step: bytes, *arguments: str
) -> tuple[asyncio.subprocess.Process, asyncio.StreamReader]:
    """A run of certify that has started that step; and its output from then on."""
    process = await asyncio.create_subprocess_exec(
        str(SIGNALMESH), "certify", *arguments, cwd=directory, env=ENVIRONMENT, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        preexec_fn=functools.partial(die_with_parent, os.getpid()),
    )  # fmt: skip
    assert process.stderr is not None
    async with asyncio.timeout(GUARD_S):
        async for line in process.stderr:
            if step in line:
                break
    return process, process.stderr


async def rest_of(process: asyncio.subprocess.Process, stderr: asyncio.StreamReader) -> str:
    """The output of a run to its end."""
    async with asyncio.timeout(GUARD):
        output = (await stderr.read()).decode()
        await process.wait()
    assert "Traceback" not in output
    return output


@pytest.mark.slow
@pytest.mark.serial
async def test_a_run_passes_and_its_report_is_its_json(tmp_path: Path, temporary: Path):
    done = await run_command(tmp_path, "certify", "--json", "--out", "report.md", guard_s=GUARD)
    assert done.code == 0, done.out + done.err
    found = done.json
    assert found == json.loads((tmp_path / "report.json").read_text())
    assert found["ok"]
    assert all(target["ok"] for target in found["targets"])
    assert [row["name"] for row in found["sandboxes"]] == list(SANDBOXES)
    assert {agent for row in found["sandboxes"] for agent in row["agents"]} == set(AGENTS)
    own = os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    for row in found["sandboxes"]:
        assert row["probe"]["namespaces"]["pid"] == own
        assert "pid namespace" in row["isolation"]["shared"]
        health = row["health"]
        assert 0 < health["availability"] <= 1
        assert health["processes"] >= 3
        assert health["rx_bytes"] is None
        assert "this machine" in health["network"]
        assert (health["cost"], health["price_source"]) == (None, "no price is set")
    assert len({row["probe"]["pid"] for row in found["sandboxes"]}) == 3
    assert [row["agent"] for row in found["memory"]] == list(AGENTS)
    assert all(row["sequence"] and row["mirrored"] for row in found["memory"])
    assert {row["agent"] for row in found["snapshots"]} == set(AGENTS)
    fault = found["fault"]
    assert (fault["agent"], fault["outcome"]) == ("research-1", "recovered")
    assert fault["epoch_after"] > fault["epoch_before"]
    assert found["restored"]["outputs"] > 0
    measured = {target["name"]: target["measured"] for target in found["targets"]}
    assert measured["recovery"] == fault["ready_ms"] / 1000
    assert measured["detection"] == fault["detected_ms"] / 1000
    hops = {(hop["source"], hop["to"]) for hop in found["flow"]["hops"]}
    assert hops >= {("research-1", voter) for voter in AGENTS[1:4]}
    assert found["audit"]["ok"]
    last_probe = {row["what"]: row["orphans"] for row in found["cleanup"]["checks"]}
    assert last_probe == {"processes": [], "NATS server": [], "directory": []}
    assert found["cleanup"]["processes"] >= 14  # up, nats-server, three hosts, watchdog, mirror, agents and more
    text = (tmp_path / "report.md").read_text()
    for target in found["targets"]:
        places = 0 if target["exactly"] else 3
        assert f"| {target['name']} |" in text
        assert f"{target['measured']:,.{places}f} {target['unit']} | met |" in text
    for row in found["memory"]:
        assert f"| {row['key']} | {row['bytes']} |" in text
        assert f"{row['sha256'][:16]} | message {row['sequence']} | same |" in text
    for agent in found["agents"]:
        assert agent["agent_id"] in text
    for row in found["sandboxes"]:
        assert row["probed_ms"] > row["received_ms"]
        assert f"| {row['health']['pss_mb']:,.1f} MiB | {row['health']['rss_mb']:,.1f} MiB |" in text
        assert f"| {row['probe']['own_memory_bytes'] / (1 << 20):,.1f} MiB |" in text
    flow = found["flow"]
    assert flow["rounds_awaited"] == flow["rounds_at_once"] + 60
    assert flow["rounds_warmup"] == 10
    decided = flow["rounds_at_once"] + flow["rounds_warmup"] + flow["tick_to_decision_ms"]["n"]
    assert f"The stream had {decided} decided rounds" in text
    assert "| step of certify | took certify |" in text
    assert leftovers(temporary) == []


@pytest.mark.slow
async def test_a_missed_target_fails_the_run(tmp_path: Path, temporary: Path):
    done = await run_command(tmp_path, "certify", "--max-detection", "0.000001", guard_s=GUARD)
    assert done.code == 1, done.out + done.err
    assert "missed: detection" in done.out
    assert "| detection | < 1e-06 s |" in (tmp_path / "certify.md").read_text()
    found = json.loads((tmp_path / "certify.json").read_text())
    assert [target["name"] for target in found["targets"] if not target["ok"]] == ["detection"]
    assert leftovers(temporary) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_an_interrupted_run_leaves_nothing_running(tmp_path: Path, temporary: Path, number: int):
    process, stderr = await started_until(tmp_path, b"until rounds are decided")
    all_agents = psutil.Process(process.pid).children(recursive=True)
    assert len(all_agents) >= 14
    ends = await Ends.of(*(child.pid for child in all_agents))
    process.send_signal(number)
    await ends.all()
    output = (await stderr.read()).decode()
    code = await process.wait()
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 130), output
    if number != signal.SIGKILL:
        assert "signalmesh: certify was interrupted; nothing is left: processes (" in output
        assert f"directory ({temporary}/signalmesh-certify-" in output
        assert leftovers(temporary) == []
        return
    [left] = temporary.glob("signalmesh-certify-*")
    doctor = await run_command(tmp_path, "doctor", "--json")
    [finding] = [row for row in doctor.json["findings"] if row["check"] == "earlier certify"]
    assert (finding["level"], finding["remedy"]) == ("warning", f"rm -r {left}")
    assert str(left) in finding["text"]
    again = await run_command(tmp_path, "certify", guard_s=GUARD)
    assert again.code == 0, again.err
    assert f"has left {left}: rm -r {left}" in again.err
    assert f"Earlier run: an interrupted run has left {left}" in (tmp_path / "certify.md").read_text()


@pytest.mark.slow
@pytest.mark.serial
async def test_a_host_that_is_killed_in_the_run_serves_again_at_its_end(tmp_path: Path, temporary: Path):
    """Under the same name: it is one sandbox, and was lost only for a moment."""
    process, stderr = await started_until(tmp_path, b"until rounds are decided")
    hosts = {
        command[command.index("sandbox") + 1]: child.pid
        for child in psutil.Process(process.pid).children(recursive=True)
        if "sandbox" in (command := " ".join(child.cmdline()).split())
    }
    assert set(hosts) == set(SANDBOXES)
    os.kill(hosts["base"], signal.SIGKILL)
    output = await rest_of(process, stderr)
    assert process.returncode == 0, output
    assert f"warning: sandbox_died: sandbox base (pid {hosts['base']}) ended with signal 9" in output
    found = json.loads((tmp_path / "certify.json").read_text())
    assert {row["name"]: (row["state"], row["why"]) for row in found["sandboxes"]} == dict.fromkeys(
        SANDBOXES, ("active", "")
    )
    up = {row["name"]: row["uptime_s"] for row in found["sandboxes"]}
    assert up["base"] < min(up["nodejs"], up["python"]), "its figures are not of the one that died"
    [deployed] = [target for target in found["targets"] if target["name"] == "sandboxes deployed"]
    assert (deployed["ok"], deployed["measured"]) == (True, 3.0)
    assert "sandbox base" in found["alert_texts"]["sandbox_died"]
    text = (tmp_path / "certify.md").read_text()
    assert "- 3 of 3 sandboxes and 5 of 5 agents were active at the end of the run." in text
    assert "was lost**" not in text


@pytest.mark.slow
@pytest.mark.serial
async def test_alerts_are_printed_as_they_come_and_do_no_harm(tmp_path: Path, temporary: Path):
    """Each text once, so that a second sandbox's trouble is not hidden by the first one's."""
    port = free_port()
    process, stderr = await started_until(tmp_path, b"waiting for the hosts", "--nats-port", str(port))
    [state_dir] = temporary.glob("signalmesh-certify-*/state")
    operator = Credentials(nkey_seed=KeyStore(state_dir).seed("operator"))
    bus = await NatsBus.connect(f"nats://127.0.0.1:{port}", "swarm", "somebody", credentials=operator)
    texts = ["base is ill", "python is ill", "base is ill", "\x1b[2Jcleared\nforged line", "x" * 5000]
    alerts = [("ill", text) for text in texts] + [("many", f"trouble {number}") for number in range(30)]
    for code, text in alerts:
        alert = Alert(severity="warning", code=code, message=text, timestamp=now(), source="somebody")
        await bus.publish(f"in.{bus.subjects.alert('warning', 'somebody')}", encode(alert))
    await bus.close()
    output = await rest_of(process, stderr)
    assert process.returncode == 0, output
    assert output.count("warning: ill: base is ill") == 1
    assert output.count("warning: ill: python is ill") == 1
    assert "\x1b" not in output
    assert "warning: ill: \\u001b[2Jcleared\\u000aforged line" in output
    assert max(map(len, output.splitlines())) < 1500
    assert output.count("warning: many: trouble ") == 20
    assert output.count("trouble 19; further ones of this code are counted in the report") == 1
    found = json.loads((tmp_path / "certify.json").read_text())
    assert (found["alerts"]["ill"], found["alerts"]["many"]) == (5, 30)
    assert found["alert_texts"]["many"] == "trouble 29"
    assert found["alert_texts"]["ill"] == "x" * 999 + "…"
    assert f"- ill: {'x' * 999}…\n" in (tmp_path / "certify.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--provider", "nowhere"), "--provider nowhere: expected one of local"),
        (("--config", "missing.toml"), "missing.toml"),
        (("--config", "missing.toml", "--provider", "local"), "--provider: cannot be combined with --config"),
        (("--max-detection", "0"), "--max-detection 0.0: expected a finite number of seconds above 0"),
        (("--max-downtime", "nan"), "--max-downtime nan: expected a finite number of seconds above 0"),
        (("--max-detection", "inf"), "--max-detection inf: expected a finite number of seconds above 0"),
        (("--nats-port", "99999"), "--nats-port 99999: expected 0 (any free port) to 65535"),
        (("--nats-port", "-1"), "--nats-port -1: expected 0 (any free port) to 65535"),
        (("--out", "missing/report.md"), "--out missing/report.md: it cannot be written: No such file or directory"),
        (("--out", "report.json"), "--out report.json: expected the name of the Markdown report"),
        (("--out", ""), "--out: expected a value, not an empty text"),
        (("--out", "."), "--out .: expected the name of a file for the report"),
        (("--out", "/"), "--out /: expected the name of a file for the report"),
        (("--out", "-"), "--out -: expected the name of a file for the report; --json prints it"),
        (("--out", "/dev/null"), "--out /dev/null: it is a device: expected a regular file"),
        (("--out", "/dev/full"), "--out /dev/full: it is a device: expected a regular file"),
    ],
)
async def test_mistakes_are_reported_before_anything_is_started(tmp_path: Path, arguments, expected):
    done = await run_command(tmp_path, "certify", *arguments)
    assert done.code == 2
    assert expected in done.err
    assert "deploying" not in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("reason", ["its JSON is a directory", "both are one file", "it is the configuration"])
async def test_unusable_report_files_are_reported_before_anything_is_started(tmp_path: Path, reason: str):
    arguments = []
    if reason == "its JSON is a directory":
        (tmp_path / "r.json").mkdir()
        expected = "--out r.md: its JSON goes to r.json, which is a directory: expected a regular file"
    elif reason == "both are one file":
        (tmp_path / "r.md").symlink_to("r.json")
        expected = f"--out r.md: the report and its JSON are one file, {tmp_path / 'r.json'}: expected two"
    else:
        (tmp_path / "r.md").write_text("[sandboxes.base]\n")
        arguments = ["--config", "r.md"]
        expected = "--out r.md: it is the --config: expected another name"
    before = sorted(tmp_path.iterdir())
    done = await run_command(tmp_path, "certify", "--out", "r.md", *arguments)
    assert (done.code, expected in done.err) == (2, True), done.err
    assert "deploying" not in done.err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
async def test_a_port_that_is_taken_is_named_as_it_was_given(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = await run_command(tmp_path, "certify", "--nats-port", str(port))
    assert done.code == 2
    assert f"--nats-port {port}: another program listens there; --nats-port 0 picks a free one" in done.err


@pytest.mark.slow
@pytest.mark.serial
async def test_a_report_that_cannot_be_written_after_all_does_not_cost_the_results(tmp_path: Path, temporary: Path):
    process = await asyncio.create_subprocess_exec(
        str(SIGNALMESH), "certify", "--out", "r.md", cwd=tmp_path, env=ENVIRONMENT, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        preexec_fn=functools.partial(die_with_parent, os.getpid()),
    )  # fmt: skip
    assert process.stderr is not None
    assert b"deploying" in await process.stderr.readline()
    (tmp_path / "r.json").mkdir()
    async with asyncio.timeout(GUARD):
        out, err = await process.communicate()
    assert process.returncode == 2
    assert b"--out r.md: r.json could not be written: Is a directory" in err
    assert b"10 of 10 targets met" in out
    assert "10 of 10 targets met" in (tmp_path / "r.md").read_text()
    assert leftovers(temporary) == []


@pytest.mark.slow
async def test_a_closed_terminal_ends_it_in_order(tmp_path: Path, temporary: Path):
    """There is no terminal to print to any more, and the kernel sends SIGHUP."""
    ours, its = os.openpty()
    process = await asyncio.create_subprocess_exec(
        str(SIGNALMESH), "certify", cwd=tmp_path, env=ENVIRONMENT, preexec_fn=functools.partial(os.login_tty, its)
    )
    os.close(its)
    output = b""
    async with asyncio.timeout(GUARD_S):
        while b"until 5 agents are live" not in output:
            output += await asyncio.to_thread(os.read, ours, 4096)
    all_agents = psutil.Process(process.pid).children(recursive=True)
    ends = await Ends.of(*(child.pid for child in all_agents))
    os.close(ours)
    await ends.all()
    assert await process.wait() == 130
    assert leftovers(temporary) == []
