"""How sure one may be of a comparison: bootstrap over seeds and tasks, paired between methods.

A method's scores are a matrix (S, N): seeds by tasks. Seeds and tasks are drawn anew at the same
time, tasks within their level (strata), and every method is given the same draws: what differs
between two methods is what differs on equal seeds and tasks. With one seed the draws are of tasks
alone, and nothing is said about other seeds. Aggregates follow Agarwal et al. (arXiv 2108.13264);
a "run" there is a seed here, and a "task" there is a level of tasks here.
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
"""Share that the interquartile mean leaves out at either end."""


@dataclass(frozen=True)
class Draws:
    """Seeds and tasks that were drawn, R times; the same for all methods."""

    seeds: NDArray[np.int64]
    """(R, S) which seeds."""
    tasks: NDArray[np.float64]
    """(R, N) how often each task."""
    strata: NDArray[np.int64]
    """(N,) which level each task is of, from 0."""

    @property
    def counts(self) -> Matrix:
        """(R, S) how often each seed."""
        width = self.seeds.shape[1]
        return np.stack([(self.seeds == s).sum(axis=1) for s in range(width)], axis=1).astype(float)


def draw(seeds: int, levels: Sequence[str], resamples: int = RESAMPLES, seed: int = 0) -> Draws:
    """Draw seeds, and tasks within their levels.

    Args:
        seeds: S.
        levels: of N tasks.
        resamples: R.
        seed: of the draws.
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


def interval(value: float, drawn: NDArray[np.float64], level: float = 0.95) -> Interval:
    """An estimate with the percentile interval of what was drawn."""
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high))


def drawn_means(scores: Matrix, draws: Draws) -> Matrix:
    """(R,) the mean score of each draw.

    Args:
        scores: (S, N).
        draws: of S seeds and N tasks.
    """
    found: Matrix = np.einsum("rn,rn->r", draws.counts @ scores, draws.tasks) / scores.size
    return found


def mean(scores: Matrix, draws: Draws) -> Interval:
    """The mean of (S, N) scores."""
    return interval(float(scores.mean()), drawn_means(scores, draws))


def difference(ours: Matrix, theirs: Matrix, draws: Draws, level: float = 0.95) -> Interval:
    """The mean of our (S, N) scores less theirs, on the same seeds and tasks."""
    gap = ours - theirs
    return interval(float(gap.mean()), drawn_means(gap, draws), level)


def per_level(scores: Matrix, draws: Draws) -> tuple[Matrix, Matrix]:
    """Mean scores of each seed and level: (S, L) as they are, (R, S, L) of drawn tasks."""
    plain, drawn = [], []
    for stratum in range(int(draws.strata.max()) + 1):
        members = draws.strata == stratum
        plain.append(scores[:, members].mean(axis=1))
        drawn.append(draws.tasks[:, members] @ scores[:, members].T / members.sum())
    return np.stack(plain, axis=-1), np.stack(drawn, axis=-1)


def interquartile_mean(scores: Matrix, draws: Draws) -> Interval:
    """The mean of the middle half of what seeds reach on levels: an odd run moves it less."""
    plain, drawn = per_level(scores, draws)
    chosen = np.take_along_axis(drawn, draws.seeds[:, :, None], axis=1)
    resampled = _trimmed(chosen.reshape(len(chosen), -1))
    return interval(float(_trimmed(plain.reshape(1, -1))[0]), resampled)


def _trimmed(values: Matrix) -> Matrix:
    """(R,) means of (R, K) values without the smallest and largest quarter."""
    cut = int(TRIM * values.shape[1])
    ordered = np.sort(values, axis=1)
    found: Matrix = ordered[:, cut : values.shape[1] - cut].mean(axis=1)
    return found


def probability_of_improvement(ours: Matrix, theirs: Matrix, draws: Draws) -> Interval:
    """The chance that a run of ours scores above a run of theirs, mean over levels; ties are half.

    Args:
        ours: (S, N) scores.
        theirs: the same tasks; the seeds need not pair here, every run meets every other.
        draws: of seeds and tasks.
    """
    plain, drawn = zip(per_level(ours, draws), per_level(theirs, draws), strict=True)
    value = float(_wins(plain[0][None], plain[1][None])[0])
    chosen = [np.take_along_axis(d, draws.seeds[:, :, None], axis=1) for d in drawn]
    return interval(value, _wins(*chosen))


def _wins(ours: Matrix, theirs: Matrix) -> Matrix:
    """(R,) share of pairs of (R, S, L) runs in which ours is above."""
    gap = ours[:, :, None, :] - theirs[:, None, :, :]
    gap = np.where(np.abs(gap) < 1e-12, 0.0, gap)
    found: Matrix = ((np.sign(gap) + 1) / 2).mean(axis=(1, 2, 3))
    return found


def profile(scores: Matrix, thresholds: Sequence[float], draws: Draws) -> list[Interval]:
    """Performance profile: the share of seeds and levels that score above each threshold."""
    plain, drawn = per_level(scores, draws)
    chosen = np.take_along_axis(drawn, draws.seeds[:, :, None], axis=1)
    return [interval(float((plain > t).mean()), (chosen > t).mean(axis=(1, 2))) for t in thresholds]


def area_weights(places: Sequence[float], end: float) -> NDArray[np.float64]:
    """What each point of a curve counts in its mean height from 0 to `end`, straight in between.

    Args:
        places: increasing, the first at 0. The curve goes on level after the last.
        end: where the mean ends; points beyond are used to cut the last stretch.

    Returns:
        (P,) weights, their sum is 1.
    """
    weights = np.zeros(len(places))
    for index, (left, right) in enumerate(pairwise(places)):
        cut = min(right, end)
        if cut <= left:
            break
        share = (cut - left) / (right - left)  # of the stretch; the height at its end is between
        weights[index] += (cut - left) * (1 - share / 2)
        weights[index + 1] += (cut - left) * share / 2
    weights[-1] += max(0.0, end - places[-1])
    return weights / end


def heights(places: Sequence[float], scores: Matrix, at: Sequence[float]) -> Matrix:
    """(A, N) the curves (P, N) of N tasks at other places; straight between points, level after."""
    return np.stack([np.interp(at, places, column) for column in scores.T], axis=1)


def pass_at(right: Matrix, samples: int, k: int) -> Matrix:
    """(S, N) unbiased pass@k of so many right answers among the samples."""
    table = np.array([pass_at_k(samples, correct, k) for correct in range(samples + 1)])
    found: Matrix = table[right.astype(int)]
    return found
