"""Keeps one configured sandbox there: adopts or makes it, replaces it when it is lost or grows old, ends it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime

import orjson
import structlog
from e2b import AsyncSandbox, SandboxInfo

from bus.heartbeats import HeartbeatListener
from bus.messages import FAILED, MAKING
from bus.nats.urls import redacted_url
from bus.utils.aio import end_tasks
from coordinator.sandboxes.e2b_client import Service
from coordinator.sandboxes.e2b_errors import GivenUp, Gone
from coordinator.sandboxes.instance import SandboxInstance, SandboxTarget

__all__ = ["SandboxReconciler"]

SUCCESSOR_S = 300.0
"""How long a successor may take to be heard before the old sandbox, which is still well, is kept a little longer."""
AGAIN_S = 60.0
CREATED_S = 10.0
"""How long the answer to a create is waited for when all is to end."""
END_S = 5.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0
"""Before another sandbox is made in the place of one that was lost soon, doubling."""
STEADY_S = 60.0
USELESS = 3
"""So many sandboxes in a row whose host was never heard, and no more are made: they cost, and help nobody."""

log = structlog.get_logger("signalmesh.provider")


class SandboxReconciler:
    """Of the sandbox `wanted`. `told(code, text)` alerts, `lost(host, reason)` says that a host is no more."""

    def __init__(
        self,
        service: Service,
        hosts: HeartbeatListener,
        target: SandboxTarget,
        told: Callable[[str, str], None],
        lost: Callable[[str, str], None],
        changed: Callable[[], None],
    ) -> None:
        self._service, self._hosts, self._wanted = service, hosts, target
        self._told, self._lost, self._changed = told, lost, changed
        self.instances: list[SandboxInstance] = []
        self.orphans: list[tuple[str, str]] = []
        """Sandboxes that could not be ended, and why."""
        self.failed = False
        """Whether only a person can help."""
        self._not_replaced = ""
        self._creating: asyncio.Task[AsyncSandbox] | None = None
        """Asked for, and in no place yet."""

    @property
    def name(self) -> str:
        """That of the sandbox in the configuration."""
        return self._wanted.name

    @property
    def phase(self) -> str | None:
        """Why no host of it is heard, where none is."""
        if self.failed:
            return FAILED
        return None if any(instance.had_heartbeat for instance in self.instances) else MAKING

    @property
    def _marks(self) -> dict[str, str]:
        return {"pool": self._wanted.pool, "sandbox": self._wanted.name}

    def _metadata(self) -> dict[str, str]:
        """By which a sandbox is found again, and known to be of any use."""
        target = self._wanted
        said = orjson.dumps([target.settings, redacted_url(target.url)])
        return {
            **self._marks,
            "swarm": target.swarm,
            "version": target.version[:16],
            "settings": hashlib.sha256(said).hexdigest()[:16],
        }

    async def run(self) -> None:
        """Until cancelled, or until only a person can help."""
        try:
            await self._keep()
        except GivenUp as error:
            self.failed = True
            self._told(
                "sandbox_failed",
                f"sandbox {self._wanted.name} cannot be had: {error}; its agents run elsewhere. Mend it, and start "
                "`signalmesh up` again",
            )
            self._lost(self._wanted.name, str(error))
            await self.close()

    async def _keep(self) -> None:
        instance = await self._adopt()
        if instance is None:
            instance = await self._make()
        pause_s, useless = FIRST_PAUSE_S, 0
        settings = self._wanted.settings
        while True:
            due_s = instance.since + settings.max_age_s * settings.replace_at - time.monotonic()
            await asyncio.wait({instance.task}, timeout=max(0.0, due_s))
            if not instance.task.done():
                instance = await self._replace(instance)
                continue
            try:
                instance.task.result()
            except Gone as error:
                self._tell_gone(instance, error)
                useless = 0 if instance.had_heartbeat else useless + 1
                if useless >= USELESS:
                    raise GivenUp(f"{useless} in a row were of no use, at last: {error}") from None
            await self._end(instance)
            pause_s = (
                FIRST_PAUSE_S if time.monotonic() - instance.since > STEADY_S else min(pause_s * 2, LONGEST_PAUSE_S)
            )
            await asyncio.sleep(pause_s / 2)
            instance = await self._make()

    def _tell_gone(self, instance: SandboxInstance, error: Gone) -> None:
        self._lost(instance.host_name, str(error))
        self._told("sandbox_gone", f"sandbox {instance.host_name} is lost and replaced: {error}")

    # -- where they come from

    async def _adopt(self) -> SandboxInstance | None:
        """The newest sandbox of an earlier launcher that has our version and settings; all others are ended."""
        found = await self._service.list(self._marks)
        metadata = self._metadata()
        found.sort(key=lambda info: info.started_at, reverse=True)
        instance: SandboxInstance | None = None
        for info in found:
            if instance is None and metadata.items() <= info.metadata.items():
                with contextlib.suppress(Gone):
                    instance = self._begin(await self._service.connect(info.sandbox_id, self._lifetime_s), _age_s(info))
                    log.info("sandbox_adopted", sandbox_id=info.sandbox_id, sandbox=self._wanted.name)
                    continue
            log.info("orphan_sandbox_deleted", sandbox_id=info.sandbox_id, sandbox=self._wanted.name)
            if problem := await self._service.kill(info.sandbox_id, END_S):
                self._told(
                    "sandbox_not_deleted", f"sandbox {info.sandbox_id} of an earlier run could not be ended: {problem}"
                )
        return instance

    @property
    def _lifetime_s(self) -> int:
        return self._wanted.settings.timeout_s

    async def _make(self) -> SandboxInstance:
        target, key = self._wanted, f"{target_key(self._wanted.pool)}-{secrets.token_hex(8)}"
        while True:
            try:
                self._creating = asyncio.create_task(self._service.create(target.settings, self._metadata(), key))
                sandbox = await asyncio.shield(self._creating)
                info = await self._service.info(sandbox)
            except Gone as error:
                log.warning("sandbox_lost_during_create", problem=str(error))
                key = f"{target_key(target.pool)}-{secrets.token_hex(8)}"
                continue
            log.info(
                "sandbox_made", sandbox_id=sandbox.sandbox_id, sandbox=target.name, at=self._service.endpoint.shown
            )
            try:
                self._check_size(info)
            except GivenUp:
                await self._service.kill(sandbox.sandbox_id, END_S)
                raise
            self._creating = None
            return self._begin(sandbox, 0.0)

    def _begin(self, sandbox: AsyncSandbox, age_s: float) -> SandboxInstance:
        instance = SandboxInstance(self._service, self._hosts, self._wanted, sandbox, age_s, self._told)
        self.instances.append(instance)
        self._changed()
        return instance

    def _check_size(self, info: SandboxInfo) -> None:
        """The API takes no size: the template has it."""
        settings = self._wanted.settings
        for key, asked, given in (
            ("cpu", settings.cpu, info.cpu_count),
            ("memory_mb", settings.memory_mb, info.memory_mb),
        ):
            if asked is not None and asked != given:
                raise GivenUp(
                    f"sandboxes.{self._wanted.name}.{key} is {asked}, but template {settings.template!r} gives "
                    f"{given}, and only a template decides this: name one that has it, or write {key} = {given}"
                )

    # -- where they go

    async def _replace(self, old: SandboxInstance) -> SandboxInstance:
        """A new sandbox in the place of an old one, which ends when the new one's host is heard."""
        log.info("sandbox_replaced", sandbox_id=old.id, age_s=round(time.monotonic() - old.since))
        making = asyncio.create_task(self._make(), name=f"successor-of-{old.id}")
        try:
            await asyncio.wait({making, old.task}, return_when=asyncio.FIRST_COMPLETED)
            if old.task.done() and isinstance(error := old.task.exception(), Gone):
                self._tell_gone(old, error)
                await self._end(old)
                return await making
            new = await making
        except GivenUp as error:
            if old not in self.instances:
                raise
            return self._keep_old(old, str(error))
        finally:
            await end_tasks([making])
        try:
            async with asyncio.timeout(SUCCESSOR_S):
                await new.received()
        except (Gone, GivenUp, TimeoutError) as error:
            await self._end(new)
            return self._keep_old(old, str(error) or f"it was not heard for {SUCCESSOR_S:.0f} s")
        await self._end(old)
        self._not_replaced = ""
        return new

    def _keep_old(self, old: SandboxInstance, why: str) -> SandboxInstance:
        """A successor is tried again after a minute; why that is so is told once."""
        if why != self._not_replaced:
            self._not_replaced = why
            self._told("sandbox_not_replaced", f"sandbox {old.host_name} grows old, but its successor failed: {why}")
        old.since += AGAIN_S
        return old

    async def _end(self, instance: SandboxInstance) -> None:
        if problem := await instance.close():
            self.orphans.append((instance.id, problem))
            self._told("sandbox_not_deleted", f"sandbox {instance.host_name} could not be ended: {problem}")
        self.instances.remove(instance)
        self._changed()

    async def close(self) -> None:
        """Drain and end all of them."""
        await asyncio.gather(self._end_created(), *(self._end(instance) for instance in list(self.instances)))

    async def _end_created(self) -> None:
        """A sandbox that was just asked for comes, whether or not anybody waits for the answer."""
        if (creating := self._creating) is None:
            return
        self._creating = None
        await asyncio.wait({creating}, timeout=CREATED_S)
        if creating.done() and not creating.cancelled() and creating.exception() is None:
            made = creating.result().sandbox_id
            if problem := await self._service.kill(made, END_S):
                self.orphans.append((made, problem))
                self._changed()
        await end_tasks([creating])


def target_key(pool: str) -> str:
    """What an idempotency key begins with: it may have lowercase letters, digits and hyphens."""
    return pool.lower()


def _age_s(info: SandboxInfo) -> float:
    return max(0.0, (datetime.now(UTC) - info.started_at).total_seconds())
