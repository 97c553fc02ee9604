"""The client of E2B: what it repeats, and when it stops."""

from __future__ import annotations

import asyncio

import e2b.exceptions
import httpx
import pytest

from coordinator.sandboxes.e2b_client import Service
from coordinator.sandboxes.e2b_errors import PermanentError, SandboxGone


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (e2b.exceptions.AuthenticationException("x"), PermanentError),
        (e2b.exceptions.SandboxNotFoundException("x"), SandboxGone),
    ],
)
async def test_what_is_no_use_to_repeat_is_requested_once(error, raised):
    requested = 0

    async def call():
        nonlocal requested
        requested += 1
        raise error

    with pytest.raises(raised, match=r"^looking: x$"):
        await Service("key", lambda *_: None).request("looking", call)
    assert requested == 1


async def test_an_unhealthy_service_is_reported_once_and_left_alone_after_six_failures(monkeypatch):
    monkeypatch.setattr("coordinator.sandboxes.e2b_client.FIRST_WAIT_S", 0.001)
    monkeypatch.setattr("coordinator.sandboxes.e2b_client.LONGEST_WAIT_S", 0.001)
    monkeypatch.setattr("coordinator.sandboxes.e2b_client.JITTER_S", 0.0)
    reported: list[tuple[str, str]] = []
    requested = 0
    refused = asyncio.Event()

    async def call():
        nonlocal requested
        requested += 1
        raise httpx.ConnectError("nobody there")

    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:3128")
    service = Service("key", lambda code, text: reported.append((code, text)))
    unhealthy = service._unhealthy

    def watch(what, error):
        unhealthy(what, error)
        if type(error).__name__ == "CircuitBreakerError":
            refused.set()

    monkeypatch.setattr(service, "_unhealthy", watch)
    requesting = asyncio.create_task(service.request("looking", call))
    await refused.wait()
    requesting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await requesting
    assert requested == 6
    assert len(reported) == 1
    assert reported[0] == (
        "provider_unavailable",
        "looking failed at E2B at https://api.e2b.app; retrying: nobody there (through the proxy in HTTPS_PROXY)",
    )
