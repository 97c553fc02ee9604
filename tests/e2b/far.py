"""A whole swarm with one sandbox that the stand-in of E2B makes, as its user would have it at E2B.

The sandbox `python` has the strategy of mean reversion and the coordinator. Its template is one that has our program:
the interpreter of these tests.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from tests.acceptance.ear import Ear
from tests.acceptance.swarm import GUARD_S, Swarm, agents_toml
from tests.e2b.standin.launch import ROOT, StandIn
from tests.support.cluster import free_ports

FAR_AGENTS = ("strategy-mean-reversion", "coordinator")


def far_toml(speed: float = 20, **settings: Any) -> str:
    """A swarm.toml; `settings` are of the sandbox, as TOML."""
    settings = {"python": json.dumps(sys.executable), "env": f"{{ PYTHONPATH = {json.dumps(str(ROOT))} }}"} | settings
    lines = "\n".join(f"{key} = {value}" for key, value in settings.items())
    return f"""
[sandboxes.base]
[sandboxes.nodejs]
[sandboxes.python]
provider = "e2b"
{lines}
{agents_toml(speed=speed)}
"""


class FarSwarm(Swarm):
    """`up` has the stand-in's key and addresses in its environment."""

    def __init__(self, directory: Path, standin: StandIn, toml: str = "") -> None:
        super().__init__(directory, toml or far_toml(), environment=standin.environment)
        self.standin = standin
        self.port = str(free_ports(1)[0])

    async def far_up(self, public: str = "") -> Ear:
        """Start it; `public` is the address that sandboxes are given."""
        self.environment["SIGNALMESH_PUBLIC_NATS"] = public or f"nats://127.0.0.1:{self.port}"
        return await self.up(port=self.port)

    async def far_host(self, ear: Ear, other_than: str = "") -> str:
        """The name of the host in the sandbox, when it is heard; `other_than` that one."""

        def found() -> str | None:
            for name, beat in ear.beats.items():
                if beat["role"] == "sandbox" and beat.get("provider") == "e2b" and name != other_than:
                    return name
            return None

        return await ear.until("a host of E2B", found)

    async def agents_in(self, ear: Ear, host: str) -> dict[str, dict[str, Any]]:
        """The heartbeats of the two agents that belong there, when they come from there."""
        await ear.until(
            f"agents in {host}", lambda: all(ear.beats.get(name, {}).get("sandbox") == host for name in FAR_AGENTS)
        )
        return await ear.live(*FAR_AGENTS)

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
        """A log tells nobody that it grew: it is looked at."""
        async with asyncio.timeout(GUARD_S):
            while len(found := self.logged(event)) < count:
                await asyncio.sleep(0.1)
        return found

    def created(self) -> int:
        """How many sandboxes were asked for and made since the stand-in began."""
        requests = self.standin.requests("/v2/sandboxes")
        return sum(
            line["method"] == "POST" and line["status"] == 201 and not line["path"].endswith("/connect")
            for line in requests
        )

    async def assert_exact(self) -> None:
        """Nothing is lost, doubled or out of order, says `audit`."""
        audit = await self.verb("audit")
        assert audit.code == 0, audit.out + audit.err
        assert "all of it holds" in audit.out
