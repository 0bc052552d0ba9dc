"""Grades episodes, and summarises the verdicts of an environment.

Three kinds of failure are kept apart: a wrong answer; no answer (malformed, or a limit was hit),
which counts as wrong; and an error of a tool or an endpoint, which counts as nothing and is played
again. An answer that only a judge could grade is "not judged" without one, and the environment then
has no official score.
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

REQUEST = (
    "Inside <answer>, before the box, state how sure you are that it is right, as in "
    "Confidence: 70%."
)
"""Text that --confidence adds to the instructions."""

BIN = 100
"""Answers per bin of the calibration error."""

_STATED = re.compile(r"confidence\W{0,12}(\d{1,3}(?:\.\d{1,6})?)\s{0,2}(%?)", re.IGNORECASE)


@dataclass(frozen=True)
class Verdict:
    """Scores of one episode; a score is None if there is none."""

    task: str
    sample: int
    status: Status
    official: float | None
    method: str
    """Rule that decided the official score, or how the episode ended without an answer."""
    training: float | None
    """Score of the training reward, without format and bonus: token F1, or equality."""
    em: float | None
    """Exact match, if the training score is token F1."""
    stop: str
    calls: tuple[str, ...]
    tokens: int
    confidence: float | None = None
    """Stated confidence in [0, 1], if the answer states one."""


@dataclass(frozen=True)
class ScoreEstimate:
    """A mean score with its 95 % interval; its fields are the keys in results.json."""

    value: float
    low: float
    high: float
    interval: Literal["wilson", "bootstrap over tasks"]

    def __str__(self) -> str:
        return str(Interval(self.value, self.low, self.high))


@dataclass(frozen=True)
class PassAtK(ScoreEstimate):
    """pass@k, over the tasks with at least k samples."""

    tasks: int


@dataclass(frozen=True)
class Calibration:
    """Calibration error of the answers."""

    value: float
    """Over all answers."""
    official: float | None
    """By the authors' script, which leaves out the last bin; None if it has no other."""
    stated: int
    """Answers that state a confidence; the others count as certain."""


@dataclass(frozen=True)
class Grades:
    """Numbers of one environment. Errors are in `status` and in nothing else."""

    tasks: int
    samples: int
    """Largest number of samples of a task."""
    episodes: int
    status: dict[str, int]
    """Episodes by status, errors included."""
    stop: dict[str, int]
    """Episodes by how they ended."""
    not_judged: int
    official: ScoreEstimate | None
    """None if an answer was not judged, or nothing was played."""
    pass_at: dict[int, PassAtK]
    """By k; empty with one sample, or without an official score."""
    calibration: Calibration | None
    """None if no answer states a confidence."""
    training: ScoreEstimate | None
    em: ScoreEstimate | None
    tool_calls: float | None
    """Mean per episode."""
    tool_calls_by_tool: dict[str, float]
    """Mean per episode, by tool."""
    tokens: float | None
    """Mean per episode of the tokens that the model sampled."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as results.json holds them."""
        content = asdict(self)
        return content | {"pass_at": {str(k): value for k, value in content["pass_at"].items()}}


def grade_all(
    benchmark: Benchmark, tasks: Mapping[str, Task], episodes: Sequence[Episode]
) -> list[Verdict]:
    """Grade every episode, in order.

    Args:
        benchmark: with its judge, if there is one.
        tasks: by id.
        episodes: of these tasks.

    Raises:
        benchmarks.GraderUnavailable, benchmarks.JudgeUnavailable: see their messages. The episodes
            are stored, so nothing is lost.
    """
    with ThreadPoolExecutor(GRADING_THREADS) as pool:
        return list(pool.map(lambda e: grade(benchmark, tasks[e.task], e), episodes))


def grade(benchmark: Benchmark, task: Task, episode: Episode) -> Verdict:
    """Grade one episode; raises as `grade_all`."""
    has_f1 = benchmark.training_score is score_f1
    confidence = None
    if episode.answer is not None:
        confidence = stated_confidence("".join(episode.transcript[-1:]))

    def verdict(
        status: Status,
        official: float | None,
        method: str,
        training: float | None,
        em: float | None,
    ) -> Verdict:
        return Verdict(
            task=episode.task,
            sample=episode.sample,
            status=status,
            official=official,
            method=method,
            training=training,
            em=em if has_f1 else None,
            stop=episode.stop,
            calls=episode.calls,
            tokens=episode.tokens,
            confidence=confidence,
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


def summarise(verdicts: Sequence[Verdict]) -> Grades:
    """Summarise the verdicts of one environment."""
    played = [v for v in verdicts if v.status != "error"]
    by_task: defaultdict[str, list[Verdict]] = defaultdict(list)
    for verdict in played:
        by_task[verdict.task].append(verdict)
    samples = max((len(group) for group in by_task.values()), default=0)
    unjudged = sum(v.status == "not judged" for v in played)
    official = None if unjudged or not played else _estimate(by_task, "official")
    calls = Counter(call for v in played for call in v.calls)
    return Grades(
        tasks=len(by_task),
        samples=samples,
        episodes=len(played),
        status=dict(Counter(v.status for v in verdicts)),
        stop=dict(Counter(v.stop for v in played)),
        not_judged=unjudged,
        official=official,
        pass_at={} if official is None else _pass_at(by_task, samples),
        calibration=None if unjudged else _calibration(played),
        training=_estimate(by_task, "training") if played else None,
        em=_estimate(by_task, "em") if played and played[0].em is not None else None,
        tool_calls=_mean([len(v.calls) for v in played]),
        tool_calls_by_tool={tool: count / len(played) for tool, count in calls.items()},
        tokens=_mean([v.tokens for v in played]),
    )


def stated_confidence(text: str) -> float | None:
    """Return the last confidence that a text states, in [0, 1]; None if there is none.

    A number without a percent sign is a share if it has a decimal point and is at most 1.
    """
    confidence = None
    for number, percent in _STATED.findall(text):
        value = float(number)
        share = value if not percent and "." in number and value <= 1 else value / 100
        confidence = share if share <= 1 else confidence
    return confidence


def calibrate(confidence: Sequence[float | None], correct: Sequence[bool]) -> Calibration:
    """Compute the calibration error of answers.

    Args:
        confidence: as stated; None for an answer that states none.
        correct: of the same length, not empty.
    """
    certainty = [1.0 if stated is None else stated for stated in confidence]
    official = None
    if len(certainty) >= BIN:
        official = calibration_error(certainty, correct, BIN, count_last=False)
    return Calibration(
        value=calibration_error(certainty, correct, BIN),
        official=official,
        stated=sum(stated is not None for stated in confidence),
    )


def _calibration(played: Sequence[Verdict]) -> Calibration | None:
    answers = [v for v in played if v.status != "no answer"]
    if all(v.confidence is None for v in answers):
        return None
    return calibrate([v.confidence for v in answers], [v.status == "right" for v in answers])


def _estimate(
    by_task: Mapping[str, Sequence[Verdict]], name: Literal["official", "training", "em"]
) -> ScoreEstimate:
    """Average over tasks the mean over samples, with an interval over tasks."""
    groups = [[asdict(v)[name] for v in group] for group in by_task.values()]
    values = [sum(group) / len(group) for group in groups]
    if all(len(group) == 1 for group in groups) and set(values) <= {0.0, 1.0}:
        return ScoreEstimate(*wilson(sum(values), len(values)), "wilson")
    return ScoreEstimate(*bootstrap_mean(values), "bootstrap over tasks")


def _pass_at(by_task: Mapping[str, Sequence[Verdict]], samples: int) -> dict[int, PassAtK]:
    """Unbiased pass@k for the powers of two below the number of samples, and for that number."""
    ks = sorted({k for k in (1, 2, 4, 8, 16, 32, 64) if k < samples} | {samples})
    estimates = {}
    for k in ks if samples > 1 else ():
        groups = [group for group in by_task.values() if len(group) >= k]
        values = [pass_at_k(len(g), sum(v.status == "right" for v in g), k) for g in groups]
        estimates[k] = PassAtK(*bootstrap_mean(values), "bootstrap over tasks", len(groups))
    return estimates


def _mean(values: Sequence[int]) -> float | None:
    return sum(values) / len(values) if values else None
