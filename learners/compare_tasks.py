"""The tasks that every run of a comparison is judged on: tasks.json beside the summaries."""

import json
from pathlib import Path
from typing import Any

from learners.checkpoint import write_text
from learners.compare_config import Config
from learners.run_config import UsageError

TASKS = "tasks.json"


def evaluated_tasks(config: Config) -> dict[str, Any]:
    """Ids and levels of the tasks of both splits, in the order of all scores; loads no model."""
    from learners.evaluate import drawn, environment
    from learners.evaluate_config import Config as Evaluation

    found = {}
    for split, count in (("test", config.eval_tasks), ("validation", config.validation_tasks)):
        given = Evaluation(
            split=split,  # type: ignore[arg-type]
            data_dir=config.data_dir,
            level=config.level,
        )
        chosen = drawn(environment(config.env, given).tasks, count)
        levels = [str(dict(task.metadata).get("level", "")) for task in chosen]
        found[split] = {"ids": [task.id for task in chosen], "levels": levels}
    return found


def keep_tasks(config: Config) -> dict[str, Any]:
    """The tasks of a comparison, written beside its summaries.

    Raises:
        UsageError: the summaries there are of other tasks.
    """
    path = Path(config.results) / config.name / TASKS
    tasks = evaluated_tasks(config)
    if path.exists():
        if json.loads(path.read_text()) != tasks:
            raise UsageError(f"{path} names other tasks: give --name another name, or delete it")
        return tasks
    path.parent.mkdir(parents=True, exist_ok=True)
    body = ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in tasks.items())
    write_text(path, "{\n" + body + "\n}\n")
    return tasks
