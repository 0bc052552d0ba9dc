"""The command line of every method: trains, shows what happened, explains what went wrong."""

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
from learners.runs.environments import stop_where_tools_fail
from learners.runs.evaluation import over, stopped_early, validate
from learners.runs.report import final_report
from learners.runs.run import Run
from learners.runs.session import (
    Session,
    default_folder,
    evaluate_once,
    open_ledger,
    open_session,
    record,
    run_iteration,
    training_env,
)
from learners.runs.trackers import opened


def main(method: str, arguments: Sequence[str] | None = None) -> None:
    """Parse the command line of `python -m <method>` and train."""
    arguments = sys.argv[1:] if arguments is None else arguments
    module = importlib.import_module(method)
    scale = _scale(arguments)
    with report_errors(method, arguments, "run"):
        config = parse_options(method, module.Config.at(scale), arguments, module.__doc__)
        train(method, config)


def _scale(arguments: Sequence[str]) -> Scale:
    """The scale on the command line; it decides the other defaults."""
    given = [b for a, b in pairwise(arguments) if a == "--scale"]
    given += [a.split("=", 1)[1] for a in arguments if a.startswith("--scale=")]
    if given and given[-1] in ("paper", "laptop"):
        return given[-1]  # type: ignore[return-value]
    if "--help" in arguments or "-h" in arguments:
        return "laptop"

    return "paper" if torch.cuda.is_available() else "laptop"


def train(method: str, config: RunConfig) -> Path:
    """Train until `config.iterations` are done; returns the run's folder.

    Raises:
        UsageError, RunFolderError, RunStopped, ModelNotFound, DataUnavailable, ToolUnavailable,
        ReplayMiss, gymnasium.error.Error: see their messages.
    """
    env = training_env(config)
    folder = Path(config.training.out or default_folder(method, config))
    narrator = Console()
    with lock_folder(folder), closing(env):
        newest = open_folder(folder, method, config)
        kept = [m for m in read_metrics(folder) if m["iteration"] < (newest or 0)]
        ledger = open_ledger(config, folder, kept)
        session = open_session(config, env, folder, newest, ledger)
        narrator.say(opening(method, session, newest))
        if other := record_machine(folder, session.iteration):
            narrator.say(other)
        _iterate(session, importlib.import_module(method).iteration, kept, narrator)
        final_report(folder, narrator)
    return folder


def _iterate(
    session: Session,
    iteration: Callable[[list[Task], Run, Any], None],
    kept: Sequence[dict[str, Any]],
    narrator: Console,
) -> None:
    """Evaluate, run the iterations that are left after the lines `kept`, evaluate."""
    run, folder = session.run, session.folder
    try:
        write_text(folder / "metrics.jsonl", "".join(json.dumps(m) + "\n" for m in kept))
        evaluate_once(session, "before", narrator)
        iterations, lines = run.config.training.iterations, list(kept)
        with (
            opened(run.config.training.log, folder, run.config.options(), kept) as show,
            narrator.bar("iteration", iterations, session.iteration, every=1) as advance,
        ):
            ended = over(run.config, session.iteration, lines) or stopped_early(run.config, lines)
            while not ended:
                metrics = {"iteration": session.iteration, **run_iteration(session, iteration)}
                faults = [t.unavailable for t in run.trees if t.unavailable is not None]
                what = f"trees of iteration {session.iteration + 1}"
                stop_where_tools_fail(run.config, what, faults, len(run.trees))
                lines.append(metrics)
                model = session.policy.loaded
                metrics |= validate(run.config, model, session.rollouts, folder, lines, narrator)
                ended = over(run.config, session.iteration + 1, lines) or stopped_early(
                    run.config, lines
                )
                record(session, metrics, last=ended)
                show(metrics)
                advance(described(metrics))
        evaluate_once(session, "after", narrator)
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise RunFolderError(
            f"no space left on the disk of {folder}; free some and run the same command to resume"
        ) from error


def opening(method: str, session: Session, resumed: int | None) -> str:
    """What is about to happen, in three lines."""
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


def described(metrics: dict[str, Any]) -> str:
    """An iteration in one line."""
    validated = "validation/score" in metrics
    return (
        f"reward {metrics.get('reward/mean', 0):+.3f}  answered "
        f"{metrics.get('stop/answered', 0):.2f}  "
        + (f"validation {metrics['validation/score']:.3f}  " if validated else "")
        + f"calls {metrics.get('response/tool_calls', 0):.1f}  "
        + read(metrics)
        + f"{metrics['seconds/iteration']:.1f} s"
    )


def read(metrics: Mapping[str, Any]) -> str:
    """How much of its rows' tokens an iteration read to score and update, and whether as trees."""
    rows = metrics.get("ledger/scored_tokens", 0) + metrics.get("ledger/updated_tokens", 0)
    if not rows or "update/trees" not in metrics:
        return ""
    share = metrics["ledger/computed_tokens"] / rows
    trees = metrics["update/trees"]
    how = {1.0: "trees", 0.0: "padded"}.get(trees, f"{trees:.0%} trees")
    return f"read {share:.0%}, {how}  "
