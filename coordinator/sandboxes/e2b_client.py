"""The SDK as the launcher uses it: each call retried with backoff behind one circuit breaker, creates paced.

Owns the calls and no decision. Imports the SDK.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import stamina
import structlog
from circuitbreaker import CircuitBreaker
from e2b import AsyncSandbox, SandboxInfo, SandboxQuery, SandboxState
from e2b.sandbox.sandbox_api import SandboxNetworkOpts

from coordinator.config.e2b import E2bSettings
from coordinator.sandboxes.e2b_errors import GivenUp, Gone, is_illness, shown, verdict_on
from coordinator.sandboxes.environment import Endpoint

__all__ = ["Service"]

T = TypeVar("T")
CREATE_EVERY_S = 1.0
"""E2B lets the smallest plan create one sandbox a second."""
FIRST_WAIT_S, LONGEST_WAIT_S, JITTER_S = 0.2, 20.0, 0.5
"""Between attempts, doubling."""
FAILURES_TO_OPEN, OPEN_S = 6, 5
"""So many failures in a row stop all calls for so many seconds; then one more failure stops them again."""
REQUEST_S = 30.0

log = structlog.get_logger("signalmesh.provider")


class Service:
    """E2B, or what stands at its place, as the account of `key` sees it. `told(code, text)` alerts."""

    def __init__(self, key: str, told: Callable[[str, str], None]) -> None:
        self.endpoint = Endpoint.of()
        self._key = key
        self._told = told
        self._failing_since: dict[str, float] = {}
        """What fails at the moment, and was told of: each once, however often it is asked again."""
        self._refused = False
        self._next_create = 0.0
        self._creating = asyncio.Lock()
        breaker = CircuitBreaker(FAILURES_TO_OPEN, OPEN_S, is_illness, "e2b")
        self._guarded = breaker.decorate(self._once)

    @staticmethod
    async def _once(call: Callable[[], Awaitable[T]]) -> T:
        return await call()

    async def ask(self, what: str, call: Callable[[], Awaitable[T]]) -> T:
        """The answer to `call`, tried again as long as that can help.

        Raises:
            Gone: the sandbox that it is about is no more.
            GivenUp: a repetition would fail as well.
        """

        def again(error: BaseException) -> bool:
            if not isinstance(error, Exception) or verdict_on(error) != "retry":
                return False  # stamina asks of a CancelledError too: that is somebody's wish, and no fault
            self._unhealthy(what, error)
            return True

        try:
            async for attempt in stamina.retry_context(
                on=again,
                attempts=None,
                timeout=None,
                wait_initial=FIRST_WAIT_S,
                wait_max=LONGEST_WAIT_S,
                wait_jitter=JITTER_S,
            ):
                with attempt:
                    answer: T = await self._guarded(call)
                    self._healthy(what)
                    self._refused = False
                    return answer
        except Exception as error:  # noqa: BLE001 - whatever the SDK raises: judged by the one table
            self._healthy(what)
            kind = GivenUp if verdict_on(error) == "give up" else Gone
            raise kind(f"{what}: {shown(error, self._key)}") from None
        raise AssertionError("attempts have no end")

    def _unhealthy(self, what: str, error: Exception) -> None:
        problem = shown(error, self._key)
        log.warning("provider_retried", what=what, problem=problem, kind=type(error).__name__)
        if what not in self._failing_since:
            self._failing_since[what] = time.monotonic()
            text = f"{what} failed at {self.endpoint.shown}, and is tried again: {problem}"
            self._told("provider_unavailable", text)

    def _healthy(self, what: str) -> None:
        since = self._failing_since.pop(what, None)
        if since is not None:
            log.info("provider_recovered", what=what, after_s=round(time.monotonic() - since, 1))

    def refuse(self, error: GivenUp) -> None:
        """A sandbox that runs was refused something: told once, until something is granted again."""
        log.warning("provider_refused", problem=str(error))
        if not self._refused:
            self._refused = True
            text = f"{error}; what runs goes on until its lifetime ends. See that the key is valid at "
            self._told("provider_refused", f"{text}{self.endpoint.shown}, and start `signalmesh up` again with it")

    @property
    def status(self) -> str:
        """What heartbeats say of it: live, retrying, refused."""
        return "refused" if self._refused else "retrying" if self._failing_since else "live"

    async def create(self, settings: E2bSettings, metadata: Mapping[str, str], key: str) -> AsyncSandbox:
        """A new sandbox; the same `key` (lowercase letters, digits, hyphens) makes no second one."""
        network: SandboxNetworkOpts = {"allow_public_traffic": False}
        if settings.allow:
            network["allow_out"] = list(settings.allow)
        if settings.deny:
            network["deny_out"] = list(settings.deny)

        async def create() -> AsyncSandbox:
            await self._pace()
            return await AsyncSandbox.create(
                template=settings.template,
                timeout=settings.timeout_s,
                metadata={**settings.metadata, **metadata},
                envs=dict(settings.env),
                network=network,
                lifecycle={"on_timeout": "kill"},
                idempotency_key=key,
                api_key=self._key,
                request_timeout=REQUEST_S,
            )

        return await self.ask("creating a sandbox", create)

    async def _pace(self) -> None:
        async with self._creating:
            await asyncio.sleep(self._next_create - time.monotonic())
            self._next_create = time.monotonic() + CREATE_EVERY_S

    async def list(self, metadata: Mapping[str, str]) -> list[SandboxInfo]:
        """All that run or are paused and have this metadata."""

        async def listed() -> list[SandboxInfo]:
            query = SandboxQuery(metadata=dict(metadata), state=[SandboxState.RUNNING, SandboxState.PAUSED])
            pages = AsyncSandbox.list(query=query, api_key=self._key, request_timeout=REQUEST_S)
            found: list[SandboxInfo] = []
            while pages.has_next:
                found += await pages.next_items()
            return found

        return await self.ask("listing sandboxes", listed)

    async def connect(self, sandbox_id: str, lifetime_s: int) -> AsyncSandbox:
        """That sandbox, which is resumed if it is paused, and lives so long at least."""
        return await self.ask(
            f"connecting to sandbox {sandbox_id}",
            lambda: AsyncSandbox.connect(sandbox_id, timeout=lifetime_s, api_key=self._key, request_timeout=REQUEST_S),
        )

    async def info(self, sandbox: AsyncSandbox) -> SandboxInfo:
        return await self.ask(f"asking for sandbox {sandbox.sandbox_id}", sandbox.get_info)

    async def kill(self, sandbox_id: str, within_s: float) -> str:
        """End it; why it could not be, or nothing."""
        problem = "no answer"
        try:
            async with asyncio.timeout(within_s):
                while True:
                    try:
                        await AsyncSandbox.kill(sandbox_id, api_key=self._key, request_timeout=REQUEST_S)
                        return ""
                    except Exception as error:  # noqa: BLE001 - whatever the SDK raises: judged by the one table
                        problem = shown(error, self._key)
                        if verdict_on(error) != "retry":
                            return problem
                    await asyncio.sleep(FIRST_WAIT_S)
        except TimeoutError:
            return problem

    async def check(self) -> None:
        """One request, whatever comes of it raised as it is: whether the key is accepted."""
        pages = AsyncSandbox.list(limit=1, api_key=self._key, request_timeout=REQUEST_S, retries=1)
        with contextlib.suppress(StopAsyncIteration):
            await pages.next_items()
