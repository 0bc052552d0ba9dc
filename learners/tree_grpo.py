"""Tree-GRPO, tree search for agents with group-relative advantages (arXiv 2509.21240).

Every prompt gets M trees. A tree starts as one rollout; L times, N of its steps are drawn with
replacement, the prompt and every step but the last of each rollout, and a new rollout goes on from
each to its end. Of the 1 + N L leaves, K drawn at random are kept. Every kept leaf is a row:

    A_i = (R_i - mean) / (std + 1e-6) over the leaves of the prompt
        + (R_i - mean) / (std + 1e-6) over the leaves of its tree

the same for all tokens; the clipped surrogate, averaged over all tokens. A tree of one leaf, or of
equal ones, adds nothing; the published code adds the raw reward of a single leaf. A step is a turn:
what the policy wrote and what the tool answered. The script's KL term is `--kl 0.001`; the entropy
bonus of the published configuration is left out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from benchmarks import Task
from learners.config import RunConfig, validate_initial_rollouts
from learners.rl import dual_clipped_policy_loss as policy_loss
from learners.rl import normalised, token_mean
from learners.runs import Run
from learners.tree import BranchPoint, RolloutTree, Row, Trajectory


@dataclass(frozen=True)
class Config(RunConfig):
    """Tree-GRPO's own fields."""

    rollouts: int = 16
    """M (1 + N L): leaves per prompt, which decides N; what does not divide goes to the first
    trees. [script: 6, N 2; 16 as the other methods]"""
    initial_rollouts: int = 4
    """M: trees per prompt. [script: 2 of 6 leaves]"""
    expansions: int = 1
    """L: how often a tree is expanded; later ones draw from earlier ones' steps. [script: 1]"""
    kept_leaves: int | None = None
    """K: leaves of a tree that are trained on; None: all. [script: 3, which is all]"""
    clip_low: float = 0.2
    """The ratio is kept above 1 - clip_low. [script: 0.2]"""
    clip_high: float = 0.2
    """The ratio is kept below 1 + clip_high. [script: 0.2]"""
    dual_clip: float = 3.0
    """c: where A < 0 the loss is at most -c A; inf: none. [verl, scripts: 3]"""

    def validate(self) -> None:
        """Check option values. Raises UsageError if one is out of range."""
        super().validate()
        validate_initial_rollouts(self.initial_rollouts, self.rollouts)


def iteration(tasks: list[Task], run: Run, config: Config) -> None:
    """One training step."""
    trees = run.new_trees(tasks, roots=config.initial_rollouts)
    draws = {tree: run.draw(tree.name) for tree in trees}
    trees = run.rollout(trees)
    for number in range(config.expansions):
        for tree in trees:
            expand(tree, number, config, draws[tree])
        trees = run.rollout(trees)
    run.credit_and_update(
        trees,
        advantages=partial(two_level, keep=config.kept_leaves, draw=draws.__getitem__),
        weights=token_mean,
        loss=partial(policy_loss, config=config),
    )


def expand(tree: RolloutTree, number: int, config: Config, draw: random.Random) -> None:
    """Start the new rollouts of one of the L expansions.

    Args:
        tree: of a prompt, with finished rollouts only; mutated.
        number: of the expansion, from 0.
        config: budget.
        draw: decides where they leave.
    """
    roots = tree.roots
    budget = config.rollouts - len(roots)
    each, remainder = divmod(budget, config.expansions * len(roots))
    for index, root in enumerate(roots):
        count = each + (number * len(roots) + index < remainder)
        for point in draw.choices(steps(leaves(tree, root)), k=count):
            tree.fork(point)


def leaves(tree: RolloutTree, root: Trajectory) -> list[Trajectory]:
    """The rollouts of one of the M trees."""
    return [t for t in tree.trajectories if t.path[0] == root.path[0]]


def steps(trajectories: Sequence[Trajectory]) -> list[BranchPoint]:
    """Where a rollout may leave one of the M trees: the prompt, and after each step not the last.

    A step that rollouts share counts once.
    """
    points = {0: BranchPoint(trajectories[0], 0)}
    for trajectory in trajectories:
        position = 0
        for turn in trajectory.turns[:-1]:
            position += len(turn)
            points.setdefault(id(turn), BranchPoint(trajectory, position))
    return list(points.values())


def two_level(
    trees: Sequence[RolloutTree], keep: int | None, draw: Callable[[RolloutTree], random.Random]
) -> list[Row]:
    """A row for every kept leaf.

    Args:
        trees: of a prompt each; its M trees are those of its roots.
        keep: K.
        draw: decides which leaves are kept.
    """
    rows = []
    for tree in trees:
        kept = [pruned(leaves(tree, root), keep, draw(tree)) for root in tree.roots]
        earned = [torch.tensor([t.reward for t in group], dtype=torch.float64) for group in kept]
        found = leaf_advantages(earned)
        for trajectory, advantage in zip(chain(*kept), found.tolist(), strict=True):
            rows.append(Row(trajectory, torch.full((len(trajectory),), advantage)))
    return rows


def leaf_advantages(rewards: Sequence[Tensor]) -> Tensor:
    """(n,) of all leaves of a prompt, in the order of its trees.

    Args:
        rewards: (k,) of the leaves of each tree.
    """
    return normalised(torch.cat(list(rewards))) + torch.cat([normalised(own) for own in rewards])


def pruned(
    trajectories: Sequence[Trajectory], keep: int | None, draw: random.Random
) -> list[Trajectory]:
    """K of them at random, in their order."""
    if keep is None or keep >= len(trajectories):
        return list(trajectories)
    chosen = draw.sample(range(len(trajectories)), keep)
    return [trajectories[i] for i in sorted(chosen)]


if __name__ == "__main__":
    from learners.runs import main

    main("learners.tree_grpo")
