"""What a comparison will take, before it is run: at the pace of what ran, or of one iteration."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from learners.compare import plan
from learners.compare.config import Config, budget, methods
from learners.compare.jobs import TOLD, TrialFailed, start_is_there
from learners.compare.plan import Trial
from learners.compare.report import chosen_rates
from learners.compare.summary import read_summary, totals
from learners.console import Console
from learners.ledger import JUDGE
from learners.run_folder import read_metrics

EPISODE = "response/sampled_tokens"


Timing = Mapping[str, float]
"""What a run spent, by unit, and `episode`: tokens sampled in one."""


def estimate(config: Config, narrator: Console) -> str:
    """What is missing, how long it takes and what it costs, in words.

    Evaluations are put at the pace of training, updates included, which is slower than theirs.

    Raises:
        TrialFailed: nothing was timed before, and one iteration cannot be played.
    """
    final = plan.final_trials(config, chosen_rates(config) or {})
    every = [*plan.start_trials(config), *plan.tuning_trials(config), *final]
    missing = [trial for trial in every if not trial.summary.exists()]
    runs = [trial for trial in missing if trial.train]
    opening = (
        f"{len(methods(config))} methods x {config.seeds} seeds, each to {budget(config)}: "
        f"{len(every)} trials with tuning and the start, {len(missing)} not run yet"
    )
    if not missing:
        return f"{opening}\nnothing is left to run"
    known = [t for t in map(timing, every) if t is not None]
    source = f"{len(known)} runs of this comparison"
    if not known and not start_is_there(config):
        return (
            f"{opening}\nhow long that takes is timed on {config.model}, which is not there: the "
            "command without --dry-run makes it where --start says how, or learners.sft does"
        )
    if not known:
        source = f"one iteration of {final[0].method.label}"
        with narrator.status(f"timing {source}"):
            known = [probe(final[0])]
    seconds = sum(t["seconds"] for t in known)
    training = (
        len(runs) * budget(config).amount * seconds / sum(t[budget(config).unit] for t in known)
    )
    episodes = sum(_episodes(config, trial, known) for trial in missing)
    tokens = episodes * fmean(t["episode"] for t in known)
    judging = tokens * seconds / sum(t["tokens"] for t in known)
    calls = (training + judging) * sum(t["calls"] for t in known) / seconds
    return "\n".join(
        [
            opening,
            f"training {len(runs)} runs: {_time(training)}; {episodes:,.0f} episodes of "
            f"evaluation: {_time(judging)}; {config.jobs} at a time: about "
            f"{_time((training + judging) / config.jobs)}",
            f"about {calls:,.0f} tool calls",
            _cost(config, final, (training + judging) / 3600, calls, episodes),
            f"at the pace of {source}",
        ]
    )


def timing(trial: Trial) -> Timing | None:
    """What a run spent that is done or under way; None where nothing was timed."""
    summary = read_summary(trial.summary)
    if summary is not None:
        return summary["spent"] | {"episode": summary["metrics"][EPISODE]} if trial.train else None
    lines = read_metrics(trial.folder) if trial.train and trial.folder.is_dir() else []
    if not lines:
        return None
    return totals(lines) | {"episode": fmean(line.get(EPISODE, 0.0) for line in lines)}


def probe(trial: Trial) -> Timing:
    """One iteration of a run, in a folder that is thrown away.

    Raises:
        TrialFailed: it ended with an error.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = trial._replace(folder=Path(folder) / "run", summary=Path(folder) / "none.json")
        short = ("--iterations", "1", "--eval-every", "0")
        command = [*trial.train[:-1], str(place.folder), *short]
        done = subprocess.run(command, capture_output=True, text=True)
        found = timing(place)
    if done.returncode or found is None:
        last = (done.stdout + done.stderr).rstrip().splitlines()[-TOLD:]
        raise TrialFailed("\n".join([f"ended with {done.returncode}: {' '.join(command)}", *last]))
    return found


def _episodes(config: Config, trial: Trial, known: Sequence[Timing]) -> float:
    """Episodes that evaluate a trial."""
    at_end = config.eval_tasks * config.samples if trial.role != "tuning" else 0
    if trial.role == "start":
        return at_end + config.validation_tasks
    per_iteration = sum(t[budget(config).unit] for t in known) / sum(t["iterations"] for t in known)
    points = budget(config).amount / per_iteration / config.eval_every + 1
    return at_end + points * config.validation_tasks


def _cost(
    config: Config, runs: Sequence[Trial], hours: float, calls: float, episodes: float
) -> str:
    """Money, where prices are given: calls at the dearest price, a verdict an evaluated episode."""
    told = dict(runs[0].changed.get("prices", []))
    verdict, prices = told.pop(JUDGE, 0.0), list(told.values())
    if not prices and not verdict and not config.price_hour:
        return "no prices are given: --price-hour for a job, prices=... in --settings for tools"
    total = hours * config.price_hour + calls * max(prices, default=0.0) + episodes * verdict
    return f"at most about {total:,.2f}, by the prices given"


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.1f} min"
