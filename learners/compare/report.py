"""The report of a comparison: numbers with intervals, and a sentence for each pair of methods."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np

from learners.compare import bootstrap
from learners.compare.bootstrap import Draws, Matrix
from learners.compare.collect import ComparisonData
from learners.compare.config import reference_label
from learners.compare.summary import Provenance, Summary, decode_scores
from learners.errors import UsageError
from learners.intervals import Interval

CURVE_POINTS = 41
"""Points of a drawn curve."""

BAND_RESAMPLES = 1000
"""Resamples of a band in a figure."""

THRESHOLDS = tuple(i / 50 for i in range(51))
"""Accuracies at which a performance profile is computed."""

DIAGNOSTICS = (
    "reward/mean",
    "reward/first",
    "group/equal",
    "score/defined",
    "score/strict",
    "branch/distinct",
    "branch/diverged",
    "branch/position",
    "branch/reward_variance",
    "advantage/magnitude",
    "advantage/base",
    "advantage/dropped_groups",
    "loss/clip_low_fraction",
    "loss/clip_high_fraction",
    "policy/entropy",
    "policy/kl_old",
)
"""Means over a run's iterations that explain a method's result."""

RewardKind = Literal["first_rewards", "rewards"]
"""Rewards of the rollouts that every prompt starts with, which compare between methods; or of all
initial rollouts, which do not."""


@dataclass(frozen=True)
class RewardHistory:
    """Rewards of a run's iterations, and what they cost."""

    tokens: Sequence[float]
    """Tokens sampled in each iteration."""
    rewards: Sequence[float | None]
    """Mean reward of all initial rollouts."""
    first_rewards: Sequence[float | None] | None
    """Mean reward of the rollouts that every prompt starts with; None: not recorded."""

    def of_kind(self, kind: RewardKind) -> Sequence[float | None]:
        """Return the rewards of a kind; none if they were not recorded."""
        return self.rewards if kind == "rewards" else self.first_rewards or ()


@dataclass(frozen=True)
class LearningCurve:
    """Accuracy on validation tasks against what training cost."""

    unit: str
    """Unit of the budget."""
    places: list[float]
    """Amounts of the budget."""
    heights: list[Interval]
    """Accuracies, with the band over seeds and tasks."""


@dataclass(frozen=True)
class MethodReport:
    """Numbers of one method, over its seeds."""

    accuracy: Interval
    """Final accuracy on test tasks."""
    gain: Interval
    """Its difference to the start."""
    iqm: Interval
    """Interquartile mean over seeds and levels."""
    area: Interval
    """Mean height of the learning curve up to the budget."""
    per_seed: list[float]
    per_level: dict[str, float]
    pass_at: dict[int, Interval]
    """pass@k, by k."""
    calls_per_task: float
    tokens_per_task: float
    spent: dict[str, float]
    """Mean costs of a run in training, by the names of a summary."""
    metrics: dict[str, float]
    """Mean metrics of a run; of DIAGNOSTICS."""
    curve: LearningCurve
    profile: list[Interval]
    """Share of seeds and levels whose accuracy is above each of THRESHOLDS."""


@dataclass(frozen=True)
class PairReport:
    """Differences between two methods, on the same seeds and tasks."""

    ours: str
    theirs: str
    accuracy: Interval
    """Difference in final accuracy, ours less theirs."""
    area: Interval
    """Difference in the mean height of the learning curve."""
    improvement: Interval
    """Probability that a run of ours scores above a run of theirs."""
    separated: bool
    """The interval, widened for the number of comparisons, leaves out 0."""
    sentence: str
    """The difference in words."""


@dataclass(frozen=True)
class StartReport:
    """Numbers of the model that all runs start from."""

    accuracy: Interval


@dataclass(frozen=True)
class Report:
    """All numbers of a comparison; its fields are the keys of report.json."""

    name: str
    env: str
    level: str | None
    budget: str
    seeds: list[int]
    tasks: int
    samples: int
    levels: dict[str, int]
    """Test tasks by level."""
    rates: dict[str, float]
    """Learning rates that were chosen, by label."""
    weights: str
    """Digest of the weights that all runs start from."""
    made: list[Provenance]
    """Code, machine and load of the runs; each combination once."""
    missing: list[str]
    """Titles of what was not run."""
    rewards: RewardKind
    """Rewards that the figure shows."""
    start: StartReport
    methods: dict[str, MethodReport]
    """By label."""
    against: str
    """Label of the method that the others are compared with."""
    pairs: list[PairReport]

    def to_json(self) -> dict[str, Any]:
        """Return the content of report.json."""
        content: dict[str, Any] = _to_json(self)
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Report:
        """Undo `to_json`.

        Raises:
            KeyError, TypeError: the content has other keys.
        """
        methods = {
            label: MethodReport(
                **{
                    **_with_intervals(method, "accuracy", "gain", "iqm", "area"),
                    "pass_at": {int(k): Interval(**v) for k, v in method["pass_at"].items()},
                    "curve": LearningCurve(
                        method["curve"]["unit"],
                        method["curve"]["places"],
                        [Interval(**height) for height in method["curve"]["heights"]],
                    ),
                    "profile": [Interval(**share) for share in method["profile"]],
                }
            )
            for label, method in content["methods"].items()
        }
        pairs = [
            PairReport(**_with_intervals(pair, "accuracy", "area", "improvement"))
            for pair in content["pairs"]
        ]
        start = StartReport(**_with_intervals(content["start"], "accuracy"))
        return cls(**{**content, "start": start, "methods": methods, "pairs": pairs})


def read_report(path: Path) -> Report:
    """Read a report.json.

    Raises:
        UsageError: there is none, or it is of another version.
    """
    if not path.exists():
        raise UsageError(
            f"{path} does not exist: learners.compare writes it, from summaries alone if all runs "
            "have one"
        )
    try:
        return Report.from_json(json.loads(path.read_text()))
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is a report of another version ({error}): write it again, with "
            "learners.compare --report-only"
        ) from error


def build_report(data: ComparisonData) -> Report:
    """Compute all numbers of a comparison."""
    config = data.config
    draws = bootstrap.draw(len(data.seeds), data.levels)
    band = bootstrap.draw(len(data.seeds), data.levels, BAND_RESAMPLES)
    against = reference_label(config)
    if against not in data.runs:
        against = next(iter(data.runs))
    rivals = [label for label in data.runs if label != against]
    return Report(
        name=config.name,
        env=config.env,
        level=config.level,
        budget=str(data.budget),
        seeds=data.seeds,
        tasks=len(data.levels),
        samples=data.samples,
        levels={x: data.levels.count(x) for x in sorted(set(data.levels))},
        rates=data.rates,
        weights=data.start[0]["weights"],
        made=_list_provenance(data),
        missing=data.missing,
        rewards=reward_kind(reward_histories(data)),
        start=StartReport(_round(bootstrap.mean(data.scores["start"], draws))),
        methods={label: _report_method(data, label, draws, band) for label in data.runs},
        against=against,
        pairs=[_report_pair(data, against, rival, draws, len(rivals)) for rival in rivals],
    )


def _report_method(data: ComparisonData, label: str, draws: Draws, band: Draws) -> MethodReport:
    runs, scores = data.runs[label], data.scores[label]
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k < data.samples] + [data.samples]
    pass_at = {k: bootstrap.pass_at(data.right[label], data.samples, k) for k in ks}
    metrics = {n: [r["metrics"][n] for r in runs if n in r["metrics"]] for n in DIAGNOSTICS}
    gain = bootstrap.difference(scores, data.scores["start"], draws)
    return MethodReport(
        accuracy=_round(bootstrap.mean(scores, draws)),
        gain=_round(gain),
        iqm=_round(bootstrap.interquartile_mean(scores, draws)),
        area=_round(_mean_area(curve_areas(data, label), data)),
        per_seed=[round(float(x), 4) for x in scores.mean(axis=1)],
        per_level={
            level: round(float(scores[:, [x == level for x in data.levels]].mean()), 4)
            for level in sorted(set(data.levels))
        },
        pass_at={k: _round(bootstrap.mean(matrix, draws)) for k, matrix in pass_at.items()},
        calls_per_task=fmean(run["test"]["tool_calls"] for run in runs),
        tokens_per_task=fmean(run["test"]["tokens"] for run in runs),
        spent=_average_costs(runs, data.config.price_hour),
        metrics={n: fmean(values) for n, values in metrics.items() if values},
        curve=learning_curve(data, label),
        profile=[_round(x) for x in bootstrap.profile(scores, THRESHOLDS, band)],
    )


def _average_costs(runs: Sequence[Summary], price_hour: float) -> dict[str, float]:
    """Average the costs that all summaries have; add those of the machine and the judge."""
    names = [n for n in runs[0]["spent"] if all(n in run["spent"] for run in runs)]
    costs = {n: fmean(run["spent"][n] for run in runs) for n in names}
    costs["verdicts"] = fmean(run.get("judge", {}).get("calls", 0) for run in runs)
    costs["cost"] += costs["seconds"] / 3600 * price_hour
    costs["cost"] += fmean(run.get("judge", {}).get("cost", 0) for run in runs)
    return {n: round(value, 4) for n, value in costs.items()}


def _report_pair(
    data: ComparisonData, ours: str, theirs: str, draws: Draws, comparisons: int
) -> PairReport:
    a, b = data.scores[ours], data.scores[theirs]
    plain = bootstrap.difference(a, b, draws)
    wide = bootstrap.difference(a, b, draws, 1 - 0.05 / comparisons)
    gap = curve_areas(data, ours) - curve_areas(data, theirs)
    return PairReport(
        ours=ours,
        theirs=theirs,
        accuracy=_round(plain),
        area=_round(_mean_area(gap, data)),
        improvement=_round(bootstrap.probability_of_improvement(a, b, draws)),
        separated=bool(wide.low > 0 or wide.high < 0),
        sentence=describe_pair(ours, theirs, plain, wide, len(data.seeds)),
    )


def describe_pair(ours: str, theirs: str, plain: Interval, wide: Interval, seeds: int) -> str:
    """Say in a sentence what the data show about two methods.

    Args:
        ours: label.
        theirs: label.
        plain: difference in accuracy, with its 95 % interval.
        wide: the same with an interval widened for the number of comparisons; it decides.
        seeds: of each method.
    """
    limit = " One seed each: this speaks of tasks, not of other seeds." if seeds == 1 else ""
    if wide.low > 0:
        return f"{ours} is more accurate than {theirs}: {plain.signed()}.{limit}"
    if wide.high < 0:
        return f"{ours} is less accurate than {theirs}: {plain.signed()}.{limit}"
    return (
        f"These data do not separate {ours} from {theirs}: {plain.signed()}; a difference within "
        f"{max(abs(wide.low), abs(wide.high)):.3f} either way remains possible.{limit}"
    )


def curve_areas(data: ComparisonData, label: str) -> Matrix:
    """(S, N) mean height of each validation task's learning curve up to the budget."""
    areas = []
    for run, start in zip(data.runs[label], data.start, strict=True):
        positions, scores = curve_points(run, start, data.budget.unit)
        areas.append(bootstrap.area_weights(positions, data.budget.amount) @ scores)
    return np.stack(areas)


def curve_points(run: Summary, start: Summary, unit: str) -> tuple[list[float], Matrix]:
    """Return positions (P,) and scores (P, N) of a run's learning curve, the start at 0 included.

    A task whose tools were unavailable counts as the mean of the others at its point.
    """
    rows = [decode_scores(start["validation"]["scores"])]
    rows += [decode_scores(point["scores"]) for point in run["curve"]]
    scores = np.array([[np.nan if x is None else x for x in row] for row in rows], dtype=float)
    filled = np.where(np.isnan(scores), np.nanmean(scores, axis=1, keepdims=True), scores)
    return [0.0, *(float(point[unit]) for point in run["curve"])], filled


def learning_curve(data: ComparisonData, label: str) -> LearningCurve:
    """Interpolate a method's learning curve at equal distances, with its band."""
    positions = np.linspace(0, data.budget.amount, CURVE_POINTS)
    pairs = zip(data.runs[label], data.start, strict=True)
    curves = [curve_points(run, start, data.budget.unit) for run, start in pairs]
    heights = np.stack([bootstrap.interpolate(*c, at=list(positions)) for c in curves], axis=1)
    draws = bootstrap.draw(len(curves), data.validation_levels, BAND_RESAMPLES)
    return LearningCurve(
        data.budget.unit,
        [float(f"{position:.6g}") for position in positions],
        [_round(bootstrap.mean(matrix, draws)) for matrix in heights],
    )


def reward_histories(data: ComparisonData) -> dict[str, list[RewardHistory]]:
    """Return the rewards of all runs, by label."""
    return {
        label: [
            RewardHistory(run["tokens"], run["rewards"], run.get("first_rewards")) for run in runs
        ]
        for label, runs in data.runs.items()
    }


def reward_kind(histories: Mapping[str, Sequence[RewardHistory]]) -> RewardKind:
    """Return the rewards to show: those that compare between methods if all runs have them."""
    series = [history.first_rewards for group in histories.values() for history in group]
    complete = all(rewards is not None and None not in rewards for rewards in series)
    return "first_rewards" if complete else "rewards"


def _mean_area(areas: Matrix, data: ComparisonData) -> Interval:
    """Average (S, N) areas of validation tasks; the draws are the same for all, so they pair."""
    return bootstrap.mean(areas, bootstrap.draw(len(areas), data.validation_levels))


def _list_provenance(data: ComparisonData) -> list[Provenance]:
    entries: list[Provenance] = [run["made"] for group in data.runs.values() for run in group]
    return [entry for index, entry in enumerate(entries) if entry not in entries[:index]]


def _round(interval: Interval) -> Interval:
    return Interval(*(round(number, 5) for number in interval))


def _to_json(value: Any) -> Any:  # noqa: ANN401 - any part of a report
    if isinstance(value, Interval):
        return value._asdict()
    if is_dataclass(value):
        return {f.name: _to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    return value


def _with_intervals(content: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return the content of a JSON object, with intervals under some of its names."""
    return {**content, **{name: Interval(**content[name]) for name in names}}
