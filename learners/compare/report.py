"""What a comparison found: numbers with intervals, and a sentence for each pair of methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from learners.compare import bootstrap as statistics
from learners.compare.bootstrap import Draws, Matrix
from learners.compare.config import (
    Config,
    TrainingBudget,
    parse_budget,
    parse_methods,
    reference_label,
)
from learners.compare.plan import Trial, final_trials, start_trials, tuning_trials
from learners.compare.summary import decoded, read_summary
from learners.errors import UsageError
from learners.intervals import Interval

PLACES = 41
"""Points of a drawn curve."""


BAND = 1000
"""Resamples of a band in a figure."""


THRESHOLDS = tuple(i / 50 for i in range(51))


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
"""Means over a run's iterations that tell why a method is where it is."""


def build_report(material: Material) -> dict[str, Any]:
    """All numbers of a comparison, as report.json holds them."""
    config, scores = material.config, material.scores
    draws = statistics.draw(len(material.seeds), material.levels)
    against = reference_label(config)
    if against not in material.runs:
        against = next(iter(material.runs))
    rivals = [label for label in material.runs if label != against]
    band = statistics.draw(len(material.seeds), material.levels, BAND)
    found: dict[str, Any] = {
        "name": config.name,
        "env": config.env,
        "level": config.level,
        "budget": str(material.limit),
        "seeds": material.seeds,
        "tasks": len(material.levels),
        "samples": material.samples,
        "levels": {x: material.levels.count(x) for x in sorted(set(material.levels))},
        "rates": material.rates,
        "weights": material.start[0]["weights"],
        "made": _made(material),
        "missing": material.missing,
        "rewards": told_rewards(material.runs),
        "start": {"accuracy": _shown(statistics.mean(scores["start"], draws))},
        "methods": {label: _method(material, label, draws, band) for label in material.runs},
        "against": against,
        "pairs": [_pair(material, against, rival, draws, len(rivals)) for rival in rivals],
    }
    return found


def _method(material: Material, label: str, draws: Draws, band: Draws) -> dict[str, Any]:
    runs, scores = material.runs[label], material.scores[label]
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k < material.samples] + [material.samples]
    at = {k: statistics.pass_at(material.right[label], material.samples, k) for k in ks}
    names = [n for n in runs[0]["spent"] if all(n in run["spent"] for run in runs)]
    costs = {n: fmean(run["spent"][n] for run in runs) for n in names}
    costs["verdicts"] = fmean(run.get("judge", {}).get("calls", 0) for run in runs)
    costs["cost"] += costs["seconds"] / 3600 * material.config.price_hour
    costs["cost"] += fmean(run.get("judge", {}).get("cost", 0) for run in runs)
    known = {n: [r["metrics"][n] for r in runs if n in r["metrics"]] for n in DIAGNOSTICS}
    gain = statistics.difference(scores, material.scores["start"], draws)
    return {
        "accuracy": _shown(statistics.mean(scores, draws)),
        "gain": _shown(gain),
        "iqm": _shown(statistics.interquartile_mean(scores, draws)),
        "area": _shown(_mean_of_curves(areas(material, label), material)),
        "per_seed": [round(float(x), 4) for x in scores.mean(axis=1)],
        "per_level": {
            level: round(float(scores[:, [x == level for x in material.levels]].mean()), 4)
            for level in sorted(set(material.levels))
        },
        "pass_at": {str(k): _shown(statistics.mean(matrix, draws)) for k, matrix in at.items()},
        "calls_per_task": fmean(run["test"]["tool_calls"] for run in runs),
        "tokens_per_task": fmean(run["test"]["tokens"] for run in runs),
        "spent": {n: round(value, 4) for n, value in costs.items()},
        "metrics": {n: fmean(values) for n, values in known.items() if values},
        "curve": curve(material, label),
        "profile": [_shown(x) for x in statistics.profile(scores, THRESHOLDS, band)],
    }


def _pair(
    material: Material, ours: str, theirs: str, draws: Draws, comparisons: int
) -> dict[str, Any]:
    a, b = material.scores[ours], material.scores[theirs]
    plain = statistics.difference(a, b, draws)
    wide = statistics.difference(a, b, draws, 1 - 0.05 / comparisons)
    gap = areas(material, ours) - areas(material, theirs)
    found = {
        "ours": ours,
        "theirs": theirs,
        "accuracy": _shown(plain),
        "area": _shown(_mean_of_curves(gap, material)),
        "improvement": _shown(statistics.probability_of_improvement(a, b, draws)),
        "separated": bool(wide.low > 0 or wide.high < 0),
    }
    return found | {"sentence": sentence(ours, theirs, plain, wide, len(material.seeds))}


def sentence(ours: str, theirs: str, plain: Interval, wide: Interval, seeds: int) -> str:
    """What the data say about two methods, in words.

    Args:
        ours: label.
        theirs: label.
        plain: difference in accuracy, 95 %.
        wide: the same, widened for the number of comparisons; it decides.
        seeds: of each method.
    """
    told = f"{plain.value:+.3f} [{plain.low:+.3f}, {plain.high:+.3f}]"
    limit = " One seed each: this speaks of tasks, not of other seeds." if seeds == 1 else ""
    if wide.low > 0:
        return f"{ours} is more accurate than {theirs}: {told}.{limit}"
    if wide.high < 0:
        return f"{ours} is less accurate than {theirs}: {told}.{limit}"
    return (
        f"These data do not separate {ours} from {theirs}: {told}; a difference within "
        f"{max(abs(wide.low), abs(wide.high)):.3f} either way remains possible.{limit}"
    )


def areas(material: Material, label: str) -> Matrix:
    """(S, N) mean height of each validation task's learning curve up to the budget."""
    rows = []
    for run, start in zip(material.runs[label], material.start, strict=True):
        places, scores = points(run, start, material.limit.unit)
        rows.append(statistics.area_weights(places, material.limit.amount) @ scores)
    return np.stack(rows)


def points(run: Summary, start: Summary, unit: str) -> tuple[list[float], Matrix]:
    """Places and (P, N) scores of a run's learning curve, the start at 0 included.

    A task whose tools were unavailable counts as the others of its point did on average.
    """
    heights = [decoded(start["validation"]["scores"])]
    heights += [decoded(point["scores"]) for point in run["curve"]]
    scores = np.array([[np.nan if x is None else x for x in row] for row in heights], dtype=float)
    filled = np.where(np.isnan(scores), np.nanmean(scores, axis=1, keepdims=True), scores)
    return [0.0, *(float(point[unit]) for point in run["curve"])], filled


def curve(material: Material, label: str) -> dict[str, Any]:
    """The learning curve at equal places, its band over seeds and tasks."""
    places = np.linspace(0, material.limit.amount, PLACES)
    both = zip(material.runs[label], material.start, strict=True)
    found = [points(run, start, material.limit.unit) for run, start in both]
    drawn = np.stack([statistics.heights(*one, at=list(places)) for one in found], axis=1)
    draws = statistics.draw(len(found), material.validation_levels, BAND)
    return {
        "unit": material.limit.unit,
        "places": [float(f"{place:.6g}") for place in places],
        "heights": [_shown(statistics.mean(matrix, draws)) for matrix in drawn],
    }


def _mean_of_curves(matrix: Matrix, material: Material) -> Interval:
    """The mean of (S, N) areas of validation tasks; equal draws for all, which pairs them."""
    return statistics.mean(matrix, statistics.draw(len(matrix), material.validation_levels))


def _made(material: Material) -> list[dict[str, Any]]:
    """By what and where the runs were made, each way once."""
    every = [run["made"] for group in material.runs.values() for run in group]
    return [made for index, made in enumerate(every) if made not in every[:index]]


def _shown(value: Interval) -> dict[str, float]:
    return {name: round(number, 5) for name, number in value._asdict().items()}


Summary = Mapping[str, Any]


FIRST_REWARDS = "first_rewards"
"""Rewards in a summary that compare between methods; `rewards` do not."""


@dataclass(frozen=True)
class Material:
    """The summaries that can be compared, seed by seed."""

    config: Config
    limit: TrainingBudget
    levels: list[str]
    """(N,) of the test tasks that count."""
    validation_levels: list[str]
    """Of the validation tasks, in the order of the curves' scores."""
    seeds: list[int]
    """Of which every method and the start have a summary."""
    runs: Mapping[str, Sequence[Summary]]
    """By label, in the order of `seeds`."""
    start: Sequence[Summary]
    scores: dict[str, Matrix]
    """(S, N) mean score of each task at the end, by label and for `start`."""
    right: dict[str, Matrix]
    """(S, N) right answers among the samples."""
    samples: int
    missing: list[str]
    """Titles of what has no summary."""
    rates: dict[str, float]
    """Learning rates that were chosen, by label."""


def chosen_rates(config: Config) -> dict[str, float] | None:
    """By label the rate with the best last point of its curve; None while trials are missing.

    Ties go to the smaller rate. Without rates to choose from there is nothing to choose.
    """
    marks: dict[str, dict[float, list[float]]] = {}
    for trial in tuning_trials(config):
        summary = read_summary(trial.summary)
        if summary is None or trial.rate is None:
            return None
        last = [s for s in decoded(summary["curve"][-1]["scores"]) if s is not None]
        tried = marks.setdefault(trial.method.label, {})
        tried.setdefault(trial.rate, []).append(fmean(last) if last else 0.0)
    return {
        label: max(sorted(tried), key=lambda rate: fmean(tried[rate]))
        for label, tried in marks.items()
    }


def collect(config: Config, tasks: Mapping[str, Any]) -> Material | None:
    """What there is to compare; None where not one seed has all methods.

    Methods of which nothing was run are left out and listed as missing.

    Raises:
        UsageError: the runs did not all begin with the same weights.
    """
    rates = chosen_rates(config)
    missing = [t.title for t in tuning_trials(config) if read_summary(t.summary) is None]
    trials = [*start_trials(config), *(final_trials(config, rates) if rates is not None else [])]
    found = [(trial, read_summary(trial.summary)) for trial in trials]
    missing += [trial.title for trial, summary in found if summary is None]
    if rates is None:
        every = len(parse_methods(config)) * config.seeds
        missing.append(f"{every} runs that wait for the choice of learning rates")
    have = [(trial, summary) for trial, summary in found if summary is not None]
    _refuse_unjudged(have)
    _refuse_other_weights(have)
    labels = [m.label for m in parse_methods(config) if any(t.method == m for t, _ in have)]
    by_seed = {(t.method.label, t.seed): s for t, s in have}
    needed = [*labels, "start"]
    seeds = [s for s in range(config.seeds) if all((label, s) in by_seed for label in needed)]
    if not seeds or not labels:
        return None
    groups = {label: [by_seed[label, seed] for seed in seeds] for label in needed}
    samples = min(s["test"]["samples"] for group in groups.values() for s in group)
    scores = {k: _matrix(group, "scores") / samples for k, group in groups.items()}
    right = {k: _matrix(group, "right") for k, group in groups.items()}
    kept = ~np.isnan(np.concatenate(list(scores.values()))).any(axis=0)
    return Material(
        config,
        parse_budget(config),
        [x for x, keep in zip(tasks["test"]["levels"], kept, strict=True) if keep],
        tasks["validation"]["levels"],
        seeds,
        {label: groups[label] for label in labels},
        groups["start"],
        {label: matrix[:, kept] for label, matrix in scores.items()},
        {label: matrix[:, kept] for label, matrix in right.items()},
        samples,
        missing,
        rates or {},
    )


def told_rewards(runs: Mapping[str, Sequence[Summary]]) -> str:
    """Which rewards all runs tell: those that compare where each has them, else `rewards`."""
    told = [run.get(FIRST_REWARDS, [None]) for group in runs.values() for run in group]
    return FIRST_REWARDS if all(None not in rewards for rewards in told) else "rewards"


def _refuse_unjudged(have: Sequence[tuple[Trial, Summary]]) -> None:
    unjudged = sum(summary.get("test", {}).get("not_judged", 0) for _, summary in have)
    if unjudged:
        raise UsageError(
            f"{unjudged} answers can only be graded by a judge: name one with --settings "
            "judge_base=... judge_model=..., or compare on an environment with an exact score"
        )


def _refuse_other_weights(have: Sequence[tuple[Trial, Summary]]) -> None:
    weights = {summary["weights"] for _, summary in have}
    if len(weights) > 1:
        named = ", ".join(sorted(weights))
        raise UsageError(
            f"the runs began with different weights ({named}), which nothing can compare: delete "
            "the summaries of one kind, or give --name another name"
        )


def _matrix(group: Sequence[Summary], name: str) -> Matrix:
    rows = [decoded(summary["test"][name]) for summary in group]
    return np.array([[np.nan if x is None else x for x in row] for row in rows], dtype=float)
