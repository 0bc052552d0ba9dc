"""Bootstrap intervals over seeds and tasks at once, paired between methods.

A method's scores are a matrix (S, N): seeds by tasks. Each resample draws seeds and tasks, tasks
within their level (stratum). All methods get the same draws, so a difference between two methods is
one on equal seeds and tasks. With one seed only the tasks vary, and the intervals say nothing about
other seeds. Aggregates follow Agarwal et al. (arXiv 2108.13264); their "run" is a seed here, and
their "task" is a level of tasks here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from benchmarks import pass_at_k
from learners.intervals import Interval

Matrix = NDArray[np.float64]

RESAMPLES = 10_000

TRIM = 0.25
"""Share of the values that the interquartile mean leaves out at either end."""


@dataclass(frozen=True)
class Draws:
    """R resamples of seeds and tasks, the same for all methods."""

    seeds: NDArray[np.int64]
    """(R, S) indices of the drawn seeds."""
    tasks: NDArray[np.float64]
    """(R, N) counts of each task."""
    strata: NDArray[np.int64]
    """(N,) index of each task's level."""

    @property
    def counts(self) -> Matrix:
        """(R, S) counts of each seed."""
        width = self.seeds.shape[1]
        return np.stack([(self.seeds == s).sum(axis=1) for s in range(width)], axis=1).astype(float)


def draw(seeds: int, levels: Sequence[str], resamples: int = RESAMPLES, seed: int = 0) -> Draws:
    """Draw seeds, and tasks within their levels.

    Args:
        seeds: S.
        levels: of the N tasks.
        resamples: R.
        seed: of the random generator.
    """
    generator = np.random.default_rng(seed)
    names = sorted(set(levels))
    strata = np.array([names.index(level) for level in levels], dtype=np.int64)
    tasks = np.zeros((resamples, len(levels)))
    for stratum in range(len(names)):
        (members,) = np.nonzero(strata == stratum)
        share = np.full(len(members), 1 / len(members))
        tasks[:, members] = generator.multinomial(len(members), share, size=resamples)
    return Draws(generator.integers(seeds, size=(resamples, seeds)), tasks, strata)


def quantile_interval(
    value: float, resampled: NDArray[np.float64], level: float = 0.95
) -> Interval:
    """Return an estimate with the interval between two quantiles of its resampled values.

    The quantiles are interpolated, unlike those of `learners.intervals.percentile_interval`.
    """
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high))


def resampled_means(scores: Matrix, draws: Draws) -> Matrix:
    """(R,) mean score of each resample.

    Args:
        scores: (S, N).
        draws: of S seeds and N tasks.
    """
    means: Matrix = np.einsum("rn,rn->r", draws.counts @ scores, draws.tasks) / scores.size
    return means


def mean(scores: Matrix, draws: Draws) -> Interval:
    """Return the mean of (S, N) scores."""
    return quantile_interval(float(scores.mean()), resampled_means(scores, draws))


def difference(ours: Matrix, theirs: Matrix, draws: Draws, level: float = 0.95) -> Interval:
    """Return the mean of our (S, N) scores less theirs, on the same seeds and tasks."""
    gap = ours - theirs
    return quantile_interval(float(gap.mean()), resampled_means(gap, draws), level)


def per_level(scores: Matrix, draws: Draws) -> tuple[Matrix, Matrix]:
    """Mean scores of each seed and level: (S, L) of all tasks, (R, S, L) of drawn tasks."""
    plain, resampled = [], []
    for stratum in range(int(draws.strata.max()) + 1):
        members = draws.strata == stratum
        plain.append(scores[:, members].mean(axis=1))
        resampled.append(draws.tasks[:, members] @ scores[:, members].T / members.sum())
    return np.stack(plain, axis=-1), np.stack(resampled, axis=-1)


def interquartile_mean(scores: Matrix, draws: Draws) -> Interval:
    """Return the mean of the middle half of seeds and levels; an outlier moves it less."""
    plain, resampled = per_level(scores, draws)
    chosen = _choose_seeds(resampled, draws)
    means = _trimmed_means(chosen.reshape(len(chosen), -1))
    return quantile_interval(float(_trimmed_means(plain.reshape(1, -1))[0]), means)


def _choose_seeds(resampled: Matrix, draws: Draws) -> Matrix:
    """(R, S, L) scores of the drawn seeds, from those of all seeds."""
    return np.take_along_axis(resampled, draws.seeds[:, :, None], axis=1)


def _trimmed_means(values: Matrix) -> Matrix:
    """(R,) means of (R, K) values without the smallest and largest quarter."""
    cut = int(TRIM * values.shape[1])
    ordered = np.sort(values, axis=1)
    means: Matrix = ordered[:, cut : values.shape[1] - cut].mean(axis=1)
    return means


def probability_of_improvement(ours: Matrix, theirs: Matrix, draws: Draws) -> Interval:
    """Return the probability that a run of ours scores above a run of theirs; ties count half.

    The mean over levels. Every run of ours is compared with every run of theirs, so seeds need not
    pair.

    Args:
        ours: (S, N) scores.
        theirs: (S, N) scores on the same tasks.
        draws: of seeds and tasks.
    """
    plain, resampled = zip(per_level(ours, draws), per_level(theirs, draws), strict=True)
    value = float(_win_rates(plain[0][None], plain[1][None])[0])
    chosen = [_choose_seeds(scores, draws) for scores in resampled]
    return quantile_interval(value, _win_rates(*chosen))


def _win_rates(ours: Matrix, theirs: Matrix) -> Matrix:
    """(R,) share of pairs of (R, S, L) runs in which ours is above."""
    gap = ours[:, :, None, :] - theirs[:, None, :, :]
    gap = np.where(np.abs(gap) < 1e-12, 0.0, gap)  # equal but for rounding is a tie
    rates: Matrix = ((np.sign(gap) + 1) / 2).mean(axis=(1, 2, 3))
    return rates


def profile(scores: Matrix, thresholds: Sequence[float], draws: Draws) -> list[Interval]:
    """Performance profile: the share of seeds and levels that score above each threshold."""
    plain, resampled = per_level(scores, draws)
    chosen = _choose_seeds(resampled, draws)
    return [
        quantile_interval(float((plain > t).mean()), (chosen > t).mean(axis=(1, 2)))
        for t in thresholds
    ]


def area_weights(positions: Sequence[float], end: float) -> NDArray[np.float64]:
    """Return the weight of each point of a curve in its mean height from 0 to `end`.

    The curve is straight between points and level after the last.

    Args:
        positions: (P,) increasing, the first at 0.
        end: upper limit of the mean; the first point beyond it shapes the last segment.

    Returns:
        (P,) weights, their sum is 1.
    """
    weights = np.zeros(len(positions))
    for index, (left, right) in enumerate(pairwise(positions)):
        cut = min(right, end)
        if cut <= left:
            break
        # The segment counts up to the cut, whose height is between those of its ends.
        share = (cut - left) / (right - left)
        weights[index] += (cut - left) * (1 - share / 2)
        weights[index + 1] += (cut - left) * share / 2
    weights[-1] += max(0.0, end - positions[-1])
    return weights / end


def interpolate(positions: Sequence[float], scores: Matrix, at: Sequence[float]) -> Matrix:
    """(A, N) heights at other positions of the curves (P, N) of N tasks.

    Straight between points, level after the last.
    """
    return np.stack([np.interp(at, positions, column) for column in scores.T], axis=1)


def pass_at(right: Matrix, samples: int, k: int) -> Matrix:
    """(S, N) unbiased pass@k, from the number of right answers among the samples."""
    table = np.array([pass_at_k(samples, correct, k) for correct in range(samples + 1)])
    estimates: Matrix = table[right.astype(int)]
    return estimates
