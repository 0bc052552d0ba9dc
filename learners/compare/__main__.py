"""Compare methods at equal budget: several seeds, the same held-out tasks, intervals, costs.

Runs are ordinary runs of `learners.<method>`, started as child processes with one thread each; the
same command resumes. A run that has its summary under --results is not run again. The report lies
beside the summaries: report.md, report.json and the figures.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from learners.compare.config import Config, as_arguments, default_of, refuse
from learners.compare.plan import Trial
from learners.console import Console

METHOD = "learners.compare"


WIDTH = 150
"""Columns of the tables where no terminal says otherwise."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and compare; exits with 2 where a trial or a summary failed."""
    import tyro

    from learners.console import report_errors

    arguments = sys.argv[1:] if arguments is None else arguments
    description = (__doc__ or "").split("\n\n")[0]
    with report_errors(METHOD, arguments):
        default = default_of(arguments)
    config = tyro.cli(
        Config,
        args=arguments,
        default=default,
        prog=f"python -m {METHOD}",
        description=description,
    )
    with report_errors(METHOD, arguments, "comparison"):
        refuse(config)
        failed = compare(config)
    if failed:
        sys.exit(2)


def compare(config: Config) -> dict[str, str]:
    """Run what is missing, then report on what there is.

    Returns:
        Why trials failed, or their summaries were left alone, by their titles.

    Raises:
        The errors that `main` explains; what was done until then is kept.
    """
    from learners.compare.estimate import estimate
    from learners.compare.jobs import keep_tasks
    from learners.console import Console

    narrator = Console()
    if config.dry_run:
        narrator.say(estimate(config, narrator))
        return {}
    tasks = keep_tasks(config)
    failed: dict[str, str] = {}
    if not config.report_only:
        failed = run_missing(config, tasks, narrator)
    for title, why in failed.items():
        narrator.say(f"\n{title} failed: {why}")
    write_report(config, tasks, narrator)
    return failed


def run_missing(config: Config, tasks: dict[str, Any], narrator: Console) -> dict[str, str]:
    """Run the trials that have no summary: the start and the tuning first, then the seeds.

    Returns:
        Why trials failed, by their titles.
    """
    from learners.compare import plan
    from learners.compare.jobs import make_start, run_all
    from learners.compare.report import chosen_rates

    first = [*plan.start_trials(config), *plan.tuning_trials(config)]
    if unfinished(first) or unfinished(plan.final_trials(config, chosen_rates(config) or {})):
        make_start(start_command(config), config, plan.runs_folder(config), narrator.say)
    failed = run_all(first, tasks, config.jobs, narrator.say)
    rates = chosen_rates(config)
    if rates is not None:
        final = plan.final_trials(config, rates)
        failed |= run_all(final, tasks, config.jobs, narrator.say)
    return failed


def unfinished(trials: Sequence[Trial]) -> bool:
    """Whether a trial has no summary."""
    return any(not trial.summary.exists() for trial in trials)


def start_command(config: Config) -> tuple[str, ...]:
    """What makes the model that all runs begin with; empty where nothing says how."""
    if not config.start:
        return ()
    given = [*as_arguments(config.start), "--out", config.model]
    given += ["--data-dir", config.data_dir] if config.data_dir is not None else []
    return (sys.executable, "-m", "learners.sft", *given)


def write_report(config: Config, tasks: dict[str, Any], narrator: Console) -> None:
    """Write report.md, report.json and the figures beside the summaries; print the tables."""
    from rich.markdown import Markdown

    from learners.compare.figures import draw_all
    from learners.compare.report import build_report, collect
    from learners.compare.tables import markdown
    from learners.run_folder import write_text

    folder = Path(config.results) / config.name
    material = collect(config, tasks)
    if material is None:
        narrator.say("No seed has been run by a method and by the start: nothing to report yet.")
        return
    found = build_report(material)
    draw_all(found, material.runs, folder)
    text = markdown(found, figures=".")
    write_text(folder / "report.json", json.dumps(found, indent=1) + "\n")
    write_text(folder / "report.md", text)
    narrator.set_plain_width(WIDTH)
    narrator.say(Markdown(markdown(found)))
    narrator.say(f"files: {folder}/report.md, report.json, *.png, *.svg, a summary per run")


if __name__ == "__main__":
    main()
