"""Measure APPO's Theorem 1: does branching where its score is high make gradients less noisy?

    python -m learners.branching_variance --model runs/start --quick

The theorem: with n_k branches at each of K decision points, the variance of the summed estimate is
sum s_k^2 / n_k, and distributing branches by s_k beats distributing them equally. APPO assumes that
s_k grows with its score. This command updates the policy on the roots of some tasks; on the roots
of other tasks it draws K tokens each and branches every one `repeats` times. A branch's gradient is

    g = (R - V) grad sum log pi(its own tokens),        V: mean reward of the task's roots,

and s_k^2 is the trace of the covariance of g at token k. Each rule then distributes a budget by
rank: the best of K tokens gets K shares, the last one gets 1. A rule's variance per branch is

    v = 1 / K^2 * sum over k of s_k^2 / w_k,            w_k: the token's share of the budget,

which is the mean of s_k^2 if all shares are equal. Intervals are 95 %, from resampled tasks. The
measurement is about single tokens; it does not claim that APPO's gradient is a sum of such terms.
"""

from __future__ import annotations

import json
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
from learners.intervals import Interval, percentile_interval, resample
from learners.policy import Policy, TokenStats
from learners.rl import branching, clipped_policy_loss, normalise_groups, own_mask, sequence_mean
from learners.runs import Run, Session, make_training_env, open_session
from learners.tree import BranchPoint, RolloutTree, Row, Trajectory, usable

METHOD = "learners.branching_variance"


@dataclass(frozen=True)
class Config(appo.Config):
    """Options of the measurement, besides APPO's."""

    tasks: int = 24
    """Tasks whose roots are branched, after updates on the same number of other tasks."""
    points: int = 8
    """K: tokens drawn from each root."""
    repeats: int = 6
    """Branches from each of these tokens."""
    quick: bool = False
    """Use 6 tasks, 2 roots, 4 points and 3 repeats: about a minute with the tiny policy."""
    evaluation: Evaluation = field(default_factory=lambda: Evaluation(eval_tasks=0))


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure and report."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with report_errors(METHOD, arguments):
        config = parse_options(METHOD, Config.at("laptop"), arguments, __doc__)
        roots = measure(config)
        report(roots, config.options(), Path(config.training.out) if config.training.out else None)


def measure(config: Config) -> list[Root]:
    """Update the policy on half of the tasks; branch the roots of the other half.

    Raises:
        UsageError: all rewards were equal, so no update changed the policy.
    """
    if config.quick:
        config = replace(config, tasks=6, initial_rollouts=2, points=4, repeats=3)
    config = config.override(prompts=2 * config.tasks)
    env = make_training_env(config)
    try:
        session = open_session(config, env, Path(config.training.out or "."), None)
        return measure_session(session, config)
    finally:
        env.close()


def measure_session(session: Session, config: Config) -> list[Root]:
    """Measure on an open session; see `measure`."""
    run = session.run
    trees = run.new_trees(session.tasks_of(0), roots=config.initial_rollouts)
    run.rollout(trees)
    update_trees, branch_trees = usable(trees[: config.tasks]), usable(trees[config.tasks :])
    roots = [root for tree in [*update_trees, *branch_trees] for root in tree.roots]
    run.trainer.remember_old_logprobs(roots)
    gamma, clip = config.discount, config.future_clip
    noise = branching.omega_spread(roots, run.trainer.token_stats(roots), gamma, clip)
    move_policy(run, update_trees, config)
    stats = run.trainer.token_stats([root for tree in branch_trees for root in tree.roots])
    positions: dict[Trajectory, list[int]] = {}
    for tree in branch_trees:
        draw = run.draw(f"points/{tree.name}")
        for root in tree.roots:
            tokens = branching.own_tokens(root).tolist()
            positions[root] = sorted(draw.sample(tokens, min(config.points, len(tokens))))
            for position in positions[root]:
                for _ in range(config.repeats):
                    tree.fork(BranchPoint(root, position))
    branch_trees = run.rollout(branch_trees)
    # A single point leaves the rules nothing to rank.
    return [
        _measure_root(session, tree, root, positions[root], stats[root], config, noise)
        for tree in branch_trees
        for root in positions
        if root in tree.roots and len(positions[root]) > 1
    ]


def move_policy(run: Run, trees: Sequence[RolloutTree], config: Config) -> None:
    """Update the policy as GRPO does, so that APPO's score is defined.

    Raises:
        UsageError: no update changed it.
    """
    before = run.trainer.updates
    for batch in run.minibatches(trees):
        rows = normalise_groups(batch)
        run.update_by(rows, sequence_mean, partial(clipped_policy_loss, config=config))
    if run.trainer.updates == before:
        raise UsageError(
            f"all rollouts of {len(trees)} tasks earned the same, so no update moves the policy; "
            "give a --model that is sometimes right, or more --tasks"
        )


def _measure_root(
    session: Session,
    tree: RolloutTree,
    root: Trajectory,
    positions: Sequence[int],
    stats: TokenStats,
    config: Config,
    noise: float,
) -> Root:
    """Measure how the branches of a root's points differ, and rank the points by each rule."""
    omega = branching.defined_omega(root, stats, config.discount, config.future_clip, noise)
    scores = branching.score_tokens(root, stats, omega)
    ranks: defaultdict[int, dict[str, int]] = defaultdict(dict)
    rules: tuple[branching.Rule, ...] = ("score", "entropy", "future")
    for rule in rules:
        draw = session.run.draw(f"{rule}/{tree.name}/{root.path}")
        ranked = branching.rank_candidates(root, scores, rule, "before", draw, Counter())
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
    """Estimate the trace of the covariance of (R - value) grad log pi over a token's branches."""
    total, squares = torch.zeros(()), 0.0
    for branch in branches:
        if branch.reward == value:
            continue  # a zero gradient adds nothing to either sum
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
"""Rules that are compared; uniform gives equal shares."""


RESAMPLES = 2000


class Point(NamedTuple):
    """A token that was branched at."""

    gradient_variance: float
    """s_k^2."""
    reward_variance: float
    ranks: dict[str, int]
    """Rank by each rule; 0 is the best of its root."""


class Root(NamedTuple):
    """A root with the points measured on it."""

    task: str
    points: list[Point]
    defined: bool
    """True if it had a branching score; otherwise the rule `score` ranks by entropy."""


def per_branch(root: Root, rule: str) -> float:
    """Return v: the variance per branch if a rule distributes a budget over a root's points."""
    count = len(root.points)
    shares = count * (count + 1) / 2
    total = 0.0
    for point in root.points:
        share = 1 / count if rule == "uniform" else (count - point.ranks[rule]) / shares
        total += point.gradient_variance / share
    return total / count**2


def best_over_all(root: Root, rule: str) -> tuple[float, float]:
    """Return the mean s_k^2 of the better half of a root's points by a rule, and of all points."""
    count = len(root.points)
    mean = sum(point.gradient_variance for point in root.points) / count
    if rule == "uniform":
        return mean, mean
    half = max(1, count // 2)
    best = [point.gradient_variance for point in root.points if point.ranks[rule] < half]
    return sum(best) / half, mean


def ratio(
    roots: Sequence[Root], above: Callable[[Root], float], below: Callable[[Root], float]
) -> Interval:
    """Ratio of two sums over roots, with its 95 % interval from resampled tasks."""
    tasks: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for root in roots:
        tasks[root.task][0] += above(root)
        tasks[root.task][1] += below(root)
    pairs = list(tasks.values())

    def quotient(sample: Sequence[Sequence[float]]) -> float:
        bottom = sum(pair[1] for pair in sample)
        return sum(pair[0] for pair in sample) / bottom if bottom else 1.0

    return percentile_interval(
        quotient(pairs), [quotient(sample) for sample in resample(pairs, RESAMPLES)]
    )


def report(roots: Sequence[Root], config: Mapping[str, Any], folder: Path | None = None) -> None:
    """Print the table; with a folder, write the points there as JSON."""
    from rich.table import Table

    points = [point for root in roots for point in root.points]
    varied = sum(point.gradient_variance > 0 for point in points)
    table = Table(
        title=f"{len({root.task for root in roots})} tasks, {len(roots)} roots "
        f"({sum(root.defined for root in roots)} with a score), {len(points)} points, "
        f"{varied} of them with a variance above 0; 95 % intervals"
    )
    for column in ("branching", "variance per branch", "over uniform", "best half over all"):
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
