"""python -m learners.replay RUN: rewards, scores and advantages of stored trees, computed anew.

Any field of the method's config may differ, and so may the method: its own `iteration` runs on what
was sampled then, without the model. What it would have sampled elsewhere is not known and not made
up: branches stay those that were stored, and where it would have branched is counted beside.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import BENCHMARKS, Benchmark, Task
from envs import RewardName, compute_reward
from learners.config import RunConfig, known_options
from learners.console import report_errors
from learners.errors import RolloutFileError, UsageError
from learners.replay.stored_run import Chosen, StoredRollouts, StoredTrainer, Texts
from learners.replay.trees import stored_trees
from learners.rollouts import list_iterations, read_rows, write_rows
from learners.runs import Recorder, Run
from learners.tree import RolloutTree, Trajectory


@dataclass(frozen=True)
class Options:
    """What is replayed; every other argument is a field of the method's config."""

    run: Path
    """Folder of a run."""
    method: str | None = None
    """Method whose credit is computed, as in learners.grpo; None: the run's own."""
    iteration: int | None = None
    """Only this one; None: all."""
    out: str | None = None
    """Folder that gets the trees with what was computed, for `learners.view`; None: none."""


class Replayed(NamedTuple):
    """An iteration, computed anew."""

    trees: list[RolloutTree]
    """Stored trees; rewards, future values, scores and advantages are the new ones."""
    chosen: list[Chosen]
    """Branches that the method would have made of its own."""


def recorded_config(folder: Path, method: str | None = None) -> tuple[str, RunConfig]:
    """Method and config of a run; of another method, with the fields that both have.

    Raises:
        RolloutFileError: there is no config.json.
        UsageError: no such method.
    """
    path = folder / "config.json"
    if not path.exists():
        raise RolloutFileError(f"{folder} holds no config.json; give the folder of a run")
    found = json.loads(path.read_text())
    name = method or found["method"]
    try:
        kind = importlib.import_module(name).Config
    except (ImportError, AttributeError) as error:
        raise UsageError(f"--method {name} is no method, as in learners.grpo") from error
    options = {k: _tuples(v) for k, v in known_options(kind, found).items()}
    return name, kind.of(**options)


def replay(
    rows: Sequence[Mapping[str, Any]],
    method: str,
    config: RunConfig,
    *,
    tasks: Mapping[str, Task] | None = None,
    rewards: RewardName | None = None,
    benchmarks: Mapping[str, Benchmark] = BENCHMARKS,
) -> Replayed:
    """Run a method's iteration on the stored rows of one.

    Args:
        rows: of one iteration.
        method: its module's name.
        config: under which.
        tasks: by id, with what scorers need; only for `rewards`.
        rewards: the reward to compute; None leaves those that were earned.
        benchmarks: by name, for their scorers.

    Raises:
        RolloutFileError: the method needs what was not stored.
    """
    trees = stored_trees(rows, tasks)
    everyone = [t for tree in trees for t in tree.trajectories]
    if rewards is not None:
        for tree in trees:
            _reward(tree, rewards, benchmarks)
    rollouts, trainer = StoredRollouts(trees, Texts(rows)), StoredTrainer()
    run = Run(config, rollouts, trainer, Recorder())
    run.begin(rows[0]["iteration"])
    for trajectory in everyone:
        marks = trajectory.marks
        marks.future_values = marks.scores = marks.advantages = marks.weights = None
    importlib.import_module(method).iteration([tree.task for tree in trees], run, config)
    for trajectory, advantages in trainer.credit.items():
        trajectory.marks.advantages = advantages
    return Replayed(trees, rollouts.chosen)


def _reward(tree: RolloutTree, name: RewardName, benchmarks: Mapping[str, Benchmark]) -> None:
    """Rewards of the finished trajectories of a tree; restricted ones keep theirs: no text."""
    if tree.task.restricted:
        return
    for trajectory in tree.trajectories:
        if trajectory.done:
            benchmark = benchmarks[trajectory.state.benchmark]
            earned = compute_reward(name, benchmark, tree.task, trajectory.state)
            trajectory.reward, trajectory.reward_terms = earned.value, earned.terms


def rows_of(
    rows: Sequence[Mapping[str, Any]], trees: Sequence[RolloutTree]
) -> list[dict[str, Any]]:
    """Rows with the rewards, future values, scores and advantages of replayed trees."""
    by_name = {(i, t.path): t for i, tree in enumerate(trees) for t in tree.trajectories}
    return [_row(row, by_name[row["tree"], tuple(row["path"])]) for row in rows]


def _row(row: Mapping[str, Any], trajectory: Trajectory) -> dict[str, Any]:
    marks = trajectory.marks
    return dict(row) | {
        "reward": trajectory.reward,
        "reward_terms": list(trajectory.reward_terms.items()),
        "future_values": _floats(marks.future_values),
        "branch_scores": _floats(marks.scores),
        "advantages": _floats(marks.advantages),
        "weights": None,
    }


def _floats(values: Tensor | None) -> list[float] | None:
    return None if values is None else values.tolist()


def _tuples(value: Any) -> Any:  # noqa: ANN401 - JSON
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def compared(
    rows: Sequence[Mapping[str, Any]], replayed: Replayed
) -> dict[str, list[float] | list[bool]]:
    """Name -> an observation per trajectory, token or branch; their means are what is printed.

    Args:
        rows: as stored.
        replayed: of them.
    """
    new = rows_of(rows, replayed.trees)
    pairs = list(zip(rows, new, strict=True))
    trained = [
        (a, b)
        for old, row in pairs
        for a, b, own in zip(_credit(old), _credit(row), old["mask"], strict=True)
        if own
    ]
    left = {(r["tree"], tuple(r["parent"]), r["position"]) for r in rows if r["parent"] is not None}
    return {
        "reward, stored": [old["reward"] for old in rows],
        "reward, replayed": [row["reward"] for row in new],
        "trajectories whose reward differs": [a["reward"] != b["reward"] for a, b in pairs],
        "tokens with credit, stored": [a != 0 for a, _ in trained],
        "tokens with credit, replayed": [b != 0 for _, b in trained],
        "tokens whose credit changes sign": [a * b < 0 for a, b in trained],
        "size of the change of credit": [abs(a - b) for a, b in trained],
        "trajectories with scores, stored": [r["branch_scores"] is not None for r in rows],
        "trajectories with scores, replayed": [r["branch_scores"] is not None for r in new],
        "branches that would leave where one left": [c[:3] in left for c in replayed.chosen],
    }


def _credit(row: Mapping[str, Any]) -> list[float]:
    return row["advantages"] or [0.0] * len(row["mask"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, replay, print what differs."""
    import tyro

    arguments = sys.argv[1:] if arguments is None else arguments
    options, rest = tyro.cli(
        tyro.conf.configure(tyro.conf.PositionalRequiredArgs)(Options),
        args=arguments,
        prog="python -m learners.replay",
        description=__doc__,
        return_unknown_args=True,
    )
    with report_errors("learners.replay", arguments):
        method, recorded = recorded_config(options.run, options.method)
        config = tyro.cli(type(recorded), args=rest, default=recorded, prog="... RUN")
        _print(_all(options, method, recorded, config))


def _all(
    options: Options, method: str, recorded: RunConfig, config: RunConfig
) -> dict[str, list[Any]]:
    """Observations of every iteration that is asked for; writes them where that is asked for."""
    from learners.runs import environment

    rewards = (
        None
        if config.environment.reward == recorded.environment.reward
        else config.environment.reward
    )
    tasks = None
    if rewards is not None:
        tasks = {t.id: t for t in environment(recorded, recorded.environment.train_split).tasks}
    torch.set_num_threads(1)
    numbers = list_iterations(options.run) if options.iteration is None else [options.iteration]
    found: dict[str, list[Any]] = {}
    for number in numbers:
        rows = read_rows(options.run, number)
        replayed = replay(rows, method, config, tasks=tasks, rewards=rewards)
        for name, values in compared(rows, replayed).items():
            found.setdefault(name, []).extend(values)
        if options.out is not None:
            write_rows(Path(options.out), number, rows_of(rows, replayed.trees))
    if options.out is not None:
        told = {"method": method, **config.options(), "replayed_from": str(options.run)}
        (Path(options.out) / "config.json").write_text(json.dumps(told, indent=1))
    return found


def _print(found: Mapping[str, Sequence[float]]) -> None:
    for name, values in found.items():
        mean = f"{sum(values) / len(values):10.4f}" if values else f"{'-':>10}"
        print(f"{name:<42} {mean}  of {len(values):,}")  # noqa: T201


if __name__ == "__main__":
    main()
