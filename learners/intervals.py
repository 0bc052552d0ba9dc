"""TODO."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000


BLOCK = 1_000_000
"""Values drawn at a time."""


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson(successes: float, count: int, z: float = 1.96) -> Interval:
    """Wilson's interval of a rate."""
    if count == 0:
        return Interval(math.nan, math.nan, math.nan)
    rate = successes / count
    middle = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count**2))
    return Interval(rate, max(0.0, middle - half), min(1.0, middle + half))


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> Interval:
    """Mean with its percentile bootstrap interval over the values."""
    count = len(values)
    if count == 0:
        return Interval(math.nan, math.nan, math.nan)
    draw, array = np.random.default_rng(seed), np.asarray(values, dtype=float)
    block = max(1, BLOCK // count)
    sizes = [min(block, RESAMPLES - start) for start in range(0, RESAMPLES, block)]
    drawn = [array[draw.integers(count, size=(size, count))].mean(axis=1) for size in sizes]
    means = np.sort(np.concatenate(drawn))
    low, high = means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES) - 1]
    return Interval(sum(values) / count, float(low), float(high))
