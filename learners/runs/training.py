"""The command line of every method: train, show progress, report errors."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks import Task
from learners.config import RunConfig, Scale
from learners.console import Console, parse_options, report_errors
from learners.errors import RunFolderError
from learners.run_folder import (
    is_disk_full,
    lock_folder,
    open_folder,
    read_metrics,
    record_machine,
    write_text,
)
from learners.runs.environments import check_tool_failures, make_training_env
from learners.runs.evaluation import should_stop, validate_if_due
from learners.runs.report import print_report
from learners.runs.run import Run
from learners.runs.session import (
    Session,
    default_folder,
    evaluate_once,
    open_ledger,
    open_session,
    run_iteration,
    save_iteration,
)
from learners.runs.trackers import open_trackers


def main(method: str, arguments: Sequence[str] | None = None) -> None:
    """Parse the command line of `python -m <method>` and train."""
    arguments = sys.argv[1:] if arguments is None else arguments
    module = importlib.import_module(method)
    scale = _read_scale(arguments)
    with report_errors(method, arguments, "run"):
        config = parse_options(method, module.Config.at(scale), arguments, module.__doc__)
        train(method, config)


def _read_scale(arguments: Sequence[str]) -> Scale:
    """Read --scale before the other options are parsed: it decides their defaults."""
    values = [b for a, b in pairwise(arguments) if a == "--scale"]
    values += [a.split("=", 1)[1] for a in arguments if a.startswith("--scale=")]
    if values and values[-1] in ("paper", "laptop"):
        return values[-1]  # type: ignore[return-value]
    if "--help" in arguments or "-h" in arguments:
        return "laptop"  # the help text is the same on every machine
    return "paper" if torch.cuda.is_available() else "laptop"


def train(method: str, config: RunConfig) -> Path:
    """Train until the run should stop; return the run's folder.

    Raises:
        UsageError, RunFolderError, RunStopped, ModelNotFound, DataUnavailable, ToolUnavailable,
        ReplayMiss, gymnasium.error.Error: see their messages.
    """
    env = make_training_env(config)
    folder = Path(config.training.out or default_folder(method, config))
    console = Console()
    with lock_folder(folder), closing(env):
        newest = open_folder(folder, method, config)
        history = [m for m in read_metrics(folder) if m["iteration"] < (newest or 0)]
        ledger = open_ledger(config, folder, history)
        session = open_session(config, env, folder, newest, ledger)
        console.say(describe_run(method, session, newest))
        if changes := record_machine(folder, session.iteration):
            console.say(changes)
        _run_iterations(session, importlib.import_module(method).iteration, history, console)
        print_report(folder, console)
    return folder


def _run_iterations(
    session: Session,
    iteration: Callable[[list[Task], Run, Any], None],
    history: list[dict[str, Any]],
    console: Console,
) -> None:
    """Evaluate, run iterations until the run should stop, and evaluate again.

    Args:
        session: before its next iteration.
        iteration: the method's.
        history: metrics of the iterations done; the new ones are appended.
        console: shows the progress.
    """
    run, folder, config = session.run, session.folder, session.config
    total = config.training.iterations
    try:
        # Lines after the newest checkpoint belong to iterations that are done again.
        write_text(folder / "metrics.jsonl", "".join(json.dumps(m) + "\n" for m in history))
        evaluate_once(session, "before", console)
        with (
            open_trackers(config.training.log, folder, config.options(), history) as show,
            console.bar("iteration", total, session.iteration, every=1) as advance,
        ):
            stop = should_stop(config, session.iteration, history)
            while not stop:
                metrics = {"iteration": session.iteration, **run_iteration(session, iteration)}
                faults = [t.unavailable for t in run.trees if t.unavailable is not None]
                what = f"trees of iteration {session.iteration + 1}"
                check_tool_failures(config, what, faults, len(run.trees))
                history.append(metrics)
                model = session.policy.loaded
                metrics |= validate_if_due(
                    config, model, session.rollouts, folder, history, console
                )
                stop = should_stop(config, session.iteration + 1, history)
                save_iteration(session, metrics, last=stop)
                show(metrics)
                advance(describe_iteration(metrics))
        evaluate_once(session, "after", console)
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise RunFolderError(
            f"no space left on the disk of {folder}; free some and run the same command to resume"
        ) from error


def describe_run(method: str, session: Session, resumed: int | None) -> str:
    """Describe a run that is about to start, in three lines.

    Args:
        method: its module.
        session: before its next iteration.
        resumed: the iteration it resumes after; None: a new run.
    """
    config = session.config
    training, environment = config.training, config.environment
    size = session.policy.model.num_parameters() / 1e6
    rate = session.policy.optimizer.param_groups[0]["lr"]
    rollouts = config.options().get("rollouts", 1)
    return (
        f"{method} on {' '.join(environment.ids)}: {training.model} ({size:.1f}M parameters), "
        f"scale {training.scale}, {training.prompts} prompts x {rollouts} rollouts, learning rate "
        f"{rate:g}, {training.iterations} iterations\n"
        f"training on the {environment.train_split} split: {len(session.tasks)} tasks from "
        f"{session.rollouts.env.benchmark.train_source}; evaluating on "
        f"{config.evaluation.eval_tasks} test tasks\n"
        f"run folder {session.folder}"
        + (f", resuming after iteration {resumed}" if resumed is not None else "")
    )


def describe_iteration(metrics: Mapping[str, Any]) -> str:
    """Describe an iteration in one line."""
    has_validation = "validation/score" in metrics
    return (
        f"reward {metrics.get('reward/mean', 0):+.3f}  answered "
        f"{metrics.get('stop/answered', 0):.2f}  "
        + (f"validation {metrics['validation/score']:.3f}  " if has_validation else "")
        + f"calls {metrics.get('response/tool_calls', 0):.1f}  "
        + format_compute(metrics)
        + f"{metrics['seconds/iteration']:.1f} s"
    )


def format_compute(metrics: Mapping[str, Any]) -> str:
    """Format the share of its rows' tokens that an iteration computed, and if it did so in trees.

    The share is below 100 % if shared prefixes were computed once, and above if rows were padded.
    """
    tokens = metrics.get("ledger/scored_tokens", 0) + metrics.get("ledger/updated_tokens", 0)
    if not tokens or "update/trees" not in metrics:
        return ""
    share = metrics["ledger/computed_tokens"] / tokens
    trees = metrics["update/trees"]
    layout = {1.0: "trees", 0.0: "padded"}.get(trees, f"{trees:.0%} trees")
    return f"read {share:.0%}, {layout}  "
