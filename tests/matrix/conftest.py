"""Every test of this directory is part of the fault matrix, and can see what an undisturbed run stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.conftest import undisturbed_long

__all__ = ["undisturbed_long"]

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.matrix)
            item.add_marker(pytest.mark.timeout(300))
