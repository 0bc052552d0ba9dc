"""How good a policy is on tasks: one episode each, scored, with intervals."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from benchmarks import Benchmark, Score, Task
from envs.reward import final_answer
from learners.rollout import Rollouts
from learners.tree import RolloutTree

RESAMPLES = 10_000
THREADS = 8
"""Answers graded at a time; each may wait for a grading process or a judge."""
BLOCK = 1_000_000
"""Values drawn at a time."""


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def evaluate(rollouts: Rollouts, tasks: Sequence[Task]) -> dict[str, Any]:
    """Play every task once.

    Returns:
        Per task, in order: id, score (official metric), judged (False where only a judge could have
        decided; the score is 0 then and means nothing), reward, stop, tool calls, tokens sampled;
        and the ledger. Tasks whose tools were unavailable are listed apart with their faults and
        not scored.
    """
    trees = [rollouts.tree(task) for task in tasks]
    for tree in trees:
        tree.root()
    rollouts.sampler.sync()
    rollouts.run(trees, key="evaluation")
    rollouts.sampler.sync()
    played = [tree for tree in trees if tree.unavailable is None]
    benchmark = rollouts.env.benchmark
    with ThreadPoolExecutor(THREADS) as pool:
        rows = list(pool.map(lambda tree: _row(benchmark, tree), played))
    lost = [(tree.task.id, tree.unavailable) for tree in trees if tree.unavailable is not None]
    return {
        "tasks": rows,
        "unavailable": [task for task, _ in lost],
        "faults": [fault for _, fault in lost],
        **rollouts.ledger.take(),
    }


def _row(benchmark: Benchmark, tree: RolloutTree) -> dict[str, Any]:
    """What the one episode of a tree is worth."""
    (episode,) = tree.trajectories
    answer = final_answer(episode.state)
    score = Score(0.0, "no answer", "")
    if answer is not None:
        score = benchmark.score(answer, tree.task)
    return {
        "task": tree.task.id,
        "score": score.value,
        "judged": score.judged,
        "reward": episode.reward,
        "stop": episode.state.stop,
        "tool_calls": len(episode.state.calls),
        "tokens": episode.sampled_tokens,
    }


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
