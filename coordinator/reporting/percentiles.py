"""Percentiles of measured times."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Percentiles", "percentile", "percentiles_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Nearest-rank percentiles of `n` values; all None where there are no values."""

    n: int
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    max: float | None = None


def percentile(values: Sequence[float], fraction: float) -> float:
    """Nearest-rank percentile: the smallest value that at least `fraction` of `values` do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)]


def percentiles_of(values: Iterable[float]) -> Percentiles:
    known = list(values)
    if not known:
        return Percentiles(n=0)
    p50, p90, p99 = (percentile(known, fraction) for fraction in (0.5, 0.9, 0.99))
    return Percentiles(n=len(known), p50=p50, p90=p90, p99=p99, max=max(known))
