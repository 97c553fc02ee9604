"""Which errors of E2B's SDK to retry, and how they are printed."""

from __future__ import annotations

import inspect

import e2b.exceptions
import httpx
import pytest

from coordinator.sandboxes.e2b_errors import error_text, is_outage, verdict_on

RAISED = {
    "AuthenticationException": "fail",
    "GitAuthException": "fail",
    "InvalidArgumentException": "fail",
    "TemplateException": "fail",
    "SandboxNotFoundException": "replace",
    "SandboxNotRunningException": "replace",
    "NotEnoughSpaceException": "replace",
    "SandboxUnreachableException": "retry",
    "TimeoutException": "retry",
    "RateLimitException": "retry",
    "ServiceBusyException": "retry",
    "GuestUnresponsiveException": "fail",
}


@pytest.mark.parametrize(("name", "verdict"), RAISED.items())
def test_each_exception_of_the_sdk_has_its_verdict(name, verdict):
    assert verdict_on(getattr(e2b.exceptions, name)("x")) == verdict


def test_no_exception_that_a_sandbox_can_raise_is_forgotten():
    """Those of modules that we do not use: git, builds, volumes, secrets; files are judged where they are read."""
    others = ("Git", "Build", "FileUpload", "Volume", "Secret", "FileNotFound")
    found = {
        name
        for name, kind in inspect.getmembers(e2b.exceptions, inspect.isclass)
        if issubclass(kind, Exception) and not name.startswith(others)
    }
    assert found - set(RAISED) == {"SandboxException", "NotFoundException"}


@pytest.mark.parametrize(
    ("status", "verdict"), [(400, "fail"), (403, "fail"), (404, "fail"), (500, "retry"), (None, "retry")]
)
def test_a_permanent_status_is_not_retried(status, verdict):
    assert verdict_on(e2b.exceptions.SandboxException("x", status_code=status)) == verdict


def test_a_request_that_cannot_be_made_is_not_tried_again():
    with pytest.raises(UnicodeError) as raised:
        "ключ".encode("ascii")
    for error in (httpx.UnsupportedProtocol("x"), httpx.InvalidURL("x"), raised.value):
        assert verdict_on(error) == "fail"
    assert verdict_on(httpx.ConnectError("x")) == "retry"


def test_a_full_quota_is_no_illness_of_the_service():
    for error, unhealthy in (
        (httpx.ConnectError("x"), True),
        (e2b.exceptions.ServiceBusyException("x"), True),
        (e2b.exceptions.RateLimitException("x"), False),
        (e2b.exceptions.SandboxNotFoundException("x"), False),
    ):
        assert is_outage(type(error), error) is unhealthy


def test_what_the_sdk_raises_is_printed_without_the_key():
    assert error_text(ValueError("Invalid header\nvalue 'a_key'"), "a_key") == "Invalid header value '[secret]'"
