"""Compare methods at equal budget: several seeds, the same held-out tasks, intervals, costs.

Runs are ordinary runs of `python -m learners.<method>`, in child processes of one thread each. The
same command resumes. A run that has its summary under --results is not run again. The report is
next to the summaries: report.md, report.json and the figures.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.markdown import Markdown

from learners.compare import plan
from learners.compare.collect import chosen_rates, collect
from learners.compare.config import Config, default_config, to_arguments
from learners.compare.estimate import estimate
from learners.compare.figures import draw_all
from learners.compare.jobs import make_start, run_all, store_tasks
from learners.compare.report import build_report, reward_histories
from learners.compare.summary import Tasks
from learners.compare.tables import format_report
from learners.console import Console, parse_options, report_errors
from learners.run_folder import write_text

METHOD = "learners.compare"

WIDTH = 150
"""Columns of the tables if the output is not a terminal."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and compare; exits with 2 if a trial failed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with report_errors(METHOD, arguments):
        default = default_config(arguments)
    config = parse_options(METHOD, default, arguments, __doc__)
    with report_errors(METHOD, arguments, "comparison"):
        config.validate()
        failures = compare(config)
    if failures:
        sys.exit(2)


def compare(config: Config) -> dict[str, str]:
    """Run what has no summary yet, then report on all that have one.

    Returns:
        Reasons of the trials that failed, by title.

    Raises:
        The errors that `main` explains; what was done until then stays.
    """
    console = Console()
    if config.dry_run:
        console.say(estimate(config, console))
        return {}
    tasks = store_tasks(config)
    failures = {} if config.report_only else run_missing(config, tasks, console)
    for title, reason in failures.items():
        console.say(f"\n{title} failed: {reason}")
    write_report(config, tasks, console)
    return failures


def run_missing(config: Config, tasks: Tasks, console: Console) -> dict[str, str]:
    """Run the trials that have no summary: the start and the tuning first, then the seeds.

    Returns:
        Reasons of the trials that failed, by title.
    """
    first = [*plan.start_trials(config), *plan.tuning_trials(config)]
    every = [*first, *plan.final_trials(config, chosen_rates(config) or {})]
    if not all(trial.summary.exists() for trial in every):
        make_start(start_command(config), config, plan.runs_folder(config), console.say)
    failures = run_all(first, tasks, config.jobs, console.say)
    rates = chosen_rates(config)
    if rates is not None:
        final = plan.final_trials(config, rates)
        failures |= run_all(final, tasks, config.jobs, console.say)
    return failures


def start_command(config: Config) -> tuple[str, ...]:
    """Return the command that makes the model all runs start from; empty without --start."""
    if not config.start:
        return ()
    arguments = [*to_arguments(config.start), "--out", config.model]
    arguments += ["--data-dir", config.data_dir] if config.data_dir is not None else []
    return (sys.executable, "-m", "learners.sft", *arguments)


def write_report(config: Config, tasks: Tasks, console: Console) -> None:
    """Write report.md, report.json and the figures next to the summaries; print the tables."""
    folder = Path(config.results) / config.name
    data = collect(config, tasks)
    if data is None:
        console.say("No seed has been run by a method and by the start: nothing to report yet.")
        return
    report = build_report(data)
    draw_all(report, reward_histories(data), folder)
    write_text(folder / "report.json", json.dumps(report.to_json(), indent=1) + "\n")
    write_text(folder / "report.md", format_report(report, figures="."))
    console.set_plain_width(WIDTH)
    console.say(Markdown(format_report(report)))
    console.say(f"files: {folder}/report.md, report.json, *.png, *.svg, a summary per run")


if __name__ == "__main__":
    main()
