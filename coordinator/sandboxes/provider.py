"""The provider role: creates the configured E2B sandboxes, maintains them and deletes them.

The only process that has E2B's key. Imports the SDK inside functions, because that takes a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sys
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import orjson
import structlog

from bus.durable.events import EventPublisher
from bus.errors import EXIT_DONE, EXIT_FAILED, EXIT_UNREACHABLE, EXIT_USAGE, BusError, ConfigError
from bus.heartbeats import HeartbeatListener, send_heartbeats
from bus.messages.subjects import PROVIDER
from bus.nats.bus import NatsBus
from bus.nats.credentials import credentials_from
from bus.nats.key_files import KEYS_VARIABLE
from bus.observability.logging import set_up_logs
from bus.utils.aio import end_tasks, run_to_end
from bus.utils.processes import on_signals
from coordinator.changes.sandbox_follower import SandboxFollower
from coordinator.config.e2b import files_of
from coordinator.config.settings import SandboxSpec, SwarmConfig
from coordinator.sandboxes.environment import PUBLIC_URL_VARIABLE, Endpoint, export_key, take_key
from coordinator.sandboxes.pool_record import Orphan, Pool, read_pool, write_pool
from coordinator.sandboxes.wheel import digest
from coordinator.security.created_hosts import HostKeys
from coordinator.security.keys import KeyStore

if TYPE_CHECKING:
    from coordinator.sandboxes.e2b_client import Service
    from coordinator.sandboxes.instance import SandboxTarget
    from coordinator.sandboxes.reconciler import SandboxReconciler

__all__ = ["exit_at_once", "run_check", "run_provider"]

CHECK_S = 15.0
UNLISTED_POLLS, LIST_EVERY_S = 8, 0.5
"""How often, and at which interval, a deleted sandbox is looked up until the list omits it."""
HEARTBEAT_S = 0.2
FIRST_LOOK_S, LOOK_S = 0.2, 2.0
"""Between two looks at the newest changes, until the first succeeds and from then on."""
END_ALL_S = 18.0
"""For draining and deleting all sandboxes; `up` waits a little longer."""
CRITICAL_ALERTS = frozenset({"sandbox_failed"})
"""Alert codes of this role that require an operator; all others are warnings."""

log = structlog.get_logger("signalmesh.provider")


def exit_at_once(code: int) -> NoReturn:
    """Exit without interpreter shutdown, during which the SDK's native parts can abort the process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_check(state_dir: Path, *, end: bool = False) -> int:
    """Check the key and list the sandboxes of `state_dir`; with `end` also delete them. Returns the exit code.

    0: the key is accepted; 1: a sandbox could not be deleted; 2: the key is refused; 3: the endpoint is unreachable.
    Prints JSON: `endpoint`, `sandboxes`, and `orphans`, the sandboxes that could not be deleted, with the reason.
    """
    endpoint = Endpoint.of()
    key = take_key()

    from e2b import AuthenticationException

    from coordinator.sandboxes.e2b_client import Service
    from coordinator.sandboxes.e2b_errors import error_text
    from coordinator.sandboxes.reconciler import END_S

    pool = read_pool(state_dir)

    async def check() -> int:
        orphans: list[Orphan] = []
        service = Service(key, lambda *_: None)
        try:
            async with asyncio.timeout(CHECK_S):
                await service.check()
                found = [] if pool is None else await service.list({"pool": pool.id})
            if pool is not None and end:
                problems = {info.sandbox_id: await service.kill(info.sandbox_id, END_S) for info in found}
                ended = {name for name, problem in problems.items() if not problem}
                problems |= dict.fromkeys(await _still_there(service, pool.id, ended), "it is still listed")
                orphans += [
                    Orphan(sandbox="", id=name, problem=problem) for name, problem in problems.items() if problem
                ]
                write_pool(state_dir, Pool(id=pool.id, endpoint=endpoint.label, sandboxes=tuple(orphans)))
        except AuthenticationException:
            print(
                f"signalmesh: E2B_API_KEY: {endpoint.label} does not accept this key; get one from "
                "https://e2b.dev/dashboard?tab=keys",
                file=sys.stderr,
            )
            return EXIT_USAGE
        except Exception as error:  # noqa: BLE001 - any other error means no answer
            problem = endpoint.failure(error_text(error, key))
            print(f"signalmesh: {endpoint.label} did not answer: {problem}", file=sys.stderr)
            return EXIT_UNREACHABLE
        sandboxes = [f"{info.sandbox_id} ({info.metadata.get('sandbox')}, {info.state.value})" for info in found]
        why = [f"{one.id}: {one.problem}" for one in orphans]
        print(orjson.dumps({"endpoint": endpoint.label, "sandboxes": sandboxes, "orphans": why}).decode())
        return EXIT_FAILED if orphans else EXIT_DONE

    return run_to_end(check())


async def _still_there(service: Service, pool: str, ended: set[str]) -> set[str]:
    """Those of `ended` that the service still lists after some seconds."""
    there: set[str] = set()
    for attempt in range(UNLISTED_POLLS if ended else 0):
        await asyncio.sleep(LIST_EVERY_S if attempt else 0)
        there = ended & {info.sandbox_id for info in await service.list({"pool": pool})}
        if not there:
            break
    return there


def run_provider(url: str, config: SwarmConfig, state_dir: Path, log_level: str) -> int:
    """Maintain all sandboxes of provider "e2b" until a signal, then delete them; 1 if one could not be deleted."""
    set_up_logs(log_level)
    export_key(config)
    key = take_key()
    public = os.environ.pop(PUBLIC_URL_VARIABLE, "") or url
    return run_to_end(_provide(url, public, key, config, state_dir, log_level))


async def _provide(url: str, public: str, key: str, config: SwarmConfig, state_dir: Path, log_level: str) -> int:
    stop, keyed = asyncio.Event(), bool(os.environ.get(KEYS_VARIABLE))
    bus = await NatsBus.connect(url, config.swarm, PROVIDER, wait_s=None)
    on_signals(stop.set)  # before this there is nothing to clean up
    reports = await EventPublisher.open(bus, PROVIDER)
    hosts = HeartbeatListener(bus)
    await hosts.start()
    provider = Provider(bus, reports, key, state_dir, keyed=keyed)

    def keep(wanted: Mapping[str, SandboxSpec]) -> None:
        for name in provider.names - wanted.keys():
            provider.remove(name)
        for name in wanted.keys() - provider.names:
            try:
                target = _target(wanted[name], config, provider.pool, public, provider.keys_of(name), log_level)
            except ConfigError as error:  # its files were there when it was added
                provider.alert("sandbox_failed", f"sandbox {name} cannot be made: {error}", sandbox=name)
                continue
            provider.add(hosts, target)

    try:
        return await provider.run(stop, SandboxFollower(config, keep))
    finally:
        await bus.close()


class Provider:
    """Runs one reconciler for each sandbox, publishes their events and keeps the pool record up to date."""

    def __init__(self, bus: NatsBus, reports: EventPublisher, key: str, state_dir: Path, *, keyed: bool) -> None:
        """`keyed`: hosts connect with keys, which are in the state directory."""
        from coordinator.sandboxes.e2b_client import Service

        self._keyed = keyed
        self._bus, self._reports, self._state_dir = bus, reports, state_dir
        self._service = Service(key, self.alert)
        self._reconcilers: dict[str, SandboxReconciler] = {}
        """By the name of the sandbox."""
        self._leaving: list[SandboxReconciler] = []
        """Of sandboxes that were removed; those that have left something at E2B stay here."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self.pool = (read_pool(state_dir) or Pool(id=secrets.token_hex(8))).id
        self.instances_changed()

    def keys_of(self, name: str) -> HostKeys | None:
        """The keys of the hosts of this sandbox; None: they connect without."""
        return HostKeys(KeyStore(self._state_dir), name) if self._keyed else None

    @property
    def names(self) -> set[str]:
        """The sandboxes that are kept."""
        return {*self._reconcilers}

    @property
    def _all(self) -> list[SandboxReconciler]:
        return [*self._reconcilers.values(), *self._leaving]

    def add(self, hosts: HeartbeatListener, target: SandboxTarget) -> None:
        """Keep a sandbox of `target` from now on."""
        from coordinator.sandboxes.reconciler import SandboxReconciler

        reconciler = SandboxReconciler(self._service, hosts, target, self)
        self._reconcilers[target.name] = reconciler
        log.info("sandbox_kept", sandbox=target.name)
        self._start(reconciler.run(), f"reconciler-{target.name}")

    def remove(self, name: str) -> None:
        """Delete this sandbox: no agent is left there."""
        reconciler = self._reconcilers.pop(name)
        self._leaving.append(reconciler)
        log.info("sandbox_left", sandbox=name)
        running = [task for task in self._tasks if task.get_name() == f"reconciler-{name}"]
        self._start(self._close(reconciler, running), f"closing-{name}")

    async def _close(self, reconciler: SandboxReconciler, running: list[asyncio.Task[None]]) -> None:
        await end_tasks(running)
        await reconciler.close()
        if not reconciler.orphans:
            self._leaving.remove(reconciler)
        self.instances_changed()

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._tasks.add(asyncio.create_task(work, name=name))
        self._changed.set()

    # -- SandboxEvents

    def alert(self, code: str, text: str, *, sandbox: str | None = None) -> None:
        """Publish an alert."""
        detail = {} if sandbox is None else {"sandbox": sandbox}
        self._reports.alert("critical" if code in CRITICAL_ALERTS else "warning", code, text, **detail)

    def host_ended(self, host: str, reason: str) -> None:
        """Publish the end of a host, which cannot do it itself."""
        self._reports.lifecycle("exited", host, sandbox=host, reason=reason[:200])

    def instances_changed(self) -> None:
        """Write the pool record: the sandboxes that exist, for the next run to adopt or delete."""
        held = [
            Orphan(sandbox=instance.host_name, id=instance.id)
            for reconciler in self._all
            for instance in reconciler.instances
        ]
        held += [
            Orphan(sandbox="", id=name, problem=why) for reconciler in self._all for name, why in reconciler.orphans
        ]
        write_pool(self._state_dir, Pool(id=self.pool, endpoint=self._service.endpoint.label, sandboxes=tuple(held)))

    # -- running

    async def run(self, stop: asyncio.Event, follower: SandboxFollower) -> int:
        """Keep the sandboxes until `stop`, then delete them; the exit code, 1 if one could not be deleted."""
        at = self._service.endpoint.label
        stopped = asyncio.create_task(stop.wait(), name="stop")
        following = asyncio.create_task(self._follow(follower), name="changes")
        checking = asyncio.create_task(self._check_reports(), name="outbox")
        heartbeats = asyncio.create_task(
            send_heartbeats(self._bus, PROVIDER, "provider", HEARTBEAT_S, self._status_fields), name="heartbeats"
        )
        try:
            await self._until_stopped(stopped)
            await end_tasks([following, *self._tasks])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_ALL_S):
                    await asyncio.gather(*(reconciler.close() for reconciler in self._all))
            self.instances_changed()
            orphans = [instance.id for reconciler in self._all for instance in reconciler.instances]
            orphans += [name for reconciler in self._all for name, _ in reconciler.orphans]
            if orphans:
                log.error("sandboxes_not_deleted", ids=orphans, at=at)
            await self._reports.finish()
            return EXIT_FAILED if orphans else EXIT_DONE
        finally:
            await end_tasks([stopped, following, checking, heartbeats, *self._tasks])

    async def _follow(self, follower: SandboxFollower) -> None:
        """Take over the changes made at run time, also those that were missed while the connection was down."""
        await follower.listen(self._bus)
        ready = False
        while True:
            with contextlib.suppress(BusError):
                await self._bus.wait_connected()
                await follower.look(self._bus)
                if not ready:
                    await self._end_unknown()
                    log.info("provider_ready", at=self._service.endpoint.label, sandboxes=sorted(self.names))
                ready = True
            await asyncio.sleep(LOOK_S if ready else FIRST_LOOK_S)

    async def _end_unknown(self) -> None:
        """Delete what an earlier provider has left of sandboxes that were removed meanwhile."""
        from coordinator.sandboxes.reconciler import END_S

        try:
            found = await self._service.list({"pool": self.pool})
        except Exception as error:  # noqa: BLE001 - whatever the SDK raises; they end with their lifetime
            log.warning("sandboxes_not_listed", problem=str(error))
            return
        for info in found:
            name = info.metadata.get("sandbox", "")
            if name in self.names:
                continue
            log.info("sandbox_left", sandbox=name, sandbox_id=info.sandbox_id)
            if problem := await self._service.kill(info.sandbox_id, END_S):
                self.alert("sandbox_not_deleted", f"sandbox {info.sandbox_id} could not be deleted: {problem}")
            if (keys := self.keys_of(name)) is not None:
                await asyncio.to_thread(keys.retain, [])

    async def _until_stopped(self, stopped: asyncio.Task[Any]) -> None:
        """Wait for the stop signal. An unexpected error of a reconciler ends the role, which `up` then restarts."""
        while not stopped.done():
            changed = asyncio.create_task(self._changed.wait(), name="changed")
            done, _ = await asyncio.wait({stopped, changed, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
            await end_tasks([changed])
            self._changed.clear()
            for task in done & self._tasks:
                self._tasks.discard(task)
                if not task.cancelled():
                    task.result()

    def _status_fields(self) -> dict[str, Any]:
        status = self._service.status if self._bus.is_ready else "waiting"
        phases = {reconciler.name: phase for reconciler in self._reconcilers.values() if (phase := reconciler.phase)}
        return {"status": status, "provider": "e2b", "endpoint": self._service.endpoint.label, "phases": phases}

    async def _check_reports(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            self._reports.check()


def _target(
    spec: SandboxSpec, config: SwarmConfig, pool: str, public: str, keys: HostKeys | None, log_level: str
) -> SandboxTarget:
    from coordinator.sandboxes.instance import SandboxTarget

    assert spec.e2b is not None
    return SandboxTarget(
        name=spec.name,
        swarm=config.swarm,
        settings=spec.e2b,
        pool=pool,
        version=digest(),
        url=public,
        # The key in the environment is this role's own: no host gets it.
        credentials=credentials_from() if keys is None else replace(credentials_from(), nkey_seed=""),
        keys=keys,
        log_level=log_level,
        files=files_of(config.file, f"sandboxes.{spec.name}", spec.e2b.files),
    )
