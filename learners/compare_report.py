"""What a comparison found: numbers with intervals, and a sentence for each pair of methods."""

from statistics import fmean
from typing import Any

import numpy as np

from learners import compare_statistics as statistics
from learners.compare_config import reference
from learners.compare_material import Material, Summary, told_rewards
from learners.compare_statistics import Draws, Matrix
from learners.compare_summary import decoded
from learners.evaluation import Interval

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


def report(material: Material) -> dict[str, Any]:
    """All numbers of a comparison, as report.json holds them."""
    config, scores = material.config, material.scores
    draws = statistics.draw(len(material.seeds), material.levels)
    against = reference(config)
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
