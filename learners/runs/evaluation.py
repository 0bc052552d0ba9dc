"""Evaluations of the policy in training, and the rules that end a run."""

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
from learners.ledger import Ledger, amount_used
from learners.policy import LoadedModel, save_model
from learners.rollouts import Rollouts
from learners.run_folder import VALIDATION_FOLDER, write_text
from learners.runs.environments import make_env
from learners.runs.judging import install_judge
from learners.tree import RolloutTree

BEST_FOLDER = "best"
"""Folder of the model with the best validation score so far; `--model` takes it."""

VALIDATION_SCORE = "validation/score"
"""The metric that selects the best model and that early stopping watches."""


def validate_if_due(
    config: RunConfig,
    model: LoadedModel,
    rollouts: Rollouts,
    folder: Path,
    history: Sequence[Mapping[str, Any]],
    console: Console,
) -> dict[str, float]:
    """Evaluate on validation tasks if that is due; save the model if it is the best so far.

    Args:
        config: the run's.
        model: the policy in training.
        rollouts: the run's; their sampler follows the policy.
        folder: the run's.
        history: metrics of all iterations done.
        console: shows that the evaluation is going on.

    Returns:
        Metrics; none if no evaluation is due.
    """
    every = config.evaluation.eval_every
    done = history[-1]["iteration"] + 1
    if every == 0 or (done % every and not has_reached_limit(config, done, history)):
        return {}
    with closing(make_env(config, "validation")) as env:
        ledger = Ledger(rollouts.ledger.usage)
        install_judge(env, config.judge, folder, ledger)
        temperature = config.evaluation.eval_temperature
        player = replace(rollouts, env=env, temperature=temperature, ledger=ledger)
        tasks = sample_tasks(env.tasks, config.evaluation.validation_tasks)
        with console.status(f"validating on {len(tasks)} tasks"):
            result = evaluate(player, tasks)
    (folder / VALIDATION_FOLDER).mkdir(exist_ok=True)
    write_text(folder / VALIDATION_FOLDER / f"{done:06d}.json", json.dumps(result))
    rows = result["tasks"]
    if not rows:
        return {}
    score = sum(row["score"] for row in rows) / len(rows)
    reward = sum(row["reward"] for row in rows) / len(rows)
    if all(score > earlier for earlier in _validation_scores(history)):
        _save_best(model, folder)
    return {VALIDATION_SCORE: score, "validation/reward": reward}


def _save_best(model: LoadedModel, folder: Path) -> None:
    """Replace the best model so far."""
    target = folder / BEST_FOLDER
    partial = folder / f".{BEST_FOLDER}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    save_model(model, partial)
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)


def should_stop(config: RunConfig, done: int, history: Sequence[Mapping[str, Any]]) -> bool:
    """True if a run must not start another iteration.

    Args:
        config: has the limits and the patience.
        done: iterations done.
        history: their metrics.
    """
    return has_reached_limit(config, done, history) or is_patience_exhausted(config, history)


def has_reached_limit(config: RunConfig, done: int, history: Sequence[Mapping[str, Any]]) -> bool:
    """True if all iterations are done, or the training budget is spent."""
    if done >= config.training.iterations:
        return True
    return any(amount_used(history, unit) >= amount for unit, amount in config.limits.stop_at)


def is_patience_exhausted(config: RunConfig, history: Sequence[Mapping[str, Any]]) -> bool:
    """True if the last `patience` validations were no better than the best one before them."""
    patience, scores = config.evaluation.patience, _validation_scores(history)
    if patience is None or len(scores) <= patience:
        return False
    best = scores.index(max(scores))
    return len(scores) - 1 - best >= patience


def _validation_scores(history: Sequence[Mapping[str, Any]]) -> list[float]:
    return [line[VALIDATION_SCORE] for line in history if VALIDATION_SCORE in line]


def evaluate(rollouts: Rollouts, tasks: Sequence[Task]) -> dict[str, Any]:
    """Play every task once.

    Returns:
        "tasks": per task, in order: id, score (official metric), judged (False if only a judge
        could have decided and there was none; the score is then 0 and meaningless), reward, stop,
        tool calls and sampled tokens. Tasks whose tools were unavailable are not scored:
        "unavailable" has their ids and "faults" the reasons. All other entries are the ledger's.
    """
    trees = [rollouts.tree(task) for task in tasks]
    for tree in trees:
        tree.root()
    # Drop cached prefixes before and after: they would change the last bits of what follows.
    rollouts.sampler.sync()
    rollouts.run(trees, key="evaluation")
    rollouts.sampler.sync()
    finished = [tree for tree in trees if tree.unavailable is None]
    lost = [tree for tree in trees if tree.unavailable is not None]
    benchmark = rollouts.env.benchmark
    with ThreadPoolExecutor(GRADING_THREADS) as pool:
        rows = list(pool.map(lambda tree: _score_episode(benchmark, tree), finished))
    return {
        "tasks": rows,
        "unavailable": [tree.task.id for tree in lost],
        "faults": [tree.unavailable for tree in lost],
        **rollouts.ledger.take(),
    }


def _score_episode(benchmark: Benchmark, tree: RolloutTree) -> dict[str, Any]:
    """Score the only episode of a tree."""
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
