"""Benchmarks: tasks and how answers to them are scored. Knows nothing of tools, envs or tokens.

benchmark         the records Benchmark, Task, Score and Demonstration
catalog           the public data set behind each benchmark
competition_math  AIME24, AIME25, MATH500, MATH, GSM8K
multihop_qa       HotpotQA, 2WikiMultihopQA, MuSiQue, Bamboogle
deep_research     WebWalker, GAIA, HLE, xbench-DeepSearch
synthetic         SyntheticQA, generated, with demonstrations
synthetic_words   its vocabulary
loading           turns rows into tasks, splits training rows, removes overlaps with test sets
sources           reads rows from files or the hub
pinned_rows       digests of rows that no commit pins
scoring           the scorers
text              boxed answers, normalisation, exact match, F1, numerals
equality          equality of short mathematical answers
math_pool         a pool of grading processes
math_worker       the program of a grading process
judge             grades answers with a language model
arpo              the reward of the published ARPO and APPO code
metrics           pass@k and calibration error
"""

from __future__ import annotations

from benchmarks.arpo import arpo_reward
from benchmarks.benchmark import Benchmark, Demonstration, Passage, Score, Scorer, Split, Step, Task
from benchmarks.catalog import EVALUATED
from benchmarks.competition_math import AIME24, AIME25, GSM8K, MATH, MATH500
from benchmarks.deep_research import GAIA, HLE, WEBWALKER, XBENCH
from benchmarks.judge import Endpoint, Judge, JudgeUnavailable, Post, Verdict, http_post, with_judge
from benchmarks.loading import TaskList, sample_tasks
from benchmarks.math_pool import GraderUnavailable
from benchmarks.metrics import calibration_error, pass_at_k
from benchmarks.multihop_qa import BAMBOOGLE, HOTPOTQA, MUSIQUE, TWO_WIKI
from benchmarks.scoring import GRADING_THREADS, score_em, score_f1
from benchmarks.sources import (
    DataUnavailable,
    HubTable,
    fetch_from_hub,
    local_rows,
    question_id,
    question_key,
)
from benchmarks.synthetic import SYNTHETIC_QA
from benchmarks.synthetic_words import vocabulary
from benchmarks.text import last_boxed

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
    "EVALUATED",
    "GRADING_THREADS",
    "Benchmark",
    "DataUnavailable",
    "Demonstration",
    "Endpoint",
    "GraderUnavailable",
    "HubTable",
    "Judge",
    "JudgeUnavailable",
    "Passage",
    "Post",
    "Score",
    "Scorer",
    "Split",
    "Step",
    "Task",
    "TaskList",
    "Verdict",
    "arpo_reward",
    "calibration_error",
    "fetch_from_hub",
    "http_post",
    "last_boxed",
    "local_rows",
    "pass_at_k",
    "question_id",
    "question_key",
    "sample_tasks",
    "score_em",
    "score_f1",
    "vocabulary",
    "with_judge",
]
