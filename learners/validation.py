"""Evaluation during training, on validation tasks only, and when to stop for it."""

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learners.run_config import RunConfig

if TYPE_CHECKING:
    from learners.progress import Narrator
    from learners.session import Session

SCORE = "validation/score"
FOLDER = "validation"
"""What each task was worth, a file per validation."""
BEST = "best"
"""Folder of the model with the best score so far; `--model` takes it."""


def validate(
    session: "Session", lines: Sequence[Mapping[str, Any]], narrator: "Narrator"
) -> dict[str, float]:
    """Metrics of the policy after the iteration under way, if it is due; nothing otherwise.

    Args:
        session: the best model is kept in its folder.
        lines: of metrics, that of the iteration under way included.
        narrator: says what is going on.
    """
    from contextlib import closing

    from learners.checkpoint import write_text
    from learners.evaluate import drawn
    from learners.evaluation import evaluate
    from learners.judging import appoint
    from learners.run_env import environment
    from learners.stopping import over

    config, run = session.run.config, session.run
    done = run.iteration + 1
    if config.eval_every == 0 or (done % config.eval_every and not over(config, done, lines)):
        return {}
    with closing(environment(config, "validation")) as env:
        ledger = type(run.ledger)(run.ledger.spending)
        appoint(env, config, session.folder, ledger)
        rollouts = replace(
            run.rollouts, env=env, temperature=config.eval_temperature, ledger=ledger
        )
        tasks = drawn(env.tasks, config.validation_tasks)
        with narrator.status(f"validating on {len(tasks)} tasks"):
            result = evaluate(rollouts, tasks)
    rows = result["tasks"]
    (session.folder / FOLDER).mkdir(exist_ok=True)
    write_text(session.folder / FOLDER / f"{done:06d}.json", json.dumps(result))
    if not rows:
        return {}
    found = {
        SCORE: sum(row["score"] for row in rows) / len(rows),
        "validation/reward": sum(row["reward"] for row in rows) / len(rows),
    }
    if all(found[SCORE] > line[SCORE] for line in lines if SCORE in line):
        _keep(session)
    return found


def spent_on_evaluations(folder: Path) -> Counter[str]:
    """What the evaluations and validations of a run that are on file cost, named as in metrics."""
    found: Counter[str] = Counter()
    for path in [*folder.glob("evaluation-*.json"), *(folder / FOLDER).glob("*.json")]:
        told: dict[str, Any] = json.loads(path.read_text())
        found.update({n: told[n] for n in told if n.startswith(("ledger/", "seconds/"))})
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
