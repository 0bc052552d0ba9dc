"""The table of `learners.branching_variance`: variances by rule of placement, with intervals."""

import json
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from learners.evaluation import Interval

RULES = ("score", "entropy", "future", "uniform")
RESAMPLES = 2000


class Point(NamedTuple):
    """A token that was branched."""

    gradient_variance: float
    """s_k^2."""
    reward_variance: float
    ranks: dict[str, int]
    """By rule: 0 is the best of its root."""


class Root(NamedTuple):
    """A root with its points."""

    task: str
    points: list[Point]
    defined: bool
    """Whether it had a branching score; if not, the score's rule is entropy's."""


def per_branch(root: Root, rule: str) -> float:
    """V: the variance per branch when a rule shares out a budget over a root's points."""
    count = len(root.points)
    whole = count * (count + 1) / 2
    total = 0.0
    for point in root.points:
        share = 1 / count if rule == "uniform" else (count - point.ranks[rule]) / whole
        total += point.gradient_variance / share
    return total / count**2


def best_over_all(root: Root, rule: str) -> tuple[float, float]:
    """Mean s_k^2 of the better half of a root's points by a rule, and of all of them."""
    count = len(root.points)
    every = sum(point.gradient_variance for point in root.points) / count
    if rule == "uniform":
        return every, every
    kept = max(1, count // 2)
    best = [point.gradient_variance for point in root.points if point.ranks[rule] < kept]
    return sum(best) / kept, every


def ratio(
    roots: Sequence[Root], above: Callable[[Root], float], below: Callable[[Root], float]
) -> Interval:
    """Ratio of two sums over roots, with its 95 % interval from resampled tasks."""
    tasks: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for root in roots:
        tasks[root.task][0] += above(root)
        tasks[root.task][1] += below(root)
    pairs, draw = list(tasks.values()), random.Random(0)

    def quotient(sample: Sequence[Sequence[float]]) -> float:
        bottom = sum(pair[1] for pair in sample)
        return sum(pair[0] for pair in sample) / bottom if bottom else 1.0

    found = sorted(quotient(draw.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    low, high = found[int(0.025 * RESAMPLES)], found[int(0.975 * RESAMPLES) - 1]
    return Interval(quotient(pairs), low, high)


def report(roots: Sequence[Root], config: Mapping[str, Any], folder: Path | None = None) -> None:
    """Print the table; write the points as JSON where a folder is given."""
    from rich.table import Table

    from learners.progress import Narrator

    points = [point for root in roots for point in root.points]
    varied = sum(point.gradient_variance > 0 for point in points)
    table = Table(
        title=f"{len({root.task for root in roots})} tasks, {len(roots)} roots "
        f"({sum(root.defined for root in roots)} with a score), {len(points)} points, "
        f"{varied} of them with any variance; 95 % intervals"
    )
    for column in ("placement", "variance per branch", "over uniform", "best half over all"):
        table.add_column(column)
    for rule in RULES:
        value = sum(per_branch(root, rule) for root in roots) / max(len(roots), 1)
        table.add_row(
            rule,
            f"{value:.4g}",
            str(ratio(roots, partial(per_branch, rule=rule), partial(per_branch, rule="uniform"))),
            str(
                ratio(
                    roots,
                    lambda root, rule=rule: best_over_all(root, rule)[0],  # type: ignore[misc]
                    lambda root, rule=rule: best_over_all(root, rule)[1],  # type: ignore[misc]
                )
            ),
        )
    Narrator().say(table)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        rows = [root._asdict() | {"points": [p._asdict() for p in root.points]} for root in roots]
        content = json.dumps({"config": dict(config), "roots": rows}, indent=1)
        (folder / "branching_variance.json").write_text(content)
