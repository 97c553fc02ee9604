"""What is advised for a value that a State cannot hold."""

from __future__ import annotations

import enum
import math
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from agents.state.values import advice, shown, usual_factory


class Colour(enum.Enum):
    RED = 1


class Own:
    pass


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, "JSON has finite numbers only: keep None for it"),
        (-math.inf, "JSON has finite numbers only: keep None for it"),
        (1.5, "annotate the field float"),
        (np.float64(1.5), "convert it: float(...), or annotate the field np.float64"),
        (np.int32(2), "convert it: int(...), or annotate the field np.int32"),
        (np.zeros(2), "keep a list: values.tolist()"),
        ((1,), "like tuple[float, ...]"),
        (deque([1]), "like deque[float]"),
        ({1}, "like set[str]"),
        (frozenset({1}), "like frozenset[str]"),
        (defaultdict(float), "like defaultdict[str, float]"),
        (Counter("a"), "like Counter[str]"),
        (OrderedDict(), "like OrderedDict[str, float]"),
        (5, "annotate the field with the type that it has"),
        ("text", "annotate the field with the type that it has"),
        (None, "annotate the field with the type that it has"),
        ([1], "annotate the field with the type that it has"),
        (datetime(2020, 1, 1), "annotate the field datetime"),  # noqa: DTZ001
        (date(2020, 1, 1), "annotate the field date"),
        (Decimal(1), "annotate the field Decimal"),
        (Own(), "use JSON-like values, or a dataclass with annotated fields"),
        (Own, "use JSON-like values, or a dataclass with annotated fields"),
    ],
)
def test_each_value_has_its_advice(value, expected):
    assert advice(value).endswith(expected)


@pytest.mark.parametrize(
    ("annotation", "factory"),
    [(float, float), (list[int], list), (float | None, float), (Any, None), (object, None), (Own, Own)],
)
def test_a_factory_is_of_the_first_type_that_is_named(annotation, factory):
    assert usual_factory(annotation) is factory


def test_a_value_that_cannot_be_shown_is_named_by_its_type():
    class Hidden:
        def __repr__(self) -> str:
            raise ZeroDivisionError

    assert shown(Hidden()) == "a Hidden whose repr raises ZeroDivisionError"
    assert shown([1]) == "[1]"
