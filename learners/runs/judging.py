"""The judge of a run or an evaluation; every request to it is counted in the ledger.

Its counters: `judge_calls` are the verdicts that were asked for, `judge_cached` those of them that
came from the cache, `judge_faults` the requests that brought no verdict. So the judge was sent
calls - cached + faults requests. A verdict is paid once, however many requests it took.
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

JUDGE_FILE = "judge.jsonl"
"""Verdicts of a run or an evaluation, by hashes of what was judged."""


def install_judge(
    env: ToolEnv | TaskMixture, options: JudgeOptions, folder: Path, ledger: Ledger
) -> None:
    """Let a judge grade the undecided answers of an environment, if options name one.

    Args:
        env: its benchmark is replaced.
        options: name the judge.
        folder: holds the file of verdicts.
        ledger: pays.

    Raises:
        UsageError: the judge has no model.
    """
    judge = make_judge(options, folder, ledger)
    if judge is None:
        return
    # One judge for all parts: they share its cache and its limit of concurrent requests.
    for part in env.parts if isinstance(env, TaskMixture) else [env]:
        part.benchmark = with_judge(part.benchmark, judge)


def add_judge(
    benchmark: Benchmark, options: JudgeOptions, folder: Path, ledger: Ledger
) -> Benchmark:
    """Return a benchmark whose undecided answers a judge grades, if options name one.

    Raises:
        UsageError: the judge has no model.
    """
    judge = make_judge(options, folder, ledger)
    return benchmark if judge is None else with_judge(benchmark, judge)


def make_judge(options: JudgeOptions, folder: Path, ledger: Ledger) -> CountedJudge | None:
    """Make the judge that options name, with the verdicts that are in the folder; None if none.

    Raises:
        UsageError: the judge has no model.
    """
    if options.judge_base is None:
        return None
    options.validate()
    assert options.judge_model is not None
    key = os.environ.get(options.judge_key_variable, "")
    endpoint = Endpoint(options.judge_base, options.judge_model, key)
    return CountedJudge(endpoint, ledger, folder / JUDGE_FILE)


class CountedJudge(Judge):
    """A judge whose requests a ledger counts. Thread-safe; mutated by every verdict."""

    def __init__(
        self, endpoint: Endpoint, ledger: Ledger, cache: Path | None = None, post: Post = http_post
    ) -> None:
        super().__init__(endpoint, cache, self._send)
        self._ledger, self._transport = ledger, post
        self._local = threading.local()
        """`requests`: requests sent for the verdict that this thread asks for."""

    def verdict(self, task: Task, answer: str) -> Verdict:
        """Do as `Judge.verdict`, and count.

        Raises:
            RunStopped: the budget does not cover its price.
            JudgeUnavailable: the endpoint cannot be reached or refuses.
        """
        self._ledger.usage.begin_call(JUDGE)
        self._local.requests = 0
        try:
            verdict = super().verdict(task, answer)
        except BaseException:
            self._ledger.count_judgement(self._local.requests, ok=False)
            raise
        self._ledger.count_judgement(self._local.requests, ok=True)
        return verdict

    def _send(self, url: str, headers: Mapping[str, str], body: bytes, timeout: float) -> bytes:
        self._local.requests += 1
        return self._transport(url, headers, body, timeout)
