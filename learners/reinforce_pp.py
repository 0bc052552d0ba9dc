"""REINFORCE++ and its baseline variant (arXiv 2501.03262).

A_t = (G_t - mean) / sqrt(var + 1e-8) over all sampled tokens of the iteration, not of a prompt.
G_t is the discounted reward; `--baseline group` first subtracts the mean of the prompt's rollouts.
The clipped surrogate is averaged over all tokens. REINFORCE++'s KL term, k1 in the reward of each
token, is `--kl-reward`; the variant's, in the loss, is `--kl 0.001 --kl-estimator k2`. With both
`--baseline group` and `--kl-reward` the mean is that of rewards without the term [OpenRLHF].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from benchmarks import Task
from learners.rl import (
    KlRewardConfig,
    has_variance,
    suffix_sum,
    token_mean,
    token_penalties,
    with_reference,
)
from learners.rl import clipped_policy_loss as policy_loss
from learners.runs import Run
from learners.tree import RolloutTree, Row


@dataclass(frozen=True)
class Config(KlRewardConfig):
    """REINFORCE++'s own fields."""

    rollouts: int = 16
    """Rollouts per prompt; 1 is enough without a baseline. [OpenRLHF's scripts: 8]"""
    baseline: Literal["none", "group"] = "none"
    """none: REINFORCE++; group: REINFORCE++-baseline. [paper has both]"""
    discount: float = 1.0
    """gamma, per sampled token; observed tokens do not count. [paper: 1]"""
    clip_low: float = 0.2
    """eps: the ratio is kept above 1 - clip_low. [verl: 0.2]"""
    clip_high: float = 0.2
    """eps: the ratio is kept below 1 + clip_high. [verl: 0.2]"""


def iteration(tasks: list[Task], run: Run, config: Config) -> None:
    """One training step."""
    credit = partial(normalise_batch, config=config)
    run.sample_and_update(
        tasks,
        roots=config.rollouts,
        advantages=with_reference(
            credit, run.trainer.remember_reference_logprobs, run.recorder.note, config.kl_reward
        ),
        weights=token_mean,
        loss=partial(policy_loss, config=config),
    )


def normalise_batch(trees: Sequence[RolloutTree], config: Config) -> list[Row]:
    """Make a row for every trajectory, whitened over all of them; 0 if all tokens earn the same."""
    trajectories = [t for tree in trees for t in tree.trajectories]
    returns = [values for tree in trees for values in token_returns(tree, config)]
    masks = [t.tensors.mask for t in trajectories]
    advantages = whiten(returns, masks)
    return [Row(t, a.float()) for t, a in zip(trajectories, advantages, strict=True)]


def token_returns(tree: RolloutTree, config: Config) -> list[Tensor]:
    """(T,) per trajectory: the return G_t of its sampled tokens; 0 on observations."""
    mean = sum(t.reward for t in tree.trajectories) / len(tree.trajectories)
    has_baseline = config.baseline == "group" and len(tree.trajectories) > 1
    returns = []
    for trajectory in tree.trajectories:
        mask = trajectory.tensors.mask
        rewards = 0.0 - token_penalties(trajectory, config.kl_reward)
        rewards[mask.nonzero()[-1]] += trajectory.reward - (mean if has_baseline else 0.0)
        returns.append(rewards_to_go(rewards, mask, config.discount))
    return returns


def rewards_to_go(rewards: Tensor, mask: Tensor, discount: float) -> Tensor:
    """(T,) discounted sum of rewards from each sampled token on; observations are not counted."""
    returns = torch.zeros_like(rewards)
    returns[mask] = suffix_sum(rewards[mask], discount)
    return returns


def whiten(values: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
    """Whiten rows by the statistics of all their trained tokens together; 0 on other tokens."""
    trained = torch.cat([v[m] for v, m in zip(values, masks, strict=True)])
    if not has_variance(trained):
        return [torch.zeros_like(v) for v in values]
    scale = (trained.var() + 1e-8).rsqrt()
    return [(v - trained.mean()) * scale * m for v, m in zip(values, masks, strict=True)]


if __name__ == "__main__":
    from learners.runs import main

    main("learners.reinforce_pp")
