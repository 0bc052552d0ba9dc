"""Estimates time and cost of a comparison, from runs that were timed or from one iteration."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from learners.compare import plan
from learners.compare.collect import chosen_rates
from learners.compare.config import Config, parse_budget, parse_methods
from learners.compare.jobs import LOG_TAIL, TrialFailed, check_run, start_exists
from learners.compare.plan import Trial
from learners.compare.summary import read_summary, sum_costs
from learners.console import Console
from learners.ledger import JUDGE
from learners.run_folder import read_metrics

EPISODE = "response/sampled_tokens"

Timing = Mapping[str, float]
"""Costs of a run by unit, and under `episode` the mean tokens sampled in one episode."""


def estimate(config: Config, console: Console) -> str:
    """Describe what has not been run, how long it takes and what it costs.

    Evaluations are assumed to be as slow as training, which includes updates; they are faster.

    Raises:
        TrialFailed: no run was timed before, and one iteration could not be run.
    """
    final = plan.final_trials(config, chosen_rates(config) or {})
    trials = [*plan.start_trials(config), *plan.tuning_trials(config), *final]
    missing = [trial for trial in trials if not trial.summary.exists()]
    runs = [trial for trial in missing if trial.train]
    budget = parse_budget(config)
    opening = (
        f"{len(parse_methods(config))} methods x {config.seeds} seeds, each to {budget}: "
        f"{len(trials)} trials with tuning and the start, {len(missing)} not run yet"
    )
    if not missing:
        return f"{opening}\nnothing is left to run"
    timings = [timing for timing in map(read_timing, trials) if timing is not None]
    source = f"{len(timings)} runs of this comparison"
    if not timings and not start_exists(config):
        return (
            f"{opening}\nhow long that takes is timed on {config.model}, which does not exist: "
            "run the command without --dry-run if --start is given, else make it with learners.sft"
        )
    if not timings:
        source = f"one iteration of {final[0].method.label}"
        with console.status(f"timing {source}"):
            timings = [time_iteration(final[0])]
    seconds = sum(t["seconds"] for t in timings)
    training = len(runs) * budget.amount * seconds / sum(t[budget.unit] for t in timings)
    episodes = sum(_count_episodes(config, trial, timings) for trial in missing)
    tokens = episodes * fmean(t["episode"] for t in timings)
    evaluating = tokens * seconds / sum(t["tokens"] for t in timings)
    calls = (training + evaluating) * sum(t["calls"] for t in timings) / seconds
    return "\n".join(
        [
            opening,
            f"training {len(runs)} runs: {_format_time(training)}; {episodes:,.0f} episodes of "
            f"evaluation: {_format_time(evaluating)}; {config.jobs} at a time: about "
            f"{_format_time((training + evaluating) / config.jobs)}",
            f"about {calls:,.0f} tool calls",
            _describe_cost(config, final, (training + evaluating) / 3600, calls, episodes),
            f"at the pace of {source}",
        ]
    )


def read_timing(trial: Trial) -> Timing | None:
    """Return the costs of a run that is done or under way; None if it has not begun."""
    summary = read_summary(trial.summary)
    if summary is not None:
        return summary["spent"] | {"episode": summary["metrics"][EPISODE]} if trial.train else None
    lines = read_metrics(trial.folder) if trial.train and trial.folder.is_dir() else []
    if not lines:
        return None
    return sum_costs(lines) | {"episode": fmean(line.get(EPISODE, 0.0) for line in lines)}


def time_iteration(trial: Trial) -> Timing:
    """Run one iteration of a trial in a temporary folder.

    Raises:
        TrialFailed: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        short = trial._replace(folder=Path(folder) / "run", summary=Path(folder) / "none.json")
        options = ("--iterations", "1", "--eval-every", "0")
        command = [*trial.train[:-1], str(short.folder), *options]
        done = subprocess.run(command, capture_output=True, text=True)
        if not done.returncode:
            check_run(short)
        timing = read_timing(short)
    if done.returncode or timing is None:
        tail = (done.stdout + done.stderr).rstrip().splitlines()[-LOG_TAIL:]
        raise TrialFailed("\n".join([f"ended with {done.returncode}: {' '.join(command)}", *tail]))
    return timing


def _count_episodes(config: Config, trial: Trial, timings: Sequence[Timing]) -> float:
    """Estimate the episodes of a trial's evaluations."""
    final = config.eval_tasks * config.samples if trial.role != "tuning" else 0
    if trial.role == "start":
        return final + config.validation_tasks
    budget = parse_budget(config)
    per_iteration = sum(t[budget.unit] for t in timings) / sum(t["iterations"] for t in timings)
    points = budget.amount / per_iteration / config.eval_every + 1
    return final + points * config.validation_tasks


def _describe_cost(
    config: Config, runs: Sequence[Trial], hours: float, calls: float, episodes: float
) -> str:
    """Bound the cost if there are prices: all calls at the highest, a verdict per episode."""
    prices = dict(runs[0].changed.get("prices", []))
    verdict, calls_at = prices.pop(JUDGE, 0.0), max(prices.values(), default=0.0)
    if not prices and not verdict and not config.price_hour:
        return "no prices are given: --price-hour for a job, prices=... in --settings for tools"
    total = hours * config.price_hour + calls * calls_at + episodes * verdict
    return f"at most about {total:,.2f}, by the prices given"


def _format_time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.1f} min"
