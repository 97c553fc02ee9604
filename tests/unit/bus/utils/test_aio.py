"""Tasks that end in order."""

from __future__ import annotations

import asyncio

import pytest

from bus.utils.aio import end_tasks, finish


async def test_work_is_finished_however_often_its_caller_is_cancelled():
    begun, may_end, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def clean_up() -> None:
        begun.set()
        await may_end.wait()
        ended.set()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await finish(clean_up())

    working = asyncio.create_task(work())
    await asyncio.sleep(0)
    ending = asyncio.create_task(end_tasks([working]))
    await begun.wait()
    for _ in range(3):
        working.cancel()
        await asyncio.sleep(0)
    assert not working.done()
    may_end.set()
    await ending
    assert ended.is_set()
    assert working.cancelled()


async def test_what_the_work_raises_is_raised():
    async def fail() -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        await finish(fail())
