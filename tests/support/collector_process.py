"""`python -m tests.support.collector_process`: a collector in a process of its own, that can be killed.

It prints its address, and after each request the number of spans that it has.
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bus.utils.processes import die_with_parent
from tests.support.collector import GUARD_S, collecting


class CollectorProcess:
    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self._process, self.url = process, url
        self.spans = 0

    async def _line(self) -> str:
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode().strip()

    async def until(self, spans: int) -> None:
        """Wait until it has so many."""
        async with asyncio.timeout(GUARD_S):
            while self.spans < spans:
                self.spans = int(await self._line())

    async def kill(self) -> None:
        """SIGKILL, and wait for its end; `spans` are then those that it had taken."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
        await self._process.wait()
        while line := await self._line():
            self.spans = int(line)


@asynccontextmanager
async def collector_process() -> AsyncIterator[CollectorProcess]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.collector_process",
        stdout=asyncio.subprocess.PIPE, preexec_fn=functools.partial(die_with_parent, os.getpid()),
    )  # fmt: skip
    assert process.stdout is not None
    collector = CollectorProcess(process, (await process.stdout.readline()).decode().strip())
    try:
        yield collector
    finally:
        await collector.kill()


async def main() -> None:
    async with collecting() as collector:
        print(collector.url, flush=True)  # noqa: T201
        while True:
            await collector.more()
            print(len(collector.spans), flush=True)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main())
