"""Benchmarks: tasks and how answers to them are scored. Knows nothing of tools, envs or tokens."""

from benchmarks.benchmark import Benchmark, Passage, Score, Scorer, Task
from benchmarks.competition_math import GSM8K
from benchmarks.loading import TaskList
from benchmarks.sources import DataUnavailable

BENCHMARKS: dict[str, Benchmark] = {record.name: record for record in (GSM8K,)}
"""Every benchmark, by the name in its id."""

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "DataUnavailable",
    "Passage",
    "Score",
    "Scorer",
    "Task",
    "TaskList",
]
