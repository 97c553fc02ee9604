"""Reconciles one configured sandbox: adopts or creates it, replaces it when lost or old, and deletes it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import time
from datetime import UTC, datetime

import orjson
import structlog
from e2b import AsyncSandbox, SandboxInfo

from bus.heartbeats import HeartbeatListener
from bus.messages import CREATING, FAILED
from bus.nats.urls import redacted_url
from bus.utils.aio import end_tasks
from coordinator.sandboxes.e2b_client import Service
from coordinator.sandboxes.e2b_errors import PermanentError, SandboxGone
from coordinator.sandboxes.events import SandboxEvents
from coordinator.sandboxes.instance import SandboxInstance, SandboxTarget

__all__ = ["SandboxReconciler"]

SUCCESSOR_S = 300.0
"""Time for the first heartbeat of a successor; after that the old sandbox, still healthy, is kept for longer."""
RETRY_S = 60.0
CREATE_TIMEOUT_S = 10.0
"""How long a shutdown waits for the response to a pending create."""
END_S = 5.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0
"""Pause before replacing a sandbox that was lost early; it doubles each time."""
STEADY_S = 60.0
MAX_UNUSABLE = 3
"""Consecutive sandboxes without any heartbeat after which no more are created, because each costs money."""

log = structlog.get_logger("signalmesh.provider")


class SandboxReconciler:
    """Maintains the sandbox `target`, and reports to `events`."""

    def __init__(
        self,
        service: Service,
        hosts: HeartbeatListener,
        target: SandboxTarget,
        events: SandboxEvents,
    ) -> None:
        self._service, self._hosts, self._target, self._events = service, hosts, target, events
        self.instances: list[SandboxInstance] = []
        self.orphans: list[tuple[str, str]] = []
        """Sandboxes that could not be deleted, with the reason."""
        self.failed = False
        """Whether it has failed permanently: an operator must act."""
        self._not_replaced = ""
        self._creating: asyncio.Task[AsyncSandbox] | None = None
        """A create whose sandbox is not yet in `instances`."""

    @property
    def name(self) -> str:
        """Name of the sandbox in the configuration."""
        return self._target.name

    @property
    def phase(self) -> str | None:
        """Why none of its hosts sends heartbeats; None if one does."""
        if self.failed:
            return FAILED
        return None if any(instance.had_heartbeat for instance in self.instances) else CREATING

    @property
    def _labels(self) -> dict[str, str]:
        return {"pool": self._target.pool, "sandbox": self._target.name}

    def _metadata(self) -> dict[str, str]:
        """The labels to find a sandbox by, with its version and settings, to recognise whether it is up to date."""
        target = self._target
        encoded = orjson.dumps([target.settings, redacted_url(target.url)])
        return {
            **self._labels,
            "swarm": target.swarm,
            "version": target.version[:16],
            "settings": hashlib.sha256(encoded).hexdigest()[:16],
        }

    async def run(self) -> None:
        """Run until cancelled, or until a permanent failure."""
        try:
            await self._keep()
        except PermanentError as error:
            self.failed = True
            self._events.alert(
                "sandbox_failed",
                f"sandbox {self._target.name} failed permanently: {error}; its agents run in other sandboxes. "
                "Fix it, then restart `signalmesh up`",
            )
            self._events.host_ended(self._target.name, str(error))
            await self.close()

    async def _keep(self) -> None:
        instance = await self._adopt()
        await self._forget_others(instance)
        if instance is None:
            instance = await self._create()
        pause_s, unusable = FIRST_PAUSE_S, 0
        settings = self._target.settings
        while True:
            due_s = instance.since + settings.max_age_s * settings.replace_at - time.monotonic()
            await asyncio.wait({instance.task}, timeout=max(0.0, due_s))
            if not instance.task.done():
                instance = await self._replace(instance)
                continue
            try:
                instance.task.result()
            except SandboxGone as error:
                self._report_gone(instance, error)
                unusable = 0 if instance.had_heartbeat else unusable + 1
                if unusable >= MAX_UNUSABLE:
                    raise PermanentError(f"{unusable} in a row were unusable, most recently: {error}") from None
            await self._end(instance)
            pause_s = (
                FIRST_PAUSE_S if time.monotonic() - instance.since > STEADY_S else min(pause_s * 2, LONGEST_PAUSE_S)
            )
            await asyncio.sleep(pause_s / 2)
            instance = await self._create()

    def _report_gone(self, instance: SandboxInstance, error: SandboxGone) -> None:
        self._events.host_ended(instance.host_name, str(error))
        self._events.alert("sandbox_gone", f"sandbox {instance.host_name} is lost and will be replaced: {error}")

    # -- creation

    async def _forget_others(self, instance: SandboxInstance | None) -> None:
        """Remove the keys of hosts that an earlier provider process has left."""
        if (keys := self._target.keys) is not None:
            await asyncio.to_thread(keys.retain, [] if instance is None else [instance.host_name])

    async def _adopt(self) -> SandboxInstance | None:
        """The newest sandbox of an earlier provider process with our version and settings; all others are deleted."""
        found = await self._service.list(self._labels)
        metadata = self._metadata()
        found.sort(key=lambda info: info.started_at, reverse=True)
        instance: SandboxInstance | None = None
        for info in found:
            if instance is None and metadata.items() <= info.metadata.items():
                with contextlib.suppress(SandboxGone):
                    instance = self._add_instance(
                        await self._service.connect(info.sandbox_id, self._lifetime_s), _age_s(info)
                    )
                    log.info("sandbox_adopted", sandbox_id=info.sandbox_id, sandbox=self._target.name)
                    continue
            log.info("orphan_sandbox_deleted", sandbox_id=info.sandbox_id, sandbox=self._target.name)
            if problem := await self._service.kill(info.sandbox_id, END_S):
                self._events.alert(
                    "sandbox_not_deleted",
                    f"sandbox {info.sandbox_id} of an earlier run could not be deleted: {problem}",
                )
        return instance

    @property
    def _lifetime_s(self) -> int:
        return self._target.settings.timeout_s

    async def _create(self) -> SandboxInstance:
        target, key = self._target, f"{target_key(self._target.pool)}-{secrets.token_hex(8)}"
        while True:
            try:
                self._creating = asyncio.create_task(self._service.create(target.settings, self._metadata(), key))
                sandbox = await asyncio.shield(self._creating)
                info = await self._service.info(sandbox)
            except SandboxGone as error:
                log.warning("sandbox_lost_during_create", problem=str(error))
                key = f"{target_key(target.pool)}-{secrets.token_hex(8)}"
                continue
            log.info(
                "sandbox_created", sandbox_id=sandbox.sandbox_id, sandbox=target.name, at=self._service.endpoint.label
            )
            try:
                self._check_size(info)
            except PermanentError:
                await self._service.kill(sandbox.sandbox_id, END_S)
                raise
            self._creating = None
            return self._add_instance(sandbox, 0.0)

    def _add_instance(self, sandbox: AsyncSandbox, age_s: float) -> SandboxInstance:
        instance = SandboxInstance(self._service, self._hosts, self._target, sandbox, age_s, self._events)
        self.instances.append(instance)
        self._events.instances_changed()
        return instance

    def _check_size(self, info: SandboxInfo) -> None:
        """Check CPUs and memory. The API has no parameter for them: the template defines both."""
        settings = self._target.settings
        for key, configured, actual in (
            ("cpu", settings.cpu, info.cpu_count),
            ("memory_mb", settings.memory_mb, info.memory_mb),
        ):
            if configured is not None and configured != actual:
                raise PermanentError(
                    f"sandboxes.{self._target.name}.{key} is {configured}, but template {settings.template!r} gives "
                    f"{actual}, and only the template defines it: use a template with {configured}, or set {key} = "
                    f"{actual}"
                )

    # -- replacement and deletion

    async def _replace(self, old: SandboxInstance) -> SandboxInstance:
        """Create a successor; the old sandbox is deleted after the first heartbeat of the new host."""
        log.info("sandbox_replaced", sandbox_id=old.id, age_s=round(time.monotonic() - old.since))
        creating = asyncio.create_task(self._create(), name=f"successor-of-{old.id}")
        try:
            await asyncio.wait({creating, old.task}, return_when=asyncio.FIRST_COMPLETED)
            if old.task.done() and isinstance(error := old.task.exception(), SandboxGone):
                self._report_gone(old, error)
                await self._end(old)
                return await creating
            new = await creating
        except PermanentError as error:
            if old not in self.instances:
                raise
            return self._keep_old(old, str(error))
        finally:
            await end_tasks([creating])
        try:
            async with asyncio.timeout(SUCCESSOR_S):
                await new.wait_healthy()
        except (SandboxGone, PermanentError, TimeoutError) as error:
            await self._end(new)
            return self._keep_old(old, str(error) or f"no heartbeat for {SUCCESSOR_S:.0f} s")
        await self._end(old)
        self._not_replaced = ""
        return new

    def _keep_old(self, old: SandboxInstance, why: str) -> SandboxInstance:
        """Keep the old one for RETRY_S; each reason is alerted once."""
        if why != self._not_replaced:
            self._not_replaced = why
            self._events.alert(
                "sandbox_not_replaced",
                f"sandbox {old.host_name} is due for replacement, but its successor failed: {why}",
            )
        old.since += RETRY_S
        return old

    async def _end(self, instance: SandboxInstance) -> None:
        if problem := await instance.close():
            self.orphans.append((instance.id, problem))
            self._events.alert("sandbox_not_deleted", f"sandbox {instance.host_name} could not be deleted: {problem}")
        self.instances.remove(instance)
        self._events.instances_changed()

    async def close(self) -> None:
        """Drain and delete all instances."""
        await asyncio.gather(self._end_created(), *(self._end(instance) for instance in list(self.instances)))

    async def _end_created(self) -> None:
        """Delete the sandbox of a pending create: it comes into being even if its response is not awaited."""
        if (creating := self._creating) is None:
            return
        self._creating = None
        await asyncio.wait({creating}, timeout=CREATE_TIMEOUT_S)
        if creating.done() and not creating.cancelled() and creating.exception() is None:
            sandbox_id = creating.result().sandbox_id
            if problem := await self._service.kill(sandbox_id, END_S):
                self.orphans.append((sandbox_id, problem))
                self._events.instances_changed()
        await end_tasks([creating])


def target_key(pool: str) -> str:
    """Prefix of idempotency keys, which may contain lowercase letters, digits and hyphens."""
    return pool.lower()


def _age_s(info: SandboxInfo) -> float:
    return max(0.0, (datetime.now(UTC) - info.started_at).total_seconds())
