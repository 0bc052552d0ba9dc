"""Collects the summaries that can be compared, seed by seed, and what has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from learners.compare.bootstrap import Matrix
from learners.compare.config import Config, TrainingBudget, parse_budget, parse_methods
from learners.compare.plan import Trial, final_trials, start_trials, tuning_trials
from learners.compare.summary import Summary, Tasks, decode_scores, read_summary
from learners.errors import UsageError


@dataclass(frozen=True)
class ComparisonData:
    """Summaries that can be compared, seed by seed, and their scores as matrices."""

    config: Config
    budget: TrainingBudget
    levels: list[str]
    """(N,) levels of the test tasks that all runs could play."""
    validation_levels: list[str]
    """Levels of the validation tasks, in the order of the learning curves' scores."""
    seeds: list[int]
    """(S,) seeds for which every method and the start have a summary."""
    runs: Mapping[str, Sequence[Summary]]
    """Summaries by label, in the order of `seeds`."""
    start: Sequence[Summary]
    """Summaries of the model that all runs start from, in the order of `seeds`."""
    scores: dict[str, Matrix]
    """(S, N) final mean score of each task, by label and for `start`."""
    right: dict[str, Matrix]
    """(S, N) number of right answers among the samples, by label and for `start`."""
    samples: int
    """Samples of each test task."""
    missing: list[str]
    """Titles of trials without a summary."""
    rates: dict[str, float]
    """Learning rates that were chosen, by label."""


def collect(config: Config, tasks: Tasks) -> ComparisonData | None:
    """Read what can be compared; None if there is no seed that all methods have run.

    A method without any run is left out and listed as missing.

    Raises:
        UsageError: the runs did not start from the same weights, or answers are not judged.
    """
    rates = chosen_rates(config)
    missing = [t.title for t in tuning_trials(config) if read_summary(t.summary) is None]
    trials = [*start_trials(config), *(final_trials(config, rates) if rates is not None else [])]
    summaries = [(trial, read_summary(trial.summary)) for trial in trials]
    missing += [trial.title for trial, summary in summaries if summary is None]
    if rates is None:
        waiting = len(parse_methods(config)) * config.seeds
        missing.append(f"{waiting} runs that wait for the choice of learning rates")
    done = [(trial, summary) for trial, summary in summaries if summary is not None]
    _refuse_unjudged(done)
    _refuse_different_weights(done)
    labels = [m.label for m in parse_methods(config) if any(t.method == m for t, _ in done)]
    by_seed = {(t.method.label, t.seed): s for t, s in done}
    needed = [*labels, "start"]
    seeds = [s for s in range(config.seeds) if all((label, s) in by_seed for label in needed)]
    if not seeds or not labels:
        return None
    groups = {label: [by_seed[label, seed] for seed in seeds] for label in needed}
    samples = min(s["test"]["samples"] for group in groups.values() for s in group)
    scores = {k: _stack_scores(group, "scores") / samples for k, group in groups.items()}
    right = {k: _stack_scores(group, "right") for k, group in groups.items()}
    complete = ~np.isnan(np.concatenate(list(scores.values()))).any(axis=0)
    return ComparisonData(
        config,
        parse_budget(config),
        [x for x, keep in zip(tasks["test"]["levels"], complete, strict=True) if keep],
        tasks["validation"]["levels"],
        seeds,
        {label: groups[label] for label in labels},
        groups["start"],
        {label: matrix[:, complete] for label, matrix in scores.items()},
        {label: matrix[:, complete] for label, matrix in right.items()},
        samples,
        missing,
        rates or {},
    )


def chosen_rates(config: Config) -> dict[str, float] | None:
    """Return by label the learning rate with the best last point of its curve.

    Ties go to the smaller rate. Empty if there are no rates to choose from; None while a trial has
    not been run.
    """
    last_points: dict[str, dict[float, list[float]]] = {}
    for trial in tuning_trials(config):
        summary = read_summary(trial.summary)
        if summary is None or trial.rate is None:
            return None
        last = [s for s in decode_scores(summary["curve"][-1]["scores"]) if s is not None]
        by_rate = last_points.setdefault(trial.method.label, {})
        by_rate.setdefault(trial.rate, []).append(fmean(last) if last else 0.0)
    return {
        label: max(sorted(by_rate), key=lambda rate: fmean(by_rate[rate]))
        for label, by_rate in last_points.items()
    }


def _refuse_unjudged(done: Sequence[tuple[Trial, Summary]]) -> None:
    unjudged = sum(summary.get("test", {}).get("not_judged", 0) for _, summary in done)
    if unjudged:
        raise UsageError(
            f"{unjudged} answers can only be graded by a judge: name one with --settings "
            "judge_base=... judge_model=..., or compare on an environment with an exact score"
        )


def _refuse_different_weights(done: Sequence[tuple[Trial, Summary]]) -> None:
    weights = {summary["weights"] for _, summary in done}
    if len(weights) > 1:
        raise UsageError(
            f"the runs started from different weights ({', '.join(sorted(weights))}), so they "
            "cannot be compared: delete the summaries of one kind, or give --name another name"
        )


def _stack_scores(group: Sequence[Summary], name: str) -> Matrix:
    """(S, N) scores of the test tasks; NaN for a task whose tools were unavailable."""
    rows = [decode_scores(summary["test"][name]) for summary in group]
    return np.array([[np.nan if x is None else x for x in row] for row in rows], dtype=float)
