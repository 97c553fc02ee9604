"""What tests of E2B share: a stand-in a session, and no key or address of the service but those a test requests."""

from __future__ import annotations

import secrets
import sys
from collections.abc import AsyncIterator, Iterator

import pytest
from e2b import AsyncSandbox

from tests.e2b.conforming import REAL_KEY, Service
from tests.e2b.standin.launch import StandIn, standin

SETTINGS = ("E2B_API_KEY", "E2B_API_URL", "E2B_SANDBOX_URL", "E2B_DOMAIN", "E2B_DEBUG", "E2B_HTTP_VERSION")


@pytest.fixture(scope="session")
def running_standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """One for all tests: starting it takes longer than most of them."""
    if sys.platform != "linux":
        pytest.skip("the stand-in needs Linux: only there can a process be the parent of all orphans below it")
    with standin(tmp_path_factory.mktemp("e2b")) as started:
        yield started


@pytest.fixture
def e2b_standin(running_standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A stand-in that the SDK of this test talks to; its faults, limits and sandboxes end with the test."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for name, value in running_standin.environment.items():
        monkeypatch.setenv(name, value)
    yield running_standin
    running_standin.tidy()


@pytest.fixture(params=["standin", pytest.param("real", marks=pytest.mark.e2b)])
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    standin = None
    if request.param == "standin":
        standin = request.getfixturevalue("e2b_standin")
    elif not REAL_KEY:
        pytest.skip("E2B_API_KEY is not set")
    created = Service(f"conformance {secrets.token_hex(4)} &=%", standin)
    try:
        yield created
    finally:
        for name in await created.all():
            await AsyncSandbox.kill(name)


@pytest.fixture
async def sandbox(service: Service) -> AsyncSandbox:
    return await service.create(envs={"COLOUR": "green", "SIZE": "1"})
