"""Advantage estimators that two or more methods share."""

from collections.abc import Sequence

import torch

from learners.tree import RolloutTree, Row

STD_FLOOR = 1e-6
"""Added to a group's deviation, as the reference implementations do."""


def group_normalised(trees: Sequence[RolloutTree]) -> list[Row]:
    """(R - mean) / (std + 1e-6) within each tree, sample deviation, the same for every token.

    A tree of one, or of equal rewards, teaches nothing and gives no row.
    """
    rows = []
    for tree in trees:
        rewards = torch.tensor([t.reward for t in tree.trajectories], dtype=torch.float64)
        if len(rewards) < 2 or rewards.max() == rewards.min():
            continue
        scaled = (rewards - rewards.mean()) / (rewards.std() + STD_FLOOR)
        for trajectory, advantage in zip(tree.trajectories, scaled.tolist(), strict=True):
            rows.append(Row(trajectory, torch.full((len(trajectory),), advantage)))
    return rows
