"""The tasks of an iteration: seeded epochs, mixtures of environments, curricula.

They depend on the config and the iteration's number alone, so a resumed run gets the same ones.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from benchmarks import Task
from learners.config import RunConfig
from learners.errors import UsageError

WORDS = ("easy", "medium", "hard")
"""Levels that are not numbers, easiest first."""


def check_tasks(config: RunConfig, tasks: Sequence[Task]) -> None:
    """Check that the tasks fit the mixture's weights and the curriculum.

    Raises:
        UsageError: the weights do not fit the environments, or a curriculum has no levels.
    """
    ids = config.environment.ids
    weights = config.environment.env_weights
    if weights and (len(weights) != len(ids) or min(weights) <= 0):
        raise UsageError(
            f"--env-weights {' '.join(f'{w:g}' for w in weights)}: expected one above 0 for each "
            f"of {' '.join(ids)}"
        )
    if config.environment.curriculum > 0:
        for name, group in _group_by_benchmark(config, tasks).items():
            _sort_levels(group, name or ids[0])


def select_tasks(config: RunConfig, tasks: Sequence[Task], iteration: int) -> list[Task]:
    """Select the `prompts` tasks of an iteration.

    Args:
        config: seed, prompts, weights of environments, curriculum.
        tasks: all training tasks; in a mixture their ids begin with their benchmark's name.
        iteration: from 0.
    """
    prompts, seed = config.training.prompts, config.training.seed
    groups = _group_by_benchmark(config, tasks)
    if len(groups) == 1:
        (group,) = groups.values()
        return _select_from(config, group, "", iteration, iteration * prompts, prompts)
    weights = config.environment.env_weights or (1.0,) * len(groups)
    counts, before = Counter[str](), Counter[str]()
    # Draw all earlier iterations again, to count the tasks that each environment has served.
    for earlier in range(iteration + 1):
        before += counts
        draw = random.Random(f"{seed}/mixture/{earlier}")
        names = draw.choices(list(groups), weights, k=prompts)
        counts = Counter(names)
    selected = {
        name: iter(_select_from(config, groups[name], name, iteration, before[name], counts[name]))
        for name in counts
    }
    return [next(selected[name]) for name in names]


def _group_by_benchmark(config: RunConfig, tasks: Sequence[Task]) -> dict[str, Sequence[Task]]:
    """Tasks by benchmark, in the order of the mixture; by "" if there is no mixture."""
    if len(config.environment.ids) == 1:
        return {"": tasks}
    groups: dict[str, list[Task]] = {}
    for task in tasks:
        groups.setdefault(task.id.partition(":")[0], []).append(task)
    return dict(groups)


def _select_from(
    config: RunConfig, tasks: Sequence[Task], name: str, iteration: int, first: int, count: int
) -> list[Task]:
    """Select `count` tasks of one environment, of which `first` were selected before."""
    seed = config.training.seed
    if config.environment.curriculum > 0:
        pool = _admit_levels(config, tasks, iteration)
        draw = random.Random(f"{seed}/curriculum/{name}/{iteration}")
        rounds, rest = divmod(count, len(pool))
        return [*(list(pool) * rounds), *draw.sample(pool, rest)]
    positions = [divmod(number, len(tasks)) for number in range(first, first + count)]
    prefix = f"{seed}/epoch/{name}/" if name else f"{seed}/epoch/"
    orders = {
        epoch: _shuffle(len(tasks), f"{prefix}{epoch}")
        for epoch in {epoch for epoch, _ in positions}
    }
    return [tasks[orders[epoch][index]] for epoch, index in positions]


def _shuffle(count: int, seed: str) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def _admit_levels(config: RunConfig, tasks: Sequence[Task], iteration: int) -> Sequence[Task]:
    """The tasks of the levels that an iteration trains on; easier levels are admitted first."""
    levels = _sort_levels(tasks, "")
    progress = iteration / max(1, round(config.environment.curriculum * config.training.iterations))
    admitted = set(levels[: min(len(levels), 1 + int(progress * len(levels)))])
    return [task for task in tasks if dict(task.metadata)["level"] in admitted]


def _sort_levels(tasks: Sequence[Task], name: str) -> list[str]:
    """Return the levels of tasks, easiest first.

    Raises:
        UsageError: a task has no level, all have the same, or the levels have no known order.
    """
    levels = {dict(task.metadata).get("level") for task in tasks}
    names = {level for level in levels if level is not None}
    if len(names) < 2 or None in levels:
        raise UsageError(
            f"--curriculum: the tasks of {name} have no levels of difficulty to go through"
        )
    if all(level.isdigit() for level in names):
        return sorted(names, key=int)
    if names <= set(WORDS):
        return sorted(names, key=WORDS.index)
    raise UsageError(f"--curriculum: no order of the levels {', '.join(sorted(names))} is known")
