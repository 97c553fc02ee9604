"""A plugin of pytest: which test executes which lines, in its own process and in those that it starts."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path

import coverage
import pytest

CHILD = "child "
"""Before the id of a test: the context of the processes that it starts."""
CONTEXT_VARIABLE = "MUTATION_CONTEXT"
DIRECTORY_VARIABLE = "MUTATION_COVERAGE"


class Contexts:
    """Switches the context of coverage to each test, and writes the tests that passed with their seconds."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._coverage = coverage.Coverage(config_file=directory / "coverage.ini", data_suffix=True)
        self._seconds: dict[str, float] = defaultdict(float)
        self._failed: set[str] = set()
        self._coverage.start()
        os.environ["COVERAGE_PROCESS_START"] = str(directory / "coverage.ini")  # for the processes that tests start

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item):
        self._coverage.switch_context(item.nodeid)
        os.environ[CONTEXT_VARIABLE] = CHILD + item.nodeid
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] += report.duration
        if not report.passed:
            self._failed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        self._coverage.stop()
        self._coverage.save()
        passed = {name: round(seconds, 4) for name, seconds in self._seconds.items() if name not in self._failed}
        (self._directory / f"tests-{os.getpid()}.json").write_text(json.dumps(passed))


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("numprocesses", None) or hasattr(config, "workerinput"):
        config.pluginmanager.register(Contexts(Path(os.environ[DIRECTORY_VARIABLE])))
