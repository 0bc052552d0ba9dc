"""From episodes to verdicts, and from verdicts to the numbers of a table.

Three kinds of failure are kept apart: a wrong answer, no answer (malformed, or a limit was hit; it
counts as wrong), and an error of the machinery (it counts as nothing and is played again). What
only a judge could decide, and none did, is not judged: such a set has no official number.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal

from benchmarks import (
    GRADING_THREADS,
    Benchmark,
    Task,
    calibration_error,
    pass_at_k,
    score_em,
    score_f1,
)
from learners.evaluate.episodes import Episode
from learners.intervals import Interval, bootstrap_mean, wilson

Status = Literal["right", "partly", "wrong", "no answer", "not judged", "error"]


@dataclass(frozen=True)
class Verdict:
    """What one episode is worth; the scores are None where there is none."""

    task: str
    sample: int
    status: Status
    official: float | None
    method: str
    """What decided the official score, or how the episode ended without an answer."""
    training: float | None
    """The training reward's score, format and bonus left out: token F1, or equality."""
    em: float | None
    """Exact match, where the training score is token F1."""
    stop: str
    calls: tuple[str, ...]
    tokens: int
    confidence: float | None = None
    """In [0, 1], where the answer states one."""


def grade_all(
    benchmark: Benchmark, tasks: Mapping[str, Task], episodes: Sequence[Episode]
) -> list[Verdict]:
    """Grade every episode, in order.

    Args:
        benchmark: with its judge, if there is one.
        tasks: by id.
        episodes: of these tasks.

    Raises:
        benchmarks.GraderUnavailable, benchmarks.judge.JudgeUnavailable: see their messages; the
            episodes are stored, so that nothing is lost.
    """
    with ThreadPoolExecutor(GRADING_THREADS) as pool:
        return list(pool.map(lambda e: grade(benchmark, tasks[e.task], e), episodes))


def grade(benchmark: Benchmark, task: Task, episode: Episode) -> Verdict:
    """The verdict on one episode; raises as `grade_all`."""
    has_f1 = benchmark.training_score is score_f1
    confidence = None if episode.answer is None else stated("".join(episode.transcript[-1:]))

    def verdict(
        status: Status,
        official: float | None,
        method: str,
        training: float | None,
        em: float | None,
    ) -> Verdict:
        shown = em if has_f1 else None
        played = (episode.stop, episode.calls, episode.tokens, confidence)
        return Verdict(
            episode.task, episode.sample, status, official, method, training, shown, *played
        )

    if episode.error is not None:
        return verdict("error", None, episode.error, None, None)
    if episode.answer is None:
        return verdict("no answer", 0.0, episode.stop, 0.0, 0.0)
    score = benchmark.score(episode.answer, task)
    training = benchmark.training_score(episode.answer, task).value
    em = score_em(episode.answer, task).value
    if not score.judged:
        return verdict("not judged", None, score.method, training, em)
    status: Status = "right" if score.value == 1 else "partly" if score.value > 0 else "wrong"
    return verdict(status, score.value, score.method, training, em)


def summary(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The numbers of one environment.

    Returns:
        tasks, samples (most of one task), counts by status, stop and tool; `official`, `training`
        and `em`: {value, low, high, interval} or None; `calibration` of the answers, where one of
        them states a confidence; `pass_at`: the same by k, over the
        tasks with at least k samples; `tool_calls` and `tokens` per episode. Errors are in the
        counts and in nothing else.
    """
    played = [v for v in verdicts if v.status != "error"]
    by_task: defaultdict[str, list[Verdict]] = defaultdict(list)
    for verdict in played:
        by_task[verdict.task].append(verdict)
    samples = max((len(group) for group in by_task.values()), default=0)
    unjudged = sum(v.status == "not judged" for v in played)
    official = None if unjudged or not played else _rate(by_task, "official")
    return {
        "tasks": len(by_task),
        "samples": samples,
        "episodes": len(played),
        "status": dict(Counter(v.status for v in verdicts)),
        "stop": dict(Counter(v.stop for v in played)),
        "not_judged": unjudged,
        "official": official,
        "pass_at": {} if official is None else _pass_at(by_task, samples),
        "calibration": None if unjudged else _calibration(played),
        "training": _rate(by_task, "training") if played else None,
        "em": _rate(by_task, "em") if played and played[0].em is not None else None,
        "tool_calls": _mean([len(v.calls) for v in played]),
        "tool_calls_by_tool": {
            tool: count / len(played)
            for tool, count in Counter(c for v in played for c in v.calls).items()
        },
        "tokens": _mean([v.tokens for v in played]),
    }


def _calibration(played: Sequence[Verdict]) -> dict[str, Any] | None:
    answers = [v for v in played if v.status != "no answer"]
    if all(v.confidence is None for v in answers):
        return None
    return calibration([v.confidence for v in answers], [v.status == "right" for v in answers])


def _rate(by_task: Mapping[str, Sequence[Verdict]], name: str) -> dict[str, Any]:
    """The mean over tasks of the mean over samples, with its interval over tasks."""
    groups = [[asdict(v)[name] for v in group] for group in by_task.values()]
    values = [sum(group) / len(group) for group in groups]
    if all(len(group) == 1 for group in groups) and set(values) <= {0.0, 1.0}:
        return _shown(wilson(sum(values), len(values)), "wilson")
    return _shown(bootstrap_mean(values), "bootstrap over tasks")


def _pass_at(by_task: Mapping[str, Sequence[Verdict]], samples: int) -> dict[str, Any]:
    """Unbiased pass@k for the powers of two below the number of samples, and for that number."""
    ks = sorted({k for k in (1, 2, 4, 8, 16, 32, 64) if k < samples} | {samples})
    found = {}
    for k in ks if samples > 1 else ():
        groups = [group for group in by_task.values() if len(group) >= k]
        values = [pass_at_k(len(g), sum(v.status == "right" for v in g), k) for g in groups]
        found[str(k)] = {**_shown(bootstrap_mean(values), "bootstrap over tasks")}
        found[str(k)]["tasks"] = len(groups)
    return found


def _shown(interval: Interval, kind: str) -> dict[str, Any]:
    return {**interval._asdict(), "interval": kind}


def _mean(values: Sequence[int]) -> float | None:
    return sum(values) / len(values) if values else None


REQUEST = (
    "Inside <answer>, before the box, state how sure you are that it is right, as in "
    "Confidence: 70%."
)
"""What is added to the instructions."""


BIN = 100
"""Answers of a bin."""


_STATED = re.compile(r"confidence\W{0,12}(\d{1,3}(?:\.\d{1,6})?)\s{0,2}(%?)", re.IGNORECASE)


def stated(text: str) -> float | None:
    """The last confidence that a text states, in [0, 1]; None where there is none.

    A number without a percent sign is a share if it has a decimal point and is at most 1.
    """
    found = None
    for number, percent in _STATED.findall(text):
        value = float(number)
        share = value if not percent and "." in number and value <= 1 else value / 100
        found = share if share <= 1 else found
    return found


def calibration(confidence: Sequence[float | None], correct: Sequence[bool]) -> dict[str, Any]:
    """The calibration error of answers.

    Args:
        confidence: as stated, None where nothing was.
        correct: of the same length, not empty.

    Returns:
        value: over all answers; official: as the authors' script, None where that fails; stated:
        how many stated a confidence.
    """
    sure = [1.0 if one is None else one for one in confidence]
    enough = len(sure) >= BIN
    return {
        "value": calibration_error(sure, correct, BIN),
        "official": calibration_error(sure, correct, BIN, count_last=False) if enough else None,
        "stated": sum(one is not None for one in confidence),
    }
