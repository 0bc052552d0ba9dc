"""Which tasks an iteration trains on: seeded epochs, mixtures of environments, curricula.

What an iteration gets depends on the config and its number alone: a resumed run gets the same.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from benchmarks import Task
from learners.config import RunConfig
from learners.errors import UsageError

WORDS = ("easy", "medium", "hard")
"""Levels that are no numbers, easiest first."""


def served(config: RunConfig, tasks: Sequence[Task], iteration: int) -> list[Task]:
    """The `prompts` tasks of an iteration.

    Args:
        config: seed, prompts, weights of environments, curriculum.
        tasks: of training; in a mixture their ids begin with their benchmark's name.
        iteration: from 0.
    """
    groups = _groups(config, tasks)
    if len(groups) == 1:
        (group,) = groups.values()
        return _next(
            config,
            group,
            "",
            iteration,
            iteration * config.training.prompts,
            config.training.prompts,
        )
    counts, before = Counter[str](), Counter[str]()
    for earlier in range(iteration + 1):
        before += counts
        draw = random.Random(f"{config.training.seed}/mixture/{earlier}")
        weights = config.environment.env_weights or (1.0,) * len(groups)
        drawn = draw.choices(list(groups), weights, k=config.training.prompts)
        counts = Counter(drawn)
    found = {
        name: iter(_next(config, groups[name], name, iteration, before[name], counts[name]))
        for name in counts
    }
    return [next(found[name]) for name in drawn]


def check(config: RunConfig, tasks: Sequence[Task]) -> None:
    """Nothing if the tasks can be served as the config wants.

    Raises:
        UsageError: as many weights as environments are needed; a curriculum needs levels.
    """
    ids = config.environment.ids
    weights = config.environment.env_weights
    if weights and (len(weights) != len(ids) or min(weights) <= 0):
        raise UsageError(
            f"--env-weights {' '.join(f'{w:g}' for w in weights)}: expected one above 0 for each "
            f"of {' '.join(ids)}"
        )
    if config.environment.curriculum > 0:
        for name, group in _groups(config, tasks).items():
            _levels(group, name or ids[0])


def _groups(config: RunConfig, tasks: Sequence[Task]) -> dict[str, Sequence[Task]]:
    """Tasks by environment, in the order they were named."""
    if len(config.environment.ids) == 1:
        return {"": tasks}
    groups: dict[str, list[Task]] = {}
    for task in tasks:
        groups.setdefault(task.id.partition(":")[0], []).append(task)
    return dict(groups)


def _next(
    config: RunConfig, tasks: Sequence[Task], name: str, iteration: int, first: int, count: int
) -> list[Task]:
    """`count` tasks of one environment after `first` earlier ones."""
    if config.environment.curriculum > 0:
        pool = _admitted(config, tasks, iteration)
        draw = random.Random(f"{config.training.seed}/curriculum/{name}/{iteration}")
        whole, rest = divmod(count, len(pool))
        return [*(list(pool) * whole), *draw.sample(pool, rest)]
    places = [divmod(index, len(tasks)) for index in range(first, first + count)]
    seed = f"{config.training.seed}/epoch/{name}/" if name else f"{config.training.seed}/epoch/"
    orders = {epoch: _order(len(tasks), f"{seed}{epoch}") for epoch in {e for e, _ in places}}
    return [tasks[orders[epoch][place]] for epoch, place in places]


def _order(count: int, seed: str) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def _admitted(config: RunConfig, tasks: Sequence[Task], iteration: int) -> Sequence[Task]:
    """The tasks of the levels that are let in by now, the easiest first."""
    levels = _levels(tasks, "")
    progress = iteration / max(1, round(config.environment.curriculum * config.training.iterations))
    allowed = set(levels[: min(len(levels), 1 + int(progress * len(levels)))])
    return [task for task in tasks if dict(task.metadata)["level"] in allowed]


def _levels(tasks: Sequence[Task], name: str) -> list[str]:
    """Easiest first."""
    found = {dict(task.metadata).get("level") for task in tasks}
    known = {level for level in found if level is not None}
    if len(known) < 2 or None in found:
        raise UsageError(
            f"--curriculum: the tasks of {name} have no levels of difficulty to go through"
        )
    if all(level.isdigit() for level in known):
        return sorted(known, key=int)
    if known <= set(WORDS):
        return sorted(known, key=WORDS.index)
    raise UsageError(f"--curriculum: no order of the levels {', '.join(sorted(known))} is known")
