"""python -m learners.replay RUN: compute rewards, scores and advantages of stored trees again.

Any option of the method may differ, and so may the method: its own `iteration` runs on the stored
trajectories, without the model. What it would have sampled instead is unknown and not made up:
branches stay the stored ones, and those that it would have made are only counted.
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

from benchmarks import BENCHMARKS, Benchmark, Task
from envs import RewardName, compute_reward
from learners.config import RunConfig
from learners.console import report_errors
from learners.errors import RolloutFileError, UsageError
from learners.replay.stored_run import ChosenBranch, StoredRollouts, StoredTokenizer, StoredTrainer
from learners.replay.trees import build_trees
from learners.rollouts import list_iterations, read_rows, to_floats, write_rows
from learners.runs import Recorder, Run, make_env
from learners.tree import RolloutTree, Trajectory

Observations = dict[str, list[Any]]
"""Name -> an observation per trajectory, token or branch; their means are printed."""


@dataclass(frozen=True)
class Options:
    """The run to replay; every other argument is an option of the method."""

    run: Path
    """Folder of a run."""
    method: str | None = None
    """Method whose credit is computed, as in learners.grpo; None: the run's own."""
    iteration: int | None = None
    """Only this iteration; None: all."""
    out: str | None = None
    """Folder for the trees with what was computed, for `learners.view`; None: they are not
    written."""


class Replayed(NamedTuple):
    """An iteration, computed again."""

    trees: list[RolloutTree]
    """Stored trees; rewards, future values, scores and advantages are the new ones."""
    branches: list[ChosenBranch]
    """Branches that the method would have made."""


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
        method, recorded = read_recorded_config(options.run, options.method)
        config = tyro.cli(type(recorded), args=rest, default=recorded, prog="... RUN")
        for name, values in replay_run(options, method, recorded, config).items():
            mean = f"{sum(values) / len(values):10.4f}" if values else f"{'-':>10}"
            print(f"{name:<42} {mean}  of {len(values):,}")  # noqa: T201


def read_recorded_config(folder: Path, method: str | None = None) -> tuple[str, RunConfig]:
    """Read the method and config of a run; for another method, the options that both have.

    Raises:
        RolloutFileError: there is no config.json.
        UsageError: there is no such method.
    """
    path = folder / "config.json"
    if not path.exists():
        raise RolloutFileError(f"{folder} holds no config.json; give the folder of a run")
    stored = json.loads(path.read_text())
    name = method or stored["method"]
    try:
        kind = importlib.import_module(name).Config
    except (ImportError, AttributeError) as error:
        raise UsageError(f"--method {name} is no method, as in learners.grpo") from error
    names = kind.option_names()
    return name, kind.of(**{n: _to_tuples(v) for n, v in stored.items() if n in names})


def _to_tuples(value: Any) -> Any:  # noqa: ANN401 - JSON
    return tuple(_to_tuples(item) for item in value) if isinstance(value, list) else value


def replay_run(
    options: Options, method: str, recorded: RunConfig, config: RunConfig
) -> Observations:
    """Replay the iterations that options name; write them if options say so.

    Args:
        options: the command's.
        method: module of the method that computes credit.
        recorded: the run's config.
        config: the config to replay under.
    """
    rewards = tasks = None
    if config.environment.reward != recorded.environment.reward:
        rewards = config.environment.reward
        tasks = {t.id: t for t in make_env(recorded, recorded.environment.train_split).tasks}
    torch.set_num_threads(1)
    numbers = list_iterations(options.run) if options.iteration is None else [options.iteration]
    observations: Observations = {}
    for number in numbers:
        rows = read_rows(options.run, number)
        replayed = replay(rows, method, config, tasks=tasks, rewards=rewards)
        for name, values in compare_rows(rows, replayed).items():
            observations.setdefault(name, []).extend(values)
        if options.out is not None:
            write_rows(Path(options.out), number, update_rows(rows, replayed.trees))
    if options.out is not None:
        header = {"method": method, **config.options(), "replayed_from": str(options.run)}
        (Path(options.out) / "config.json").write_text(json.dumps(header, indent=1))
    return observations


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
        config: of the method.
        tasks: by id, with what scorers need; only needed for `rewards`.
        rewards: the reward to compute; None: the stored rewards.
        benchmarks: by name, for their scorers.

    Raises:
        RolloutFileError: the method needs something that was not stored.
    """
    trees = build_trees(rows, tasks)
    trajectories = [t for tree in trees for t in tree.trajectories]
    if rewards is not None:
        for tree in trees:
            _compute_rewards(tree, rewards, benchmarks)
    rollouts, trainer = StoredRollouts(trees, StoredTokenizer(rows)), StoredTrainer()
    run = Run(config, rollouts, trainer, Recorder())
    run.begin(rows[0]["iteration"])
    for trajectory in trajectories:
        stored = trajectory.diagnostics
        stored.future_values = stored.scores = stored.advantages = stored.weights = None
    importlib.import_module(method).iteration([tree.task for tree in trees], run, config)
    for trajectory, advantages in trainer.credit.items():
        trajectory.diagnostics.advantages = advantages
    return Replayed(trees, rollouts.branches)


def _compute_rewards(
    tree: RolloutTree, name: RewardName, benchmarks: Mapping[str, Benchmark]
) -> None:
    """Compute the rewards of finished trajectories.

    Restricted tasks keep the stored ones, since their texts are not stored.
    """
    if tree.task.restricted:
        return
    for trajectory in tree.trajectories:
        if trajectory.done:
            benchmark = benchmarks[trajectory.state.benchmark]
            reward = compute_reward(name, benchmark, tree.task, trajectory.state)
            trajectory.reward, trajectory.reward_terms = reward.value, reward.terms


def update_rows(
    rows: Sequence[Mapping[str, Any]], trees: Sequence[RolloutTree]
) -> list[dict[str, Any]]:
    """Return the rows with the rewards, future values, scores and advantages of replayed trees."""
    by_path = {(i, t.path): t for i, tree in enumerate(trees) for t in tree.trajectories}
    return [_update_row(row, by_path[row["tree"], tuple(row["path"])]) for row in rows]


def _update_row(row: Mapping[str, Any], trajectory: Trajectory) -> dict[str, Any]:
    diagnostics = trajectory.diagnostics
    return dict(row) | {
        "reward": trajectory.reward,
        "reward_terms": list(trajectory.reward_terms.items()),
        "future_values": to_floats(diagnostics.future_values),
        "branch_scores": to_floats(diagnostics.scores),
        "advantages": to_floats(diagnostics.advantages),
        "weights": None,
    }


def compare_rows(rows: Sequence[Mapping[str, Any]], replayed: Replayed) -> Observations:
    """Compare the stored rows of an iteration with the replayed ones."""
    new = update_rows(rows, replayed.trees)
    pairs = list(zip(rows, new, strict=True))
    credit = [
        (before, after)
        for old, row in pairs
        for before, after, sampled in zip(
            _token_credit(old), _token_credit(row), old["mask"], strict=True
        )
        if sampled
    ]
    left = {(r["tree"], tuple(r["parent"]), r["position"]) for r in rows if r["parent"] is not None}
    return {
        "reward, stored": [old["reward"] for old in rows],
        "reward, replayed": [row["reward"] for row in new],
        "trajectories whose reward differs": [a["reward"] != b["reward"] for a, b in pairs],
        "tokens with credit, stored": [a != 0 for a, _ in credit],
        "tokens with credit, replayed": [b != 0 for _, b in credit],
        "tokens whose credit changes sign": [a * b < 0 for a, b in credit],
        "size of the change of credit": [abs(a - b) for a, b in credit],
        "trajectories with scores, stored": [r["branch_scores"] is not None for r in rows],
        "trajectories with scores, replayed": [r["branch_scores"] is not None for r in new],
        "branches that would leave where one left": [
            (b.tree, b.parent, b.position) in left for b in replayed.branches
        ],
    }


def _token_credit(row: Mapping[str, Any]) -> list[float]:
    """A row's advantages; zeros if it got none."""
    return row["advantages"] or [0.0] * len(row["mask"])


if __name__ == "__main__":
    main()
