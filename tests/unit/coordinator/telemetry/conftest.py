"""The stream whose metrics these tests read."""

from __future__ import annotations

import pytest

from tests.support.counted import Stream


@pytest.fixture
def stream() -> Stream:
    return Stream()
