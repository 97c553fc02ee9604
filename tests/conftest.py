"""What all tests share: quiet logs, and a name for whoever disturbs Hypothesis."""

from __future__ import annotations

import logging
from collections.abc import Generator

import pytest
import structlog

from tests.support import random_users

structlog.configure(
    processors=[structlog.processors.KeyValueRenderer()],
    wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
)

random_users.watch()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and random_users.COMPLAINT in report.longreprtext:
        report.sections.append(("Last users of the global random generator", random_users.last_users()))
    return report
