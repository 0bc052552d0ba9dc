"""Tree-GRPO, tree search for agents with group-relative advantages (arXiv 2509.21240).

Every prompt gets M trees. A tree starts as one rollout and is expanded L times: N of its steps are
drawn with replacement, and a new rollout continues from each to its end. The prompt counts as a
step; the last step of a rollout does not. K of the 1 + N L leaves, drawn at random, are trained on:

    A_i = (R_i - mean) / (std + 1e-6) over the leaves of the prompt
        + (R_i - mean) / (std + 1e-6) over the leaves of its tree

the same for all tokens; the clipped surrogate, averaged over all tokens. A tree of one leaf, or of
equal ones, adds nothing; the published code adds the raw reward of a single leaf. A step is a turn,
the policy's text and the tool's answer. The script's KL term is `--kl 0.001`; the entropy bonus of
the published configuration is left out.
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
from learners.rl import normalise, token_mean
from learners.runs import Run
from learners.tree import BranchPoint, RolloutTree, Row, Trajectory


@dataclass(frozen=True)
class Config(RunConfig):
    """Tree-GRPO's own fields."""

    rollouts: int = 16
    """M (1 + N L): leaves per prompt, which sets N; a remainder goes to the first trees. [script:
    6, N 2; 16 as the other methods]"""
    initial_rollouts: int = 4
    """M: trees per prompt. [script: 2 of 6 leaves]"""
    expansions: int = 1
    """L: expansions of a tree; later ones draw from the steps of earlier ones too. [script: 1]"""
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
        advantages=partial(credit_leaves, keep=config.kept_leaves, draw=draws.__getitem__),
        weights=token_mean,
        loss=partial(policy_loss, config=config),
    )


def expand(tree: RolloutTree, number: int, config: Config, draw: random.Random) -> None:
    """Start the new rollouts of one of the L expansions.

    Args:
        tree: of a prompt, with finished rollouts only; mutated.
        number: of the expansion, from 0.
        config: has the budget.
        draw: for the steps that they continue from.
    """
    roots = tree.roots
    budget = config.rollouts - len(roots)
    share, remainder = divmod(budget, config.expansions * len(roots))
    for index, root in enumerate(roots):
        count = share + (number * len(roots) + index < remainder)
        for point in draw.choices(step_points(leaves(tree, root)), k=count):
            tree.fork(point)


def leaves(tree: RolloutTree, root: Trajectory) -> list[Trajectory]:
    """Return the rollouts of one of the M trees."""
    return [t for t in tree.trajectories if t.path[0] == root.path[0]]


def step_points(trajectories: Sequence[Trajectory]) -> list[BranchPoint]:
    """Return the points at which a rollout may leave one of the M trees.

    These are the prompt and the end of every step but the last of each rollout. A step that
    rollouts share counts once.
    """
    points = {0: BranchPoint(trajectories[0], 0)}  # by the turn's identity; 0 is the prompt
    for trajectory in trajectories:
        position = 0
        for turn in trajectory.turns[:-1]:
            position += len(turn)
            points.setdefault(id(turn), BranchPoint(trajectory, position))
    return list(points.values())


def credit_leaves(
    trees: Sequence[RolloutTree], keep: int | None, draw: Callable[[RolloutTree], random.Random]
) -> list[Row]:
    """Make a row for every leaf that is trained on.

    Args:
        trees: of a prompt each; its M trees are those of its roots.
        keep: K.
        draw: gives the generator of a tree, for pruning.
    """
    rows = []
    for tree in trees:
        groups = [prune(leaves(tree, root), keep, draw(tree)) for root in tree.roots]
        rewards = [torch.tensor([t.reward for t in group], dtype=torch.float64) for group in groups]
        advantages = leaf_advantages(rewards).tolist()
        for trajectory, advantage in zip(chain(*groups), advantages, strict=True):
            rows.append(Row(trajectory, torch.full((len(trajectory),), advantage)))
    return rows


def leaf_advantages(rewards: Sequence[Tensor]) -> Tensor:
    """(n,) advantages of all leaves of a prompt, in the order of its trees.

    Args:
        rewards: (k,) of the leaves of each tree.
    """
    return normalise(torch.cat(list(rewards))) + torch.cat([normalise(group) for group in rewards])


def prune(
    trajectories: Sequence[Trajectory], keep: int | None, draw: random.Random
) -> list[Trajectory]:
    """Draw K trajectories at random and return them in their order; all if there are no more."""
    if keep is None or keep >= len(trajectories):
        return list(trajectories)
    chosen = draw.sample(range(len(trajectories)), keep)
    return [trajectories[i] for i in sorted(chosen)]


if __name__ == "__main__":
    from learners.runs import main

    main("learners.tree_grpo")
