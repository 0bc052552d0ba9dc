"""Benchmarks: tasks and how answers to them are scored. Knows nothing of tools, envs or tokens."""

from benchmarks.benchmark import Benchmark, Demonstration, Passage, Score, Scorer, Step, Task
from benchmarks.competition_math import AIME24, AIME25, GSM8K, MATH, MATH500
from benchmarks.deep_research import GAIA, HLE, WEBWALKER, XBENCH
from benchmarks.loading import TaskList
from benchmarks.math_pool import GraderUnavailable
from benchmarks.multihop_qa import BAMBOOGLE, HOTPOTQA, MUSIQUE, TWO_WIKI
from benchmarks.sources import DataUnavailable
from benchmarks.synthetic import SYNTHETIC_QA

BENCHMARKS: dict[str, Benchmark] = {
    record.name: record
    for record in (
        *(AIME24, AIME25, MATH500, GSM8K, MATH),
        *(WEBWALKER, HOTPOTQA, TWO_WIKI, MUSIQUE, BAMBOOGLE),
        *(GAIA, HLE, XBENCH),
        SYNTHETIC_QA,
    )
}
"""Every benchmark, by the name in its id."""

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "DataUnavailable",
    "Demonstration",
    "GraderUnavailable",
    "Passage",
    "Score",
    "Scorer",
    "Step",
    "Task",
    "TaskList",
]
