"""The judge of a run or an evaluation, every question to it counted in the ledger.

`judge_calls` are verdicts asked for, `judge_cached` those of them that it had given before,
`judge_faults` requests that brought none: it was sent calls - cached + faults requests. A verdict
is paid once, however often it had to be asked for.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path

from benchmarks import Benchmark, Endpoint, Judge, Post, Task, Verdict, http_post, with_judge
from envs import ToolEnv
from learners.config import JudgeOptions
from learners.ledger import JUDGE, Ledger
from learners.runs.environments import TaskMixture

FILE = "judge.jsonl"
"""Beside a run or an evaluation: what the judge said, as hashes and verdicts."""


class CountedJudge(Judge):
    """A judge that tells a ledger what it is asked. Thread-safe; mutated by every verdict."""

    def __init__(
        self, endpoint: Endpoint, ledger: Ledger, cache: Path | None = None, post: Post = http_post
    ) -> None:
        super().__init__(endpoint, cache, self._send)
        self._ledger, self._transport = ledger, post
        self._here = threading.local()

    def verdict(self, task: Task, answer: str) -> Verdict:
        """As `Judge.verdict`, counted.

        Raises:
            RunStopped: its price is not left.
            JudgeUnavailable: the endpoint cannot be reached or refuses.
        """
        self._ledger.usage.begin_call(JUDGE)
        self._here.requests = 0
        try:
            found = super().verdict(task, answer)
        except BaseException:
            self._ledger.count_judgement(self._here.requests, ok=False)
            raise
        self._ledger.count_judgement(self._here.requests, ok=True)
        return found

    def _send(self, url: str, headers: Mapping[str, str], body: bytes, timeout: float) -> bytes:
        self._here.requests += 1
        return self._transport(url, headers, body, timeout)


def judge_of(options: JudgeOptions, folder: Path, ledger: Ledger) -> CountedJudge | None:
    """The judge that options name; what it said before lies in the folder.

    Raises:
        UsageError: a judge without a model.
    """
    if options.judge_base is None:
        return None
    options.validate()
    assert options.judge_model is not None
    key = os.environ.get(options.judge_key_variable, "")
    endpoint = Endpoint(options.judge_base, options.judge_model, key)
    return CountedJudge(endpoint, ledger, folder / FILE)


def judged(benchmark: Benchmark, options: JudgeOptions, folder: Path, ledger: Ledger) -> Benchmark:
    """The benchmark, its undecided answers put before the judge that options name, if they do.

    Raises:
        UsageError: a judge without a model.
    """
    judge = judge_of(options, folder, ledger)
    return benchmark if judge is None else with_judge(benchmark, judge)


def appoint(
    env: ToolEnv | TaskMixture, options: JudgeOptions, folder: Path, ledger: Ledger
) -> None:
    """Let the judge that options name, if they do, decide in an environment.

    Args:
        env: its benchmark is replaced.
        options: name the judge, or none.
        folder: where verdicts are kept.
        ledger: pays.

    Raises:
        UsageError: a judge without a model.
    """
    judge = judge_of(options, folder, ledger)
    if judge is None:
        return
    for part in env.parts if isinstance(env, TaskMixture) else [env]:
        part.benchmark = with_judge(part.benchmark, judge)
