"""Evaluation during training, on validation tasks only, and when to stop for it."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learners.run_config import RunConfig

if TYPE_CHECKING:
    from learners.progress import Narrator
    from learners.session import Session

SCORE = "validation/score"
BEST = "best"
"""Folder of the model with the best score so far; `--model` takes it."""


def validate(
    session: "Session", earlier: Sequence[Mapping[str, Any]], narrator: "Narrator"
) -> dict[str, float]:
    """Metrics of the policy after the iteration under way, if it is due; nothing otherwise.

    Args:
        session: the best model is kept in its folder.
        earlier: lines of metrics before this iteration's.
        narrator: says what is going on.
    """
    from contextlib import closing

    from learners.evaluation import evaluate
    from learners.run_env import environment

    config, run = session.run.config, session.run
    done = run.iteration + 1
    if config.eval_every == 0 or (done % config.eval_every and done < config.iterations):
        return {}
    with closing(environment(config, "validation")) as env:
        ledger = type(run.ledger)(run.ledger.spending)
        rollouts = replace(
            run.rollouts, env=env, temperature=config.eval_temperature, ledger=ledger
        )
        tasks = env.tasks[: config.validation_tasks]
        with narrator.status(f"validating on {len(tasks)} tasks"):
            rows = evaluate(rollouts, tasks)["tasks"]
    if not rows:
        return {}
    found = {
        SCORE: sum(row["score"] for row in rows) / len(rows),
        "validation/reward": sum(row["reward"] for row in rows) / len(rows),
    }
    if all(found[SCORE] > line[SCORE] for line in earlier if SCORE in line):
        _keep(session)
    return found


def stopped_early(config: RunConfig, lines: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last `patience` validations were no better than the best before them."""
    scores = [line[SCORE] for line in lines if SCORE in line]
    if config.patience is None or len(scores) <= config.patience:
        return False
    best = scores.index(max(scores))
    return len(scores) - 1 - best >= config.patience


def _keep(session: "Session") -> None:
    """Write the policy as the best one, in place of the one before."""
    from learners.models import save_model

    target = session.folder / BEST
    partial = session.folder / f".{BEST}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    save_model(session.run.policy.loaded, partial)
    if target.exists():
        shutil.rmtree(target)
    Path(partial).rename(target)
