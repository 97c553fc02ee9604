"""Calls to the E2B SDK: retried with backoff behind one circuit breaker; creates are rate-limited. Imports the SDK."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import stamina
import structlog
from circuitbreaker import CircuitBreaker
from e2b import AsyncSandbox, SandboxInfo, SandboxQuery, SandboxState
from e2b.sandbox.sandbox_api import SandboxNetworkOpts

from coordinator.config.e2b import E2bSettings
from coordinator.sandboxes.e2b_errors import PermanentError, SandboxGone, error_text, is_outage, verdict_on
from coordinator.sandboxes.environment import Endpoint

__all__ = ["Service"]

T = TypeVar("T")
CREATE_EVERY_S = 1.0
"""E2B's smallest plan allows one create per second."""
FIRST_WAIT_S, LONGEST_WAIT_S, JITTER_S = 0.2, 20.0, 0.5
"""Pauses between attempts; the pause doubles each time."""
FAILURES_TO_OPEN, OPEN_S = 6, 5
"""Consecutive failures that open the circuit breaker, and seconds until it lets one call through."""
REQUEST_S = 30.0

log = structlog.get_logger("signalmesh.provider")


@dataclass(frozen=True, slots=True)
class _PassedThrough:
    """An exception that `request` raises as it is."""

    error: Exception


class Service:
    """The E2B API, or a custom endpoint, with the account of `key`. `on_alert(code, text)` publishes an alert."""

    def __init__(self, key: str, on_alert: Callable[[str, str], None]) -> None:
        self.endpoint = Endpoint.of()
        self._key = key
        self._on_alert = on_alert
        self._failing_since: dict[str, float] = {}
        """Operation -> start of its current failure (monotonic, s). Each failure is alerted once, not per attempt."""
        self._refused = False
        self._next_create = 0.0
        self._creating = asyncio.Lock()
        breaker = CircuitBreaker(FAILURES_TO_OPEN, OPEN_S, is_outage, "e2b")
        self._guarded = breaker.decorate(self._once)

    @staticmethod
    async def _once(call: Callable[[], Awaitable[T]]) -> T:
        return await call()

    async def request(
        self, what: str, call: Callable[[], Awaitable[T]], *, pass_through: tuple[type[Exception], ...] = ()
    ) -> T:
        """The result of `call`, retried while its errors are temporary.

        Exceptions of the types in `pass_through` are results: they are raised as they are, at once.

        Raises:
            SandboxGone: the sandbox no longer exists.
            PermanentError: a retry would fail as well.
        """

        def again(error: BaseException) -> bool:
            if not isinstance(error, Exception) or verdict_on(error) != "retry":
                return False  # stamina also passes CancelledError, which is no fault
            self._unhealthy(what, error)
            return True

        async def result_of_call() -> T | _PassedThrough:
            try:
                return await call()
            except pass_through as error:  # the service has answered: no failure for the circuit breaker
                return _PassedThrough(error)

        result = await self._retry(what, result_of_call, again)
        if isinstance(result, _PassedThrough):
            raise result.error
        return result

    async def _retry(self, what: str, call: Callable[[], Awaitable[T]], again: Callable[[BaseException], bool]) -> T:
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
        except Exception as error:  # noqa: BLE001 - whatever the SDK raises is judged by verdict_on
            self._healthy(what)
            kind = PermanentError if verdict_on(error) == "fail" else SandboxGone
            raise kind(f"{what}: {error_text(error, self._key)}") from None
        raise AssertionError("attempts have no end")

    def _unhealthy(self, what: str, error: Exception) -> None:
        problem = self.endpoint.failure(error_text(error, self._key))
        log.warning("provider_retried", what=what, problem=problem, kind=type(error).__name__)
        if what not in self._failing_since:
            self._failing_since[what] = time.monotonic()
            text = f"{what} failed at {self.endpoint.label}; retrying: {problem}"
            self._on_alert("provider_unavailable", text)

    def _healthy(self, what: str) -> None:
        since = self._failing_since.pop(what, None)
        if since is not None:
            log.info("provider_recovered", what=what, after_s=round(time.monotonic() - since, 1))

    def refuse(self, error: PermanentError) -> None:
        """Alert that a request for a running sandbox was refused; once, until a request succeeds again."""
        log.warning("provider_refused", problem=str(error))
        if not self._refused:
            self._refused = True
            text = f"{error}; running sandboxes continue until their lifetime ends. Check that the key is valid at "
            self._on_alert("provider_refused", f"{text}{self.endpoint.label}, then restart `signalmesh up` with it")

    @property
    def status(self) -> str:
        """The status in the provider's heartbeat: live, retrying or refused."""
        return "refused" if self._refused else "retrying" if self._failing_since else "live"

    async def create(self, settings: E2bSettings, metadata: Mapping[str, str], key: str) -> AsyncSandbox:
        """Create a sandbox; `key` (lowercase letters, digits, hyphens) makes a retry idempotent."""
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

        return await self.request("creating a sandbox", create)

    async def _pace(self) -> None:
        async with self._creating:
            await asyncio.sleep(self._next_create - time.monotonic())
            self._next_create = time.monotonic() + CREATE_EVERY_S

    async def list(self, metadata: Mapping[str, str]) -> list[SandboxInfo]:
        """All running or paused sandboxes with this metadata."""

        async def listed() -> list[SandboxInfo]:
            query = SandboxQuery(metadata=dict(metadata), state=[SandboxState.RUNNING, SandboxState.PAUSED])
            pages = AsyncSandbox.list(query=query, api_key=self._key, request_timeout=REQUEST_S)
            found: list[SandboxInfo] = []
            while pages.has_next:
                found += await pages.next_items()
            return found

        return await self.request("listing sandboxes", listed)

    async def connect(self, sandbox_id: str, lifetime_s: int) -> AsyncSandbox:
        """Connect to a sandbox; resumes it if paused, and extends its lifetime to at least `lifetime_s`."""
        return await self.request(
            f"connecting to sandbox {sandbox_id}",
            lambda: AsyncSandbox.connect(sandbox_id, timeout=lifetime_s, api_key=self._key, request_timeout=REQUEST_S),
        )

    async def info(self, sandbox: AsyncSandbox) -> SandboxInfo:
        return await self.request(f"reading the state of sandbox {sandbox.sandbox_id}", sandbox.get_info)

    async def kill(self, sandbox_id: str, within_s: float) -> str:
        """Delete it; returns the reason if that failed, else an empty string."""
        problem = "no answer"
        try:
            async with asyncio.timeout(within_s):
                while True:
                    try:
                        await AsyncSandbox.kill(sandbox_id, api_key=self._key, request_timeout=REQUEST_S)
                        return ""
                    except Exception as error:  # noqa: BLE001 - whatever the SDK raises is judged by verdict_on
                        problem = error_text(error, self._key)
                        if verdict_on(error) != "retry":
                            return problem
                    await asyncio.sleep(FIRST_WAIT_S)
        except TimeoutError:
            return problem

    async def check(self) -> None:
        """Send one request to check the key; raises the SDK's error unchanged."""
        pages = AsyncSandbox.list(limit=1, api_key=self._key, request_timeout=REQUEST_S, retries=1)
        with contextlib.suppress(StopAsyncIteration):
            await pages.next_items()
