"""What all tests share: quiet logs, and a name for whoever disturbs Hypothesis."""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator, Iterator

import pytest
import structlog

from tests.support import random_users
from tests.support.collecting import GUARD_S

structlog.configure(
    processors=[structlog.processors.KeyValueRenderer()],
    wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
)

random_users.watch()
EXPORTERS = ("spans", "metrics-export")
"""Threads that may still wait for an ill collector when what they export for has ended."""


@pytest.fixture(autouse=True)
def no_exporter_outlives_its_test() -> Iterator[None]:
    """OpenTelemetry's exporters draw from the global random generator: not while Hypothesis has another test draw."""
    yield
    for thread in threading.enumerate():
        if thread.name in EXPORTERS:
            thread.join(GUARD_S)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and random_users.COMPLAINT in report.longreprtext:
        report.sections.append(("Last users of the global random generator", random_users.last_users()))
    return report
