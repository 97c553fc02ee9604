"""What integration tests share: no task of a test outlives it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uvloop

from bus.utils.aio import end_tasks

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
"""Agents run on uvloop, all others on asyncio's own."""
HERE = Path(__file__).parent
LOOPS_OF = {
    HERE / "agents" / "builtin" / "test_command.py": ("uvloop",),
    HERE / "bus" / "nats" / "test_connection.py": ("asyncio", "uvloop"),
}
assert all(path.exists() for path in LOOPS_OF)


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    names = LOOPS_OF.get(item.path, ("asyncio",))
    return {name: LOOPS[name] for name in names}


@pytest.fixture(autouse=True)
async def nothing_left_running() -> AsyncIterator[None]:
    """End what a test leaves behind: asyncio cancels once, and nats-py's requests can lose that one cancellation."""
    before = asyncio.all_tasks()
    yield
    await end_tasks(asyncio.all_tasks() - before)
