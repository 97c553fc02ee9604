"""A plugin of pytest: a process that judges a mutant ends with its driver, and when its tests are over.

A mutant may leave a thread behind that would keep the interpreter from exiting.
"""

from __future__ import annotations

import os
import sys

import pytest

from bus.utils.processes import die_with_parent

die_with_parent()


class Ending:
    status = 0

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self.status = int(exitstatus)

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        sys.stdout.flush()
        os._exit(self.status)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Ending())
