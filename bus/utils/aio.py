"""Ending background tasks reliably, and TLS on a stream."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import ssl

T = TypeVar("T")
U = TypeVar("U")
TIMEOUT_S = 0.1
"""How long a cancelled task may take to clean up before it is cancelled once more."""


def current_task_or_none() -> asyncio.Task[Any] | None:
    """The current task; None outside of any, or without a running loop."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def is_cancelled() -> bool:
    """Whether the current task is being cancelled; a CancelledError can also come from an awaited task."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until all have ended, whatever their results.

    Once is not enough: before Python 3.12 `asyncio.wait_for` (which nats-py uses for every request) loses a
    cancellation that arrives together with the answer, and the task would never end.
    """
    tasks = [task for task in tasks if task is not asyncio.current_task()]
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=TIMEOUT_S)
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not warn about it


async def both(one: Coroutine[Any, Any, T], other: Coroutine[Any, Any, U]) -> tuple[T, U]:
    """Run two coroutines concurrently and return both results; if one raises, the other is cancelled."""
    first, second = asyncio.create_task(one), asyncio.create_task(other)
    try:
        done, _ = await asyncio.wait({first, second}, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        return first.result(), second.result()
    finally:
        await end_tasks(task for task in (first, second) if not task.done())


async def finish(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end and return its result, however often the caller is cancelled meanwhile (`end_tasks`)."""
    task = asyncio.create_task(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    return task.result()


def run_to_end(main: Coroutine[Any, Any, T], loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> T:
    """Like `asyncio.run`, but all tasks that `main` leaves behind end: asyncio cancels them only once.

    `loop_factory` creates the event loop, by default asyncio's own.
    """

    async def to_the_end() -> T:
        try:
            return await main
        finally:
            await end_tasks(asyncio.all_tasks())

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(to_the_end())


async def start_tls(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    context: ssl.SSLContext,
    server_hostname: str | None = None,
    *,
    server_side: bool = False,
) -> asyncio.StreamWriter:
    """Begin TLS on a stream; `reader` then has what was encrypted. The old writer has to be kept beside the new one.

    As `StreamWriter.start_tls`, which leaves a writer without a transport behind if the connection ends meanwhile.

    Raises:
        OSError: the handshake failed.
    """
    loop, protocol = asyncio.get_running_loop(), writer.transport.get_protocol()
    transport = await loop.start_tls(
        writer.transport, protocol, context, server_side=server_side, server_hostname=server_hostname
    )
    if transport is None:
        raise ConnectionResetError("the connection ended during the handshake")
    return asyncio.StreamWriter(transport, protocol, reader, loop)
