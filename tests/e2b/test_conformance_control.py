"""The control API: sandboxes made, found, renewed, paused, measured, ended (see conforming.py)."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import httpx
import pytest
from e2b import (
    AsyncSandbox,
    AuthenticationException,
    NotFoundException,
    SandboxException,
    SandboxQuery,
    SandboxState,
    TimeoutException,
)

from tests.e2b.conforming import LIFETIME_S, ended, until
from tests.support.ports import free_port

pytestmark = pytest.mark.slow  # the stand-in is part of the tests, not of the product


async def test_a_sandbox_is_created_as_requested(service):
    before = datetime.now(UTC)
    created = await service.create(metadata={"role": "a b/c"}, allow_internet_access=False)
    info = await created.get_info()
    assert info.sandbox_id == created.sandbox_id
    assert info.state == SandboxState.RUNNING
    assert info.metadata == {"pool": service.pool, "role": "a b/c"}
    assert abs((info.end_at - info.started_at).total_seconds() - LIFETIME_S) < 5
    assert abs((info.started_at - before).total_seconds()) < 60
    assert await created.is_running()


async def test_the_same_idempotency_key_makes_one_sandbox(service):
    key = f"slot-{secrets.token_hex(8)}"
    first = await service.create(idempotency_key=key)
    second = await service.create(idempotency_key=key)
    assert first.sandbox_id == second.sandbox_id
    assert await service.all() == [first.sandbox_id]


async def test_sandboxes_are_found_by_metadata_and_state_page_by_page(service):
    created = [await service.create(metadata={"slot": f"{n} +/ü"}) for n in range(3)]
    assert set(await service.all()) == {one.sandbox_id for one in created}
    assert await service.all(metadata={"slot": "1 +/ü"}) == [created[1].sandbox_id]
    assert await service.all(metadata={"slot": "4"}) == []
    await created[2].pause()
    assert await service.all(state=[SandboxState.PAUSED]) == [created[2].sandbox_id]
    pages = []
    paginator = AsyncSandbox.list(query=SandboxQuery(metadata={"pool": service.pool}), limit=2)
    while paginator.has_next:
        pages.append([found.sandbox_id for found in await paginator.next_items()])
    assert [len(page) for page in pages] == [2, 1]
    assert {name for page in pages for name in page} == {one.sandbox_id for one in created}


async def test_a_lifetime_is_set_and_connecting_only_prolongs_it(service):
    created = await service.create(timeout=30)

    async def left_s():
        return ((await created.get_info()).end_at - datetime.now(UTC)).total_seconds()

    await created.set_timeout(50)
    assert 40 < await left_s() <= 51
    await AsyncSandbox.connect(created.sandbox_id, timeout=10)
    assert 40 < await left_s() <= 51
    await AsyncSandbox.connect(created.sandbox_id, timeout=100)
    assert 90 < await left_s() <= 101
    await created.set_timeout(20)
    assert await left_s() <= 21


async def test_killing_twice_is_no_error_and_nothing_is_left(service):
    created = await service.create()
    assert await created.kill() is True
    assert await created.kill() is False
    assert await AsyncSandbox.kill(created.sandbox_id) is False
    assert await service.all() == []
    assert await created.is_running() is False
    for call in (
        created.get_info,
        created.pause,
        lambda: created.set_timeout(5),
        lambda: AsyncSandbox.connect(created.sandbox_id),
    ):
        with pytest.raises(NotFoundException):
            await call()


async def test_what_runs_in_a_sandbox_learns_of_its_death_as_not_running(sandbox):
    running = await sandbox.commands.run("sleep 60", background=True, timeout=0)
    await sandbox.kill()
    with pytest.raises(TimeoutException) as caught:
        await running.wait()
    assert type(caught.value).__name__ == "SandboxNotRunningException"
    for call in (
        lambda: sandbox.commands.run("true"),
        sandbox.commands.list,
        lambda: sandbox.commands.kill(1),
        lambda: sandbox.files.read("x"),
        lambda: sandbox.files.write("x", "y"),
        lambda: sandbox.files.list("."),
    ):
        with pytest.raises(TimeoutException, match="was not found") as caught:
            await call()
        assert type(caught.value).__name__ == "SandboxNotRunningException"


async def test_a_sandbox_ends_when_its_lifetime_does(service):
    created = await service.create(timeout=30)
    running = await created.commands.run("sleep 60", background=True, timeout=0)
    await created.set_timeout(1)
    with pytest.raises(TimeoutException) as caught:
        await running.wait()
    assert type(caught.value).__name__ == "SandboxNotRunningException"
    assert await until(lambda: is_gone(created))


async def is_gone(sandbox: AsyncSandbox) -> bool:
    try:
        await sandbox.get_info()
    except NotFoundException:
        return True
    return False


async def test_a_lifetime_may_end_in_a_pause(service):
    created = await service.create(lifecycle={"on_timeout": "pause"})
    await created.set_timeout(1)

    async def paused():
        return (await created.get_info()).state == SandboxState.PAUSED

    await until(paused)
    assert await created.is_running() is False
    again = await AsyncSandbox.connect(created.sandbox_id, timeout=LIFETIME_S)
    assert await again.is_running()


async def test_a_pause_stops_the_processes_and_breaks_the_streams(sandbox):
    counting = "exec 3>>ticks; while :; do echo >&3; sleep 0.02; done"
    running = await sandbox.commands.run(counting, background=True, timeout=0)

    async def ticks(connected: AsyncSandbox) -> int:
        return len(await connected.files.read("ticks"))

    await until(lambda: has_more(ticks, sandbox, 2))
    assert await sandbox.pause() is True
    assert await sandbox.pause() is False
    with pytest.raises(TimeoutException) as caught:
        await running.wait()
    assert type(caught.value).__name__ == "SandboxNotRunningException"
    with pytest.raises(TimeoutException, match="was not found"):
        await sandbox.commands.list()
    again = await AsyncSandbox.connect(sandbox.sandbox_id, timeout=LIFETIME_S)
    assert [process.pid for process in await again.commands.list()] == [running.pid]
    stood_at = await ticks(again)
    await until(lambda: has_more(ticks, again, stood_at))
    reattached = await again.commands.connect(running.pid, timeout=0)
    assert await again.commands.kill(running.pid)
    await ended(reattached)


async def has_more(ticks: Callable[[AsyncSandbox], Awaitable[int]], sandbox: AsyncSandbox, than: int) -> bool:
    try:
        return await ticks(sandbox) > than
    except NotFoundException:
        return False


async def test_what_a_sandbox_uses_is_measured(sandbox):
    await sandbox.commands.run("sleep 60 >/dev/null 2>&1 &")
    metrics = await until(sandbox.get_metrics)
    last = metrics[-1]
    assert last.cpu_count >= 1
    assert 0 < last.mem_used < last.mem_total
    assert last.disk_total > 0
    assert last.cpu_used_pct >= 0


async def test_a_template_that_is_not_there_is_refused(service):
    with pytest.raises(SandboxException) as caught:
        await service.create(template="no-such-template-as-this")
    assert caught.value.status_code in (400, 403, 404)


async def test_a_wrong_key_is_refused_as_such_and_not_as_a_failure_of_a_sandbox(service):
    with pytest.raises(AuthenticationException) as caught:
        await AsyncSandbox.create(timeout=5, api_key="e2b_" + "0" * 20)
    assert not isinstance(caught.value, SandboxException)


async def test_an_unreachable_api_is_httpx_own_failure(service):
    with pytest.raises(httpx.ConnectError):
        await AsyncSandbox.create(timeout=5, api_url=f"http://127.0.0.1:{free_port()}")
