"""Evaluation during training, on validation tasks only, and when to stop for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import GRADING_THREADS, Benchmark, Score, Task, sample_tasks
from envs import final_answer
from learners.config import RunConfig
from learners.console import Console
from learners.ledger import Ledger, spent
from learners.policy import LoadedModel, save_model
from learners.rollouts import Rollouts
from learners.run_folder import VALIDATION_FOLDER, write_text
from learners.runs.environments import environment
from learners.runs.judging import appoint
from learners.tree import RolloutTree

SCORE = "validation/score"


BEST = "best"
"""Folder of the model with the best score so far; `--model` takes it."""


def validate(
    config: RunConfig,
    model: LoadedModel,
    rollouts: Rollouts,
    folder: Path,
    lines: Sequence[Mapping[str, Any]],
    narrator: Console,
) -> dict[str, float]:
    """Evaluate on validation tasks if that is due; returns metrics, none if it is not.

    Args:
        config: of the run.
        model: the policy in training.
        rollouts: of the run; their sampler follows the policy.
        folder: of the run; the best model is saved in it.
        lines: of metrics, one per iteration done.
        narrator: shows what is going on.
    """
    done = lines[-1]["iteration"] + 1
    if config.evaluation.eval_every == 0 or (
        done % config.evaluation.eval_every and not over(config, done, lines)
    ):
        return {}
    with closing(environment(config, "validation")) as env:
        ledger = Ledger(rollouts.ledger.spending)
        appoint(env, config.judge, folder, ledger)
        played = replace(
            rollouts, env=env, temperature=config.evaluation.eval_temperature, ledger=ledger
        )
        tasks = sample_tasks(env.tasks, config.evaluation.validation_tasks)
        with narrator.status(f"validating on {len(tasks)} tasks"):
            result = evaluate(played, tasks)
    rows = result["tasks"]
    (folder / VALIDATION_FOLDER).mkdir(exist_ok=True)
    write_text(folder / VALIDATION_FOLDER / f"{done:06d}.json", json.dumps(result))
    if not rows:
        return {}
    found = {
        SCORE: sum(row["score"] for row in rows) / len(rows),
        "validation/reward": sum(row["reward"] for row in rows) / len(rows),
    }
    if all(found[SCORE] > line[SCORE] for line in lines if SCORE in line):
        _keep(model, folder)
    return found


def stopped_early(config: RunConfig, lines: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last `patience` validations were no better than the best before them."""
    scores = [line[SCORE] for line in lines if SCORE in line]
    if config.evaluation.patience is None or len(scores) <= config.evaluation.patience:
        return False
    best = scores.index(max(scores))
    return len(scores) - 1 - best >= config.evaluation.patience


def _keep(model: LoadedModel, folder: Path) -> None:
    """Write the policy as the best one, in place of the one before."""
    target = folder / BEST
    partial = folder / f".{BEST}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    save_model(model, partial)
    if target.exists():
        shutil.rmtree(target)
    Path(partial).rename(target)


def over(config: RunConfig, done: int, lines: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a run has done its iterations, or its lines of metrics reach its budget."""
    reached = any(spent(lines, unit) >= amount for unit, amount in config.limits.stop_at)
    return done >= config.training.iterations or reached


def evaluate(rollouts: Rollouts, tasks: Sequence[Task]) -> dict[str, Any]:
    """Play every task once.

    Returns:
        Per task, in order: id, score (official metric), judged (False where only a judge could have
        decided; the score is 0 then and means nothing), reward, stop, tool calls, tokens sampled;
        and the ledger. Tasks whose tools were unavailable are listed apart with their faults and
        not scored.
    """
    trees = [rollouts.tree(task) for task in tasks]
    for tree in trees:
        tree.root()
    rollouts.sampler.sync()
    rollouts.run(trees, key="evaluation")
    rollouts.sampler.sync()
    played = [tree for tree in trees if tree.unavailable is None]
    benchmark = rollouts.env.benchmark
    with ThreadPoolExecutor(GRADING_THREADS) as pool:
        rows = list(pool.map(lambda tree: _row(benchmark, tree), played))
    lost = [(tree.task.id, tree.unavailable) for tree in trees if tree.unavailable is not None]
    return {
        "tasks": rows,
        "unavailable": [task for task, _ in lost],
        "faults": [fault for _, fault in lost],
        **rollouts.ledger.take(),
    }


def _row(benchmark: Benchmark, tree: RolloutTree) -> dict[str, Any]:
    """What the one episode of a tree is worth."""
    (episode,) = tree.trajectories
    answer = final_answer(episode.state)
    score = Score(0.0, "no answer", "")
    if answer is not None:
        score = benchmark.score(answer, tree.task)
    return {
        "task": tree.task.id,
        "score": score.value,
        "judged": score.judged,
        "reward": episode.reward,
        "stop": episode.state.stop,
        "tool_calls": len(episode.state.calls),
        "tokens": episode.sampled_tokens,
    }
