"""Every `signalmesh` command of the runbooks is run, against a real swarm; those that end it come last."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import signal
from pathlib import Path

import pytest

from bus.server.supervisor import NatsServer
from bus.utils.processes import die_with_parent
from tests.acceptance.exact import exact_toml
from tests.acceptance.swarm import ENVIRONMENT, GUARD_S, SIGNALMESH, Swarm
from tests.support.repository import ROOT

RUNBOOKS = sorted((ROOT / "docs" / "runbooks").glob("*.md"))
COMMAND = re.compile(r"^ *signalmesh ([^#\n]+)|`signalmesh ([^`]+)`", re.MULTILINE)
ENDLESS = {"agent": "ready", "mirror": "restored from", "sandbox": "", "watch": "", "metrics": "metrics_served"}
"""Commands that run until they are ended: a word that they print first, or the process whose heartbeat then comes."""
STEPS = ("replay", "revive", "down", "up", "mirror")
"""What comes last, in this order: what ends the swarm or begins it."""


def commands() -> set[tuple[str, ...]]:
    found = set()
    for runbook in RUNBOOKS:
        for block, span in COMMAND.findall(runbook.read_text()):
            found.add(tuple((block or span).strip().split()))
    return found


def filled(command: tuple[str, ...]) -> list[str]:
    """The command with an agent and a sandbox for their placeholders, and chaos as short as it can be."""
    names = {"NAME": "strategy-momentum", "AGENT": "strategy-momentum", "SANDBOX": "another"}
    words = [names.get(word, word) for word in command]
    if words[0] == "chaos" and "--for" in words:
        words[words.index("--for") + 1] = "5"
    return words


async def run_a_while(directory: Path, words: list[str], until: str, environment: dict[str, str]) -> str:
    """Run an endless command until it has printed `until` (or anything), and end it as Ctrl-C does."""
    process = await asyncio.create_subprocess_exec(
        str(SIGNALMESH),
        *words,
        cwd=directory,
        env=ENVIRONMENT | environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        preexec_fn=functools.partial(die_with_parent, os.getpid()),
    )
    assert process.stdout is not None
    output = ""
    try:
        async with asyncio.timeout(GUARD_S):
            while line := (await process.stdout.readline()).decode():
                output += line
                if until in line:
                    break
            else:
                raise AssertionError(f"{words} ended by itself: {output}")
            process.send_signal(signal.SIGINT)
            output += (await process.stdout.read()).decode()
            code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert code in (0, 130), (words, output)
    assert "Traceback" not in output
    return output


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_every_command_of_the_runbooks_works(tmp_path):
    wanted = commands()
    names = {command[0] for command in wanted}
    assert {"status", "audit", "doctor", "history", "kill", "down", "up", "mirror"} <= names
    toml = exact_toml(speed=20, rounds=100_000)
    done = set()
    async with Swarm(tmp_path / "swarm", toml) as swarm:
        subscriber = await swarm.up()
        await subscriber.decided(30)
        await subscriber.publish("alert.warning.test", alert())

        for command in sorted(wanted):
            words = filled(command)
            if words[0] in STEPS:
                continue
            if words[0] == "watch":
                watching = asyncio.create_task(run_a_while(swarm.directory, words, "heard you", {}))
                while not watching.done():  # it receives only what is stored after it has subscribed
                    await subscriber.publish("alert.warning.test", alert())
                    await asyncio.sleep(0.2)
                await watching
            elif words[0] in ENDLESS:
                await run_a_while(swarm.directory, words, ENDLESS[words[0]], {})
                await subscriber.live("strategy-momentum")
            else:
                ended = await swarm.command(*words)
                assert ended.code == 0, (words, ended.out, ended.err)
            done.add(command)
        for command in sorted(command for command in wanted if command[0] in ("replay", "revive")):
            words = filled(command)
            if words[0] == "revive":
                assert (await swarm.command("kill", words[1], "--signal", "TERM")).code == 0
            ended = await swarm.command(*words)
            assert ended.code == 0, (words, ended.out, ended.err)
            done.add(command)
        decided = len(subscriber.decisions)
        assert decided > 30
        for command in sorted(command for command in wanted if command[0] == "down"):
            ended = await swarm.command(*command)
            assert ended.code == 0, ended.err
            assert await swarm.wait() == 0
            done.add(command)
        for command in sorted(command for command in wanted if command[0] == "up"):
            again = await swarm.up(*command[1:])
            await again.decided(decided + 10)
            audited = await swarm.command("audit")
            assert audited.code == 0, audited.out
            assert await swarm.end(signal.SIGINT) == 0
            done.add(command)
    for command in sorted(command for command in wanted if command[0] == "mirror"):
        async with NatsServer(tmp_path / "empty", port=0) as server:
            output = await run_a_while(
                swarm.directory, list(command), ENDLESS["mirror"], {"SIGNALMESH_NATS": server.url}
            )
            assert "restored from the mirror" in output
        done.add(command)
    assert done == wanted


def alert() -> dict[str, str]:
    return {
        "severity": "warning", "code": "test", "message": "heard you", "timestamp": "2026-01-01T00:00:00Z",
        "source": "test",
    }  # fmt: skip
