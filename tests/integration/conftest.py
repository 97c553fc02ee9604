"""What integration tests share: no task of a test outlives it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from bus.tasks import end_tasks


@pytest.fixture(autouse=True)
async def nothing_left_running() -> AsyncIterator[None]:
    """End what a test leaves behind: asyncio cancels once, and nats-py's requests can lose that one cancellation."""
    before = asyncio.all_tasks()
    yield
    await end_tasks(asyncio.all_tasks() - before)
