"""Ending background tasks for sure."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")
PATIENCE_S = 0.1
"""How long a cancelled task may take to clean up before it is cancelled once more."""


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until all have ended, whatever their results.

    Once is not enough: before Python 3.12 `asyncio.wait_for` (which nats-py uses for every request) loses a
    cancellation that arrives together with the answer, and the task would go on for ever.
    """
    tasks = [task for task in tasks if task is not asyncio.current_task()]
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=PATIENCE_S)
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()  # looked at, so that asyncio does not complain that nobody did


def run_to_end(main: Coroutine[Any, Any, T]) -> T:
    """Like `asyncio.run`, but whatever `main` leaves behind is ended for sure: asyncio cancels only once."""

    async def to_the_end() -> T:
        try:
            return await main
        finally:
            await end_tasks(asyncio.all_tasks())

    return asyncio.run(to_the_end())
