"""Does branching where APPO's score is high make gradients less noisy? Measures its Theorem 1.

    python -m learners.branching_variance --model runs/start --quick

The theorem: at K decision points, n_k branches each, the variance of the summed estimate is
sum s_k^2 / n_k, and allotting branches by s_k beats allotting them equally; APPO assumes that s_k
grows with its score. Here the roots of some tasks move the policy as an update does; on roots of
other tasks K tokens each are drawn and branched `repeats` times. Every branch gives a gradient,

    g = (R - V) grad sum log pi(its own tokens),        V: mean reward of the task's roots,

and s_k^2 is the trace of the covariance of g at token k. Rules then share out a budget by rank: of
K tokens the best gets K shares, the last one. The variance per branch of a rule is

    v = 1 / K^2 * sum over k of s_k^2 / w_k,            w_k: its shares over all shares,

which for equal shares is the mean of s_k^2. Intervals are 95 %, from resampled tasks. What follows
from the tokens alone is measured; that APPO's gradient is a sum of such terms is not claimed.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import variance
from typing import Any, NamedTuple

import torch

from learners import appo
from learners.config import Evaluation
from learners.console import Console, parse_options, report_errors
from learners.errors import UsageError
from learners.intervals import Interval
from learners.policy import Policy, TokenStats
from learners.rl import branching, clipped_policy_loss, group_normalised, own_mask, sequence_mean
from learners.runs import Run, Session, make_training_env, open_session
from learners.tree import BranchPoint, RolloutTree, Row, Trajectory, usable

METHOD = "learners.branching_variance"


@dataclass(frozen=True)
class Config(appo.Config):
    """Fields of the measurement; the others are APPO's."""

    tasks: int = 24
    """Tasks whose roots are branched; as many move the policy before."""
    points: int = 8
    """K: tokens drawn from each root."""
    repeats: int = 6
    """Branches from each of them."""
    quick: bool = False
    """6 tasks, 2 roots, 4 points, 3 repeats: about a minute with the tiny policy."""
    evaluation: Evaluation = field(default_factory=lambda: Evaluation(eval_tasks=0))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with report_errors(METHOD, arguments):
        config = parse_options(METHOD, Config.at("laptop"), arguments, __doc__)
        roots = measure(config)
        report(roots, config.options(), Path(config.training.out) if config.training.out else None)


def measure(config: Config) -> list[Root]:
    """Move the policy on half of the tasks; branch the roots of the other half.

    Raises:
        UsageError: all rewards were equal, so that nothing moved the policy.
    """
    if config.quick:
        config = replace(config, tasks=6, initial_rollouts=2, points=4, repeats=3)
    config = config.override(prompts=2 * config.tasks)
    env = make_training_env(config)
    try:
        session = open_session(config, env, Path(config.training.out or "."), None)
        return measured(session, config)
    finally:
        env.close()


def measured(session: Session, config: Config) -> list[Root]:
    """The measurement on an open session; see `measure`."""
    run = session.run
    trees = run.new_trees(session.tasks_of(0), roots=config.initial_rollouts)
    run.rollout(trees)
    moving, resting = usable(trees[: config.tasks]), usable(trees[config.tasks :])
    roots = [root for tree in [*moving, *resting] for root in tree.roots]
    run.trainer.remember_old_logprobs(roots)
    gamma, clip = config.discount, config.future_clip
    noise = branching.omega_spread(roots, run.trainer.token_stats(roots), gamma, clip)
    move(run, moving, config)
    stats = run.trainer.token_stats([root for tree in resting for root in tree.roots])
    drawn = {}
    for tree in resting:
        draw = run.draw(f"points/{tree.name}")
        for root in tree.roots:
            own = branching.own_tokens(root).tolist()
            drawn[root] = sorted(draw.sample(own, min(config.points, len(own))))
            for position in drawn[root]:
                for _ in range(config.repeats):
                    tree.fork(BranchPoint(root, position))
    resting = run.rollout(resting)
    return [
        _root(session, tree, root, drawn[root], stats[root], config, noise)
        for tree in resting
        for root in drawn
        if root in tree.roots and len(drawn[root]) > 1
    ]


def move(run: Run, trees: Sequence[RolloutTree], config: Config) -> None:
    """Updates as GRPO makes them, mini-batch after mini-batch."""
    before = run.trainer.updates
    for batch in run.minibatches(trees):
        rows = group_normalised(batch)
        run.update_by(rows, sequence_mean, partial(clipped_policy_loss, config=config))
    if run.trainer.updates == before:
        raise UsageError(
            f"all rollouts of {len(trees)} tasks earned the same, so nothing moves the policy; "
            "give a --model that is right now and then, or more --tasks"
        )


def _root(
    session: Session,
    tree: RolloutTree,
    root: Trajectory,
    positions: Sequence[int],
    stats: TokenStats,
    config: Config,
    noise: float,
) -> Root:
    """The points of a root: how their branches differ, and how rules rank them."""
    omega = branching.defined_omega(root, stats, config.discount, config.future_clip, noise)
    scores = branching.token_scores(root, stats, omega)
    ranks: defaultdict[int, dict[str, int]] = defaultdict(dict)
    rules: tuple[branching.Rule, ...] = ("score", "entropy", "future")
    for rule in rules:
        draw = session.run.draw(f"{rule}/{tree.name}/{root.path}")
        ranked = branching.candidates(root, scores, rule, "before", draw, Counter())
        ordered = [c.point.position for c in ranked if c.point.position in set(positions)]
        for rank, position in enumerate(ordered):
            ranks[position][rule] = rank
    value = sum(one.reward for one in tree.roots) / len(tree.roots)
    points = []
    for position in positions:
        branches = [b for b in tree.branches if b.parent and b.parent[:2] == (root, position)]
        points.append(
            Point(
                gradient_variance(session.policy, branches, value),
                variance([branch.reward for branch in branches]),
                ranks[position],
            )
        )
    return Root(tree.task.id, points, omega is not None)


def gradient_variance(policy: Policy, branches: Sequence[Trajectory], value: float) -> float:
    """Trace of the covariance of (R - value) grad log pi over branches from one token."""
    total, squares = torch.zeros(()), 0.0
    for branch in branches:
        if branch.reward == value:
            continue  # its gradient is 0
        row = Row(branch, torch.zeros(len(branch)))
        weight = own_mask(branch).double() * (branch.reward - value)
        gradient = policy.gradient(
            [row], [weight], lambda logprobs, batch: (logprobs * batch.weights).sum()
        )
        total = total + gradient
        squares += float(gradient.square().sum())
    count = len(branches)
    return max(0.0, (squares - float(total.square().sum()) / count) / (count - 1))


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
    Console().say(table)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        rows = [root._asdict() | {"points": [p._asdict() for p in root.points]} for root in roots]
        content = json.dumps({"config": dict(config), "roots": rows}, indent=1)
        (folder / "branching_variance.json").write_text(content)


if __name__ == "__main__":
    main()
