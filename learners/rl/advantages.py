"""Advantage estimators that two or more methods share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter

import torch
from torch import Tensor

from learners.rl.losses import STD_FLOOR, zscore
from learners.tree import RolloutTree, Row, Trajectory


def normalise_groups(trees: Sequence[RolloutTree]) -> list[Row]:
    """Credit (R - mean) / (std + 1e-6) within each tree, the same for every token of a rollout.

    The deviation is the sample's. A tree of one, or of equal rewards, teaches nothing: its rows
    have advantage 0 and count in the mean of a loss, as in the reference implementations.
    """
    return credit_groups(trees, normalise)


def credit_groups(
    trees: Sequence[RolloutTree],
    estimator: Callable[[Tensor], Tensor],
    reward: Callable[[Trajectory], float] = attrgetter("reward"),
) -> list[Row]:
    """Make a row for every trajectory, with the same advantage for every token.

    Args:
        trees: each is a group.
        estimator: rewards of a group (n,) in float64 -> advantages (n,).
        reward: of a trajectory.
    """
    rows = []
    for tree in trees:
        rewards = torch.tensor([reward(t) for t in tree.trajectories], dtype=torch.float64)
        for trajectory, advantage in zip(
            tree.trajectories, estimator(rewards).tolist(), strict=True
        ):
            rows.append(Row(trajectory, torch.full((len(trajectory),), advantage)))
    return rows


def normalise(rewards: Tensor, floor: float = STD_FLOOR) -> Tensor:
    """(n,) (R - mean) / (std + floor), sample deviation; 0 in a group of one or of equals."""
    if not has_variance(rewards):
        return torch.zeros_like(rewards)
    return zscore(rewards, correction=1, floor=floor)


def centre(rewards: Tensor) -> Tensor:
    """(n,) R - mean; 0 in a group of one or of equals."""
    return rewards - rewards.mean() if has_variance(rewards) else torch.zeros_like(rewards)


def leave_one_out(rewards: Tensor) -> Tensor:
    """(n,) R - mean of the others' rewards; 0 in a group of one or of equals."""
    return centre(rewards) * len(rewards) / max(len(rewards) - 1, 1)


def has_variance(values: Tensor) -> bool:
    """True if two values differ. A deviation cannot tell: that of equal values is rounding."""
    return len(values) > 1 and bool(values.max() != values.min())
