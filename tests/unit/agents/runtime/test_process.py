"""What an agent process reports of the exception that ends it."""

from __future__ import annotations

import pytest
import structlog

from agents.runtime import process
from agents.runtime.process import Incarnation, _FirstError, run_incarnation
from agents.spec import AgentSpec
from bus.errors import Fenced, MeshError, UsageError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MeshError("file: not there"), "file: not there"),
        (ValueError("no"), "ValueError: no"),
        (SystemExit(3), "SystemExit: 3"),
    ],
)
def test_the_first_exception_is_reported_and_no_later_one(error, text):
    reported: list[str] = []
    first = _FirstError(reported.append)
    first.report(error)
    first.report(MeshError("a consequence"))
    assert reported == [text]


def test_a_host_that_is_gone_hides_no_error():
    def sink(_: str) -> None:
        raise BrokenPipeError

    _FirstError(sink).report(MeshError("text"))


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UsageError("its option is wrong"), 2, ["its option is wrong"]),
        (MeshError("it cannot go on"), 1, ["it cannot go on"]),
        (ValueError("no"), 1, ["ValueError: no"]),
        (Fenced("agent", "claimed again"), 1, []),
    ],
)
def test_an_incarnation_ends_with_the_code_of_its_error_and_reports_it(monkeypatch, error, code, text):
    async def failing(*_: object) -> int:
        raise error

    monkeypatch.setattr(process, "_run_connected", failing)
    for name in ("set_up_logs", "restore_python_path"):
        monkeypatch.setattr(process, name, lambda *_: None)
    reported: list[str] = []
    spec = AgentSpec(name="agent", kind="momentum")
    incarnation = Incarnation(spec=spec, epoch=3, agent_id="id", sandbox="base", url="nats://none")
    with structlog.contextvars.bound_contextvars(agent="", sandbox=""):  # what it binds ends here
        assert run_incarnation(incarnation, reported.append) == code
    assert reported == text
