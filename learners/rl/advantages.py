"""Advantage estimators that two or more methods share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter

import torch
from torch import Tensor

from learners.tree import RolloutTree, Row, Trajectory

STD_FLOOR = 1e-6
"""Added to a group's deviation, as the reference implementations do."""


def group_normalised(trees: Sequence[RolloutTree]) -> list[Row]:
    """(R - mean) / (std + 1e-6) within each tree, sample deviation, the same for every token.

    A tree of one, or of equal rewards, teaches nothing: its rows have advantage 0 and count in the
    mean of a loss, as in the reference implementations.
    """
    return by_group(trees, normalised)


def by_group(
    trees: Sequence[RolloutTree],
    credit: Callable[[Tensor], Tensor],
    reward: Callable[[Trajectory], float] = attrgetter("reward"),
) -> list[Row]:
    """A row for every trajectory, the same advantage for every token.

    Args:
        trees: each is a group.
        credit: rewards of a group (n,) in float64 -> advantages (n,).
        reward: of a trajectory.
    """
    rows = []
    for tree in trees:
        found = credit(torch.tensor([reward(t) for t in tree.trajectories], dtype=torch.float64))
        for trajectory, advantage in zip(tree.trajectories, found.tolist(), strict=True):
            rows.append(Row(trajectory, torch.full((len(trajectory),), advantage)))
    return rows


def normalised(rewards: Tensor, floor: float = STD_FLOOR) -> Tensor:
    """(n,) (R - mean) / (std + floor), sample deviation; 0 in a group of one or of equals."""
    if not differ(rewards):
        return torch.zeros_like(rewards)
    return (rewards - rewards.mean()) / (rewards.std() + floor)


def centred(rewards: Tensor) -> Tensor:
    """(n,) R - mean; 0 in a group of one or of equals."""
    return rewards - rewards.mean() if differ(rewards) else torch.zeros_like(rewards)


def leave_one_out(rewards: Tensor) -> Tensor:
    """(n,) R - mean of the others' rewards; 0 in a group of one or of equals."""
    return centred(rewards) * len(rewards) / max(len(rewards) - 1, 1)


def differ(rewards: Tensor) -> bool:
    """Whether two rewards differ; the deviation of equal ones is rounding, not 0."""
    return len(rewards) > 1 and bool(rewards.max() != rewards.min())
