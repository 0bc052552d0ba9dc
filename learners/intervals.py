"""Confidence intervals: Wilson's for rates, and bootstrap percentiles for everything else.

The bootstrap over seeds and tasks at once is in `learners.compare.bootstrap`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")

RESAMPLES = 10_000

BLOCK = 1_000_000
"""Values drawn at a time; bounds memory."""


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def signed(self) -> str:
        """Text with signs, for a difference."""
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def wilson(successes: float, count: int, z: float = 1.96) -> Interval:
    """Return a rate with Wilson's interval; NaN if there are no trials."""
    if count == 0:
        return Interval(math.nan, math.nan, math.nan)
    rate = successes / count
    middle = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count**2))
    return Interval(rate, max(0.0, middle - half), min(1.0, middle + half))


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> Interval:
    """Return the mean with its bootstrap interval over the values; NaN if there are none."""
    count = len(values)
    if count == 0:
        return Interval(math.nan, math.nan, math.nan)
    generator, array = np.random.default_rng(seed), np.asarray(values, dtype=float)
    block = max(1, BLOCK // count)
    sizes = [min(block, RESAMPLES - start) for start in range(0, RESAMPLES, block)]
    means = [array[generator.integers(count, size=(size, count))].mean(axis=1) for size in sizes]
    return percentile_interval(sum(values) / count, np.concatenate(means))


def resample(items: Sequence[Item], resamples: int, seed: int = 0) -> list[list[Item]]:
    """Draw bootstrap samples, each as long as the items, with replacement."""
    generator = random.Random(seed)
    return [generator.choices(items, k=len(items)) for _ in range(resamples)]


def percentile_interval(value: float, resampled: Sequence[float] | NDArray[np.float64]) -> Interval:
    """Return an estimate with the 95 % percentile interval of its resampled values."""
    ordered, count = np.sort(np.asarray(resampled, dtype=float)), len(resampled)
    low, high = ordered[int(0.025 * count)], ordered[int(0.975 * count) - 1]
    return Interval(value, float(low), float(high))
