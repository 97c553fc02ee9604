"""What a launcher of sandboxes relies on, by the unmodified SDK: at the stand-in, and at E2B where a key is set.

The same tests (`test_conformance_*.py`) run against both, so that a difference shows as one. Of the service a test
takes one sandbox of a minute, and kills it whatever happens. The tests run against it only where they are asked for:
`E2B_API_KEY=... pytest -m e2b`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from e2b import AsyncSandbox, CommandExitException, SandboxQuery

from tests.e2b.standin.launch import StandIn
from tests.support.collecting import GUARD_S

LIFETIME_S = 60
REAL_KEY = os.environ.get("E2B_API_KEY")


@dataclass
class Service:
    """Where the sandboxes come from. `pool` distinguishes those of this test from all others."""

    pool: str
    standin: StandIn | None

    async def create(self, **options: Any) -> AsyncSandbox:
        options = {"timeout": LIFETIME_S} | options
        options["metadata"] = {"pool": self.pool} | options.get("metadata", {})
        return await AsyncSandbox.create(**options)

    async def all(self, **query: Any) -> list[str]:
        """The ids of this test's sandboxes."""
        metadata = {"pool": self.pool} | query.pop("metadata", {})
        paginator = AsyncSandbox.list(query=SandboxQuery(metadata=metadata, **query))
        found: list[str] = []
        while paginator.has_next:
            found += [sandbox.sandbox_id for sandbox in await paginator.next_items()]
        return found


async def until(condition: Callable[[], Awaitable[Any]]) -> Any:
    """Its first true value. For what sends no notice when it happens."""
    async with asyncio.timeout(GUARD_S):
        while not (value := await condition()):
            await asyncio.sleep(0.02)
    return value


async def ended(handle: Any) -> CommandExitException:
    """The failure with which a command ends."""
    async with asyncio.timeout(GUARD_S):
        with pytest.raises(CommandExitException) as caught:
            await handle.wait()
    return caught.value


async def alive(sandbox: AsyncSandbox, pid: int | str) -> bool:
    """Whether there is such a process in the sandbox, and no zombie."""
    last_probe = await sandbox.commands.run(f"grep -c 'State:.[^ZX]' /proc/{pid}/status || true")
    return last_probe.stdout.strip() == "1"
