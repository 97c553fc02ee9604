"""A whole swarm with one sandbox that the stand-in of E2B makes, as its user would have it at E2B.

The sandbox `python` has the strategy of mean reversion and the coordinator. Its template is one that has our program:
the interpreter of these tests.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.acceptance.subscriber import Subscriber
from tests.acceptance.swarm import GUARD_S, Swarm, agents_toml
from tests.e2b.standin.launch import StandIn
from tests.support.ports import free_port
from tests.support.repository import ROOT

REMOTE_AGENTS = ("strategy-mean-reversion", "coordinator")


def remote_toml(speed: float = 20, **settings: Any) -> str:
    """A swarm.toml; `settings` are of the sandbox, as TOML."""
    return f"""
[sandboxes.base]
[sandboxes.nodejs]
{remote_sandbox(**settings)}
{agents_toml(speed=speed)}
"""


def remote_sandbox(**settings: Any) -> str:
    """The table of the sandbox `python`."""
    settings = {"python": json.dumps(sys.executable), "env": env_toml()} | settings
    lines = "\n".join(f"{key} = {value}" for key, value in settings.items())
    return f'[sandboxes.python]\nprovider = "e2b"\n{lines}'


def env_toml(**variables: str) -> str:
    """The variables of its processes, our program's whereabouts among them."""
    all_of_them = {"PYTHONPATH": str(ROOT), **variables}
    return "{ " + ", ".join(f"{name} = {json.dumps(value)}" for name, value in all_of_them.items()) + " }"


async def until(condition: Callable[[], Awaitable[Any]]) -> Any:
    """Its first true value. For what sends no notice when it happens."""
    async with asyncio.timeout(GUARD_S):
        while not (value := await condition()):
            await asyncio.sleep(0.1)
    return value


def texts(value: Any) -> Iterator[str]:
    """All texts in a JSON value, decoded where they are base64."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        for item in value:
            yield from texts(item)
    elif isinstance(value, str):
        yield value
        with contextlib.suppress(ValueError):
            yield base64.b64decode(value, validate=True).decode()


@dataclass(frozen=True)
class StartedSwarm:
    """A swarm whose two remote agents run in its one sandbox, and its state at that time."""

    swarm: RemoteSwarm
    subscriber: Subscriber
    host: str
    sandbox_id: str
    heartbeats: dict[str, dict[str, Any]]
    """Of the two agents."""
    pid: int
    """Of the host in the sandbox."""
    new_ones: int
    """Sandboxes that were created so far."""

    @property
    def epochs(self) -> dict[str, int]:
        return {name: heartbeat["epoch"] for name, heartbeat in self.heartbeats.items()}

    @property
    def launcher(self) -> int:
        """The provider's present pid."""
        return self.swarm.pid_of("provider")

    async def untouched(self) -> None:
        """The same processes send heartbeats in the same epochs, and no sandbox was created or ended."""
        subscriber = self.subscriber
        await subscriber.more_heartbeats(3, self.host, *REMOTE_AGENTS)
        assert subscriber.heartbeats[self.host]["pid"] == self.pid
        assert {
            name: (subscriber.heartbeats[name]["epoch"], subscriber.heartbeats[name]["pid"]) for name in REMOTE_AGENTS
        } == {name: (heartbeat["epoch"], heartbeat["pid"]) for name, heartbeat in self.heartbeats.items()}
        assert self.swarm.created() == self.new_ones
        assert list(await self.swarm.standin.sandboxes()) == [self.sandbox_id]

    async def moved_to_local(self) -> None:
        """The agents are live in newer epochs, in sandboxes of this machine."""
        after = await self.subscriber.back(self.epochs)
        assert all(heartbeat["sandbox"] in ("base", "nodejs") for heartbeat in after.values())

    def alerts(self, code: str) -> list[dict[str, Any]]:
        """Those received so far."""
        return [alert for alert in self.subscriber.alerts if alert["code"] == code]


class RemoteSwarm(Swarm):
    """`up` has the stand-in's key and addresses in its environment."""

    def __init__(self, directory: Path, standin: StandIn, toml: str = "") -> None:
        super().__init__(directory, toml or remote_toml(), environment=standin.environment)
        self.standin = standin
        self.port = str(free_port())

    async def up_with_remote(self, public: str = "", *arguments: str) -> Subscriber:
        """Start it; `public` is the address that sandboxes are given, `arguments` are further ones of `up`."""
        self.environment["SIGNALMESH_PUBLIC_NATS"] = public or f"nats://127.0.0.1:{self.port}"
        return await self.up(*arguments, port=self.port)

    async def started(self, public: str = "", *arguments: str) -> StartedSwarm:
        """Start it, and wait until its remote agents run in the sandbox."""
        subscriber = await self.up_with_remote(public, *arguments)
        host = await self.remote_host(subscriber)
        heartbeats = await self.agents_in(subscriber, host)
        sandbox_id = host.removeprefix("python-")
        assert list(await self.standin.sandboxes()) == [sandbox_id]
        return StartedSwarm(
            self, subscriber, host, sandbox_id, heartbeats, subscriber.heartbeats[host]["pid"], self.created()
        )

    async def remote_host(self, subscriber: Subscriber, other_than: str = "") -> str:
        """The name of the host in the sandbox, once it has sent a heartbeat; `other_than` that one."""

        def found() -> str | None:
            for name, heartbeat in subscriber.heartbeats.items():
                if heartbeat["role"] == "sandbox" and heartbeat.get("provider") == "e2b" and name != other_than:
                    return name
            return None

        return await subscriber.until("a host of E2B", found)

    async def agents_in(self, subscriber: Subscriber, host: str) -> dict[str, dict[str, Any]]:
        """The heartbeats of the two agents that belong there, when they come from there."""
        await subscriber.until(
            f"agents in {host}",
            lambda: all(subscriber.heartbeats.get(name, {}).get("sandbox") == host for name in REMOTE_AGENTS),
        )
        return await subscriber.live(*REMOTE_AGENTS)

    def pid_of(self, kind: str) -> int:
        """Of a child of `up`, by the record."""
        [pid] = [child["pid"] for child in self.record["children"] if child["kind"] == kind]
        return int(pid)

    def logged(self, event: str) -> list[dict[str, Any]]:
        """What the provider has logged of that name."""
        text = (self.directory / ".signalmesh" / "logs" / "provider.log").read_text()
        lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("event") == event]

    async def until_logged(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        """A log sends no notice that it grew: it is polled."""
        async with asyncio.timeout(GUARD_S):
            while len(found := self.logged(event)) < count:
                await asyncio.sleep(0.1)
        return found

    def created(self) -> int:
        """How many sandboxes were requested and created since the stand-in started."""
        requests = self.standin.requests("/v2/sandboxes")
        return sum(
            line["method"] == "POST" and line["status"] == 201 and not line["path"].endswith("/connect")
            for line in requests
        )

    async def down(self) -> None:
        """`down`, after which no sandbox is there."""
        down = await self.command("down")
        assert down.code == 0, down.err
        await self.wait()
        assert await self.standin.sandboxes() == {}

    async def assert_exact(self) -> None:
        """Nothing is lost, duplicated or out of order by `audit`."""
        audit = await self.command("audit")
        assert audit.code == 0, audit.out + audit.err
        assert "all checks passed" in audit.out
