"""A child process that ends with its context, and with this process."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import AsyncIterator
from typing import Any

from bus.utils.processes import die_with_parent


@contextlib.asynccontextmanager
async def child_process(program: str, *arguments: str, **options: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run it with these options of asyncio's `create_subprocess_exec`; kill it at the end, if it still runs."""
    process = await asyncio.create_subprocess_exec(
        program, *arguments, preexec_fn=functools.partial(die_with_parent, os.getpid()), **options
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
