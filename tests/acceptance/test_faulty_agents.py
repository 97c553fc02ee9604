"""A user's agent whose handler fails on every input: quarantined with its exception named, and revived."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from agents.runtime.inputs import MAX_CONSECUTIVE_SKIPS
from tests.acceptance.subscriber import Subscriber
from tests.acceptance.swarm import Ends, Swarm, agents_toml, run_command

FAILING = """\
from pathlib import Path
from agents.agent import Agent
from bus.messages import MarketData, Signal

class Hopeless(Agent):
    kind = "hopeless"
    listens = ("market",)

    def on_market(self, tick: MarketData) -> Signal:
        if not Path("mended").exists():
            raise SystemExit("no such model")
        return self.signal(tick, "hold", 0.5)
"""


@pytest.mark.slow
async def test_a_permanently_failing_agent_is_quarantined_reported_and_revived(tmp_path: Path):
    toml = f'max_agents = 6\n{agents_toml(speed=20, history=10)}\n[agents.hopeless]\nclass = "hopeless:Hopeless"\n'
    (tmp_path / "hopeless.py").write_text(FAILING)
    async with Swarm(tmp_path, toml) as swarm:
        subscriber = await swarm.up()

        def events(name: str) -> list[dict[str, Any]]:
            return [item for item in subscriber.lifecycle if (item["event"], item["agent"]) == (name, "hopeless")]

        for chance in (1, 2):
            alert = (await subscriber.alerted("agent_unusable", chance))[-1]
            for word in (
                "hopeless",
                f"{chance * MAX_CONSECUTIVE_SKIPS} inputs in a row",
                "on_market",
                "SystemExit",
                "revive",
            ):
                assert word in alert["message"], alert
            await subscriber.until("quarantined", lambda: len(events("quarantined")) == chance)  # noqa: B023 - awaited here
            if chance == 2:
                (tmp_path / "mended").touch()
            assert (await swarm.command("revive", "hopeless")).code == 0
        skipped = [item["detail"]["sequence"] for item in events("skipped")]
        assert len(skipped) == len(set(skipped)) == 2 * MAX_CONSECUTIVE_SKIPS
        await subscriber.until(
            "it votes", lambda: subscriber.decisions and "hopeless" in subscriber.decisions[-1]["agents_consulted"]
        )
        # A decision may be received before the heartbeat that comes after the last input that it skipped.
        await subscriber.until(
            "all skips counted", lambda: subscriber.heartbeats["hopeless"]["skipped"] >= 2 * MAX_CONSECUTIVE_SKIPS
        )
        heartbeat = (await subscriber.live("hopeless"))["hopeless"]
        assert heartbeat["skipped"] == 2 * MAX_CONSECUTIVE_SKIPS
        assert len(events("quarantined")) == len(events("exited")) == 2


CURSED = """\
import os
from pathlib import Path
from agents.agent import Agent
from bus.messages import MarketData, Signal

class Cursed(Agent):
    kind = "cursed"
    listens = ("market",)

    def setup(self):
        if Path("cursed").exists():
            os._exit(3)

    def on_market(self, tick: MarketData) -> Signal:
        return self.signal(tick, "hold", 0.5)
"""


@pytest.mark.slow
async def test_one_that_dies_before_it_is_ready_is_known_by_its_newest_epoch(tmp_path: Path):
    toml = (
        f"max_agents = 6\n[watchdog]\nquarantine_deaths = 3\n{agents_toml(speed=20, history=10)}\n"
        '[agents.cursed]\nclass = "cursed:Cursed"\n'
    )
    (tmp_path / "cursed.py").write_text(CURSED)
    async with Swarm(tmp_path, toml) as swarm:
        subscriber = await swarm.up()
        ready = (await subscriber.live("cursed"))["cursed"]
        (tmp_path / "cursed").touch()
        swarm.send(ready["pid"], signal.SIGKILL)
        quarantined = await subscriber.happened("quarantined", "cursed")

        async def result() -> tuple[str, int, str]:
            rows = (await swarm.command("status", "--json")).json["agents"]
            [row] = [row for row in rows if row["name"] == "cursed"]
            return row["status"], row["epoch"], row["agent_id"]

        messages = [item for item in subscriber.messages if item.subject == "swarm.epoch.cursed"]
        assert len(messages) == 3
        expected = ("quarantined", quarantined["epoch"], messages[-1].json["claim"])
        assert expected[1] == messages[-1].sequence > ready["epoch"]
        assert await result() == expected
        watchdog = subscriber.heartbeats["watchdog"]
        swarm.send(watchdog["pid"], signal.SIGKILL)
        await subscriber.until(
            "another watchdog", lambda: subscriber.heartbeats["watchdog"]["epoch"] > watchdog["epoch"]
        )
        await subscriber.more_heartbeats(20, "watchdog")
        assert await result() == expected
        assert len([item for item in subscriber.lifecycle if item["event"] == "declared_dead"]) == 3
        (tmp_path / "cursed").unlink()
        assert (await swarm.command("revive", "cursed")).code == 0
        await subscriber.back({"cursed": quarantined["epoch"]})


RAISING = """\
import asyncio
import contextlib
from agents.agent import Agent

class Raising(Agent):
    kind = "raising"
    publishes = ("market",)

    async def produce(self, last):
        raise ConnectionError("the exchange refused the key" + 300_000 * "x" + chr(0xD800))
        yield

class Stubborn(Agent):
    kind = "stubborn"
    listens = ("market",)

    async def on_market(self, tick):
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass
"""


@pytest.mark.slow
async def test_deaths_and_quarantines_name_the_exception(tmp_path: Path):
    """A source that raises, and a handler that neither ends nor can be cancelled: their sandbox goes on with others."""
    own = "".join(
        f'[agents.{name}]\nclass = "own.py:{name.capitalize()}"\nsandbox = "base"\n' for name in ("raising", "stubborn")
    )
    watchdog = "[watchdog]\nstarved_ms = 1500\nquarantine_deaths = 3\nquarantine_window_s = 60"
    toml = f"max_agents = 7\n{watchdog}\n{agents_toml(speed=20, history=10)}\n{own}"
    (tmp_path / "own.py").write_text(RAISING)
    reasons = {
        "raising": "ConnectionError: the exchange refused the key",
        "stubborn": "agent stubborn: on_market over message",
    }
    async with Swarm(tmp_path, toml) as swarm:
        subscriber = await swarm.up()

        def reports(event: str, name: str) -> list[str]:
            found = (item for item in subscriber.lifecycle if (item["event"], item["agent"]) == (event, name))
            return [item["reason"] for item in found]

        for name, reason in reasons.items():
            await subscriber.until(f"{name} is quarantined", lambda: reports("quarantined", name))  # noqa: B023 - awaited here
            for event, count in (("declared_dead", 3), ("exited", 3), ("quarantined", 1)):
                found = reports(event, name)
                assert len(found) == count, found
                assert all(text.count(reason) == 1 and len(text) < 4100 for text in found), found
            [alert] = await subscriber.until(
                "its alert",
                lambda: [
                    item
                    for item in subscriber.alerts
                    if (item["code"], item.get("agent")) == ("quarantined", name)  # noqa: B023 - awaited here
                ],
            )
            assert reason in alert["message"]
        await subscriber.more_decisions(20)


SLOW = """\
from pathlib import Path
from agents.agent import Agent

def wait(name):
    if Path(name).exists():
        Path(name).read_bytes()  # a named pipe: until the test has closed its other end

wait("importing")

class Slow(Agent):
    kind = "slow"
    listens = ("market",)

    def setup(self):
        wait("creating")

    def on_market(self, tick):
        return None
"""


@pytest.mark.slow
async def test_an_import_is_waited_for_and_its_time_out_names_what_was_done(tmp_path: Path):
    """Longer than any silence is allowed, and then longer than the start may take."""
    own = '[agents.slow]\nclass = "own.py:Slow"\n'
    watchdog = "[watchdog]\nstart_timeout_s = 6"
    toml = f"max_agents = 6\n{watchdog}\n{agents_toml(speed=20, history=10)}\n{own}"
    (tmp_path / "own.py").write_text(SLOW)
    async with Swarm(tmp_path, toml) as swarm:
        subscriber = await swarm.up()
        epoch = (await subscriber.live("slow"))["slow"]["epoch"]
        importing = tmp_path / "importing"
        os.mkfifo(importing)
        assert (await swarm.command("kill", "slow", "--wait", "0.1")).code == 1

        def imports() -> bool:
            heartbeat = subscriber.heartbeats["slow"]
            return heartbeat.get("doing") == "importing own.py" and heartbeat["sequence"] > 35

        await subscriber.until("heartbeats for longer than a start without them may take", imports)
        with importing.open("wb"):
            importing.unlink()
        await subscriber.back({"slow": epoch})
        deaths = [item for item in subscriber.lifecycle if (item["event"], item["agent"]) == ("declared_dead", "slow")]
        assert len(deaths) == 1, deaths
        os.mkfifo(tmp_path / "creating")
        assert (await swarm.command("kill", "slow", "--wait", "0.1")).code == 1
        reason = "creating it (its setup()): 6 s, longer than [watchdog] start_timeout_s = 6"
        await subscriber.until(
            "its death has the reason",
            lambda: any(item["event"] == "declared_dead" and item["reason"] == reason for item in subscriber.lifecycle),
        )
        await subscriber.more_decisions(10)


@pytest.mark.slow
async def test_a_run_without_success_ends_with_its_reason_and_exit_code_1(tmp_path: Path):
    """An agent in quarantine, and a swarm whose only source never yields: not the exit code of a run that worked."""
    own = '[agents.raising]\nclass = "own.py:Raising"\n'
    toml = f"max_agents = 6\n[watchdog]\nquarantine_deaths = 2\n{agents_toml(speed=20, history=10)}\n{own}"
    (tmp_path / "own.py").write_text(RAISING)
    async with Swarm(tmp_path, toml) as swarm:
        subscriber = await swarm.up()
        await subscriber.alerted("quarantined", 1)
        assert await swarm.end(signal.SIGINT) == 1
        last = swarm.errors.splitlines()[-1]
        assert last.startswith("signalmesh: agent raising is quarantined: 2 deaths within")
        assert "ConnectionError: the exchange refused the key" in last

    silent = tmp_path / "silent"
    silent.mkdir()
    (silent / "own.py").write_text(SILENT)
    feed, decider = '[agents.silent]\nclass = "own.py:Silent"', '[agents.coordinator]\nkind = "coordinator"'
    voter = '[agents.voter]\nkind = "momentum"'
    (silent / "swarm.toml").write_text(f"{feed}\n{voter}\n{decider}\n")
    ended = await run_command(silent, "up", "--port", "0", "--for", "3")
    assert ended.code == 1
    assert ended.err.splitlines()[-1].startswith("signalmesh: no decision was made in this run")


SILENT = """\
import asyncio
from agents.agent import Agent

class Silent(Agent):
    kind = "silent"
    publishes = ("market",)

    async def produce(self, last):
        await asyncio.Event().wait()
        yield
"""


FORKING = """\
import asyncio
import multiprocessing
import os
import signal
import subprocess
from pathlib import Path
from agents.agent import Agent

def pause():
    while True:
        signal.pause()

class Forking(Agent):
    kind = "forking"
    publishes = ("market",)

    async def produce(self, last):
        child = os.fork()
        if child == 0:
            pause()
        daemon = os.fork()
        if daemon == 0:
            os.setsid()
            pause()
        program = subprocess.Popen(["sh", "-c", "sleep 3600 & wait"], start_new_session=True).pid
        worker = multiprocessing.get_context("fork").Process(target=pause)
        worker.start()
        children = (child, daemon, program, worker.pid)
        failing = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, failing.set)
        Path("new").write_text(" ".join(map(str, children)))
        Path("new").rename(f"child-of-{os.getpid()}")
        await failing.wait()
        raise ConnectionError("the exchange refused the key")
        yield
"""


@pytest.mark.slow
async def test_children_that_an_agent_has_forked_end_after_it_and_delay_no_end_of_it(tmp_path: Path):
    """After a kill, a drain, an exception, a kill of its host, and the end of the swarm."""
    toml = f'max_agents = 6\n{agents_toml(speed=20, history=10)}\n[agents.forking]\nclass = "own.py:Forking"\n'
    (tmp_path / "own.py").write_text(FORKING)
    children: dict[int, list[psutil.Process]] = {}
    async with Swarm(tmp_path, toml) as swarm:
        try:
            subscriber = await swarm.up()

            async def forked() -> tuple[int, Ends]:
                """The pid of its next process, once that has children, and their ends."""

                def found() -> int | None:
                    pid = int(subscriber.heartbeats.get("forking", {}).get("pid") or 0)
                    return pid if pid not in children and (tmp_path / f"child-of-{pid}").exists() else None

                pid: int = await subscriber.until("it has children", found)
                direct = map(int, (tmp_path / f"child-of-{pid}").read_text().split())
                children[pid] = [psutil.Process(child) for child in direct]
                children[pid] += [below for child in children[pid] for below in child.children()]
                return pid, await Ends.of(*(child.pid for child in children[pid]))

            killed, ends = await forked()
            assert (await swarm.command("kill", "forking")).code == 0
            await ends.all()
            drained, ends = await forked()
            assert (await swarm.command("restart", "forking")).code == 0
            await ends.all()
            failed, ends = await forked()
            swarm.send(failed, signal.SIGUSR1)
            await ends.all()
            _, of_killed_host = await forked()
            sandbox = subscriber.heartbeats["forking"]["sandbox"]
            [host] = [each["pid"] for each in swarm.record["children"] if each["name"] == sandbox]
            swarm.send(host, signal.SIGKILL)
            last, of_last = await forked()
            ends = await Ends.of(*(process.pid for process in swarm.all_agents()))
            assert (await swarm.command("down")).code == 0
            assert await swarm.wait() == 0
            for each in (ends, of_last, of_killed_host):
                await each.all()
            reasons = {item["pid"]: item["reason"] for item in exits(subscriber, "forking")}
            assert (reasons[killed], reasons[drained], reasons[last]) == ("signal 9", "exit code 0", "exit code 0")
            assert reasons[failed].endswith("ConnectionError: the exchange refused the key")
        finally:
            for child in [child for of_one in children.values() for child in of_one]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()


def exits(subscriber: Subscriber, name: str) -> list[dict[str, Any]]:
    """The reports of the ends of its processes."""
    return [item for item in subscriber.lifecycle if (item["event"], item["agent"]) == ("exited", name)]
