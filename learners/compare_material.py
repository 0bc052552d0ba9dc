"""What there is to compare: summaries of the same seeds and tasks, from the same weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from learners.compare_config import Budget, Config, budget, methods
from learners.compare_plan import Trial, final_trials, start_trials, tuning_trials
from learners.compare_statistics import Matrix
from learners.compare_summary import decoded, read_summary
from learners.run_config import UsageError

Summary = Mapping[str, Any]
FIRST_REWARDS = "first_rewards"
"""Rewards in a summary that compare between methods; `rewards` do not."""


@dataclass(frozen=True)
class Material:
    """The summaries that can be compared, seed by seed."""

    config: Config
    limit: Budget
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
        every = len(methods(config)) * config.seeds
        missing.append(f"{every} runs that wait for the choice of learning rates")
    have = [(trial, summary) for trial, summary in found if summary is not None]
    _refuse_unjudged(have)
    _refuse_other_weights(have)
    labels = [m.label for m in methods(config) if any(t.method == m for t, _ in have)]
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
        budget(config),
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
