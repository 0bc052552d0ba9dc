"""KL estimators, and the KL penalty in the reward that RLOO and REINFORCE++ have.

With the penalty a sampled token earns beta log(pi_old / pi_ref) less. The policy gradient is then
that of the expected reward minus beta KL(pi || pi_ref). Both policies are those at the start of the
step, so the penalty is a plain number; `--kl` adds another term, in the loss, with a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learners.config import Estimator, RunConfig
from learners.errors import UsageError
from learners.rl.losses import kl_k1, kl_k2, kl_k3
from learners.tree import RolloutTree, Row, Trajectory

Credit = Callable[[Sequence[RolloutTree]], list[Row]]
"""Finished trees -> the rows that are trained on."""

Note = Callable[[str, Sequence[float]], None]
"""Takes observations whose mean is a metric."""


@dataclass(frozen=True)
class KlRewardConfig(RunConfig):
    """The option of methods whose papers have the KL penalty in the reward."""

    kl_reward: float = 0.0
    """beta: every sampled token earns beta log(pi_old / pi_ref) less, the k1 estimate of the
    divergence from the initial model; --kl is separate, in the loss. [TRL's RLOO: 0.05; verl's
    examples: 0.001; 0 as the other methods]"""

    def validate(self) -> None:
        """Check option values. Raises UsageError if one is out of range."""
        super().validate()
        if self.kl_reward < 0:
            raise UsageError(f"--kl-reward {self.kl_reward:g} is below 0")

    @property
    def has_reference(self) -> bool:
        """True if log-probabilities under the initial model are needed."""
        return super().has_reference or self.kl_reward != 0


def with_reference(
    credit: Credit,
    remember_reference: Callable[[Sequence[Trajectory]], None],
    note: Note,
    coefficient: float,
) -> Credit:
    """Make a method's credit ask the reference first, and record the penalties.

    Args:
        credit: of a method; uses `token_penalties`.
        remember_reference: stores the reference's log-probabilities on trajectories.
        note: takes the penalty of each trajectory.
        coefficient: beta; 0: the reference is not asked.
    """

    def credit_with_reference(trees: Sequence[RolloutTree]) -> list[Row]:
        trajectories = [t for tree in trees for t in tree.trajectories]
        if coefficient:
            remember_reference(trajectories)
            penalties = [float(token_penalties(t, coefficient).sum()) for t in trajectories]
            note("reward/kl_penalty", penalties)
        return credit(trees)

    return credit_with_reference


def penalised_reward(trajectory: Trajectory, coefficient: float) -> float:
    """Return the reward of a rollout less the penalties of its tokens."""
    return trajectory.reward - float(token_penalties(trajectory, coefficient).sum())


def token_penalties(trajectory: Trajectory, coefficient: float) -> Tensor:
    """(T,) the KL penalty of each sampled token, in float64; 0 on observations."""
    mask = trajectory.tensors.mask
    if not coefficient:
        return torch.zeros(len(mask), dtype=torch.float64)
    old, reference = trajectory.old_logprobs, trajectory.reference_logprobs
    assert old is not None, "remember_old_logprobs before credit"
    assert reference is not None, "remember_reference_logprobs before credit"
    return k1_penalty(old.double(), reference.double(), mask, coefficient)


def k1_penalty(old: Tensor, reference: Tensor, mask: Tensor, coefficient: float) -> Tensor:
    """(..., T) beta (log pi_old - log pi_ref) where the mask is True, else 0."""
    return torch.where(mask, coefficient * kl_k1(old, reference), 0.0)


def divergence(logprobs: Tensor, reference: Tensor, estimator: Estimator) -> Tensor:
    """Estimate KL(current || reference) of every token, to be masked and averaged.

    k1 and k2 differ in value, not in gradient: the gradient of k1 itself is 0 in the mean, whatever
    the policies are, so that k1 trains with that of k2.

    Args:
        logprobs: (B, T) with gradient.
        reference: (B, T).
        estimator: k1, log(p / q); k2, its square halved; k3, q / p - log(q / p) - 1.
    """
    if estimator == "k3":
        return kl_k3(logprobs, reference)
    slope = kl_k2(logprobs, reference)
    if estimator == "k2":
        return slope
    return kl_k1(logprobs, reference).detach() + slope - slope.detach()
