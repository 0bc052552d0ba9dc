"""GiGPO, Group-in-Group Policy Optimization (arXiv 2505.10978), on whole trajectories.

    A = A_episode + w A_step
    A_episode = (R - mean) / (std + 1e-6) over the rollouts of a prompt
    A_step = (G - mean) / (std + 1e-6) over the turns of a prompt's rollouts that start from the
        same anchor: the last tool result, or the question; G = gamma^(turns to come) R

The tokens of a turn share its advantage; the clipped surrogate, averaged over all tokens. The paper
has a row per turn with a prompt built anew; a row here is a trajectory. Episode statistics count
each trajectory once, as in the paper. A step group of one gets 0. The paper's KL term is
`--kl 0.01`, in its search experiments 0.001. Its penalty on invalid actions is left out: the
environment's reward has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from benchmarks import Task
from learners.config import RunConfig
from learners.rl import centre, normalise, suffix_sum, token_mean
from learners.rl import dual_clipped_policy_loss as policy_loss
from learners.runs import Run
from learners.tree import RolloutTree, Row, Trajectory


@dataclass(frozen=True)
class Config(RunConfig):
    """GiGPO's own fields."""

    rollouts: int = 16
    """Rollouts per prompt. [search script: 5; 16 as the other methods]"""
    discount: float = 0.95
    """gamma, per turn. [paper: 0.95]"""
    step_weight: float = 1.0
    """w: weight of the step advantage. [paper: 1]"""
    divide_by: Literal["std", "none"] = "std"
    """std: both advantages are divided by their group's deviation; none: neither. [scripts]"""
    similarity: float = 1.0
    """Anchors at least this similar (difflib) share a group; 1: equal ones. [paper: 1; search:
    0.9]"""
    clip_low: float = 0.2
    """eps: the ratio is kept above 1 - clip_low. [code: 0.2]"""
    clip_high: float = 0.2
    """eps: the ratio is kept below 1 + clip_high. [code: 0.2]"""
    dual_clip: float = 3.0
    """c: where A < 0 the loss is at most -c A; inf: none. [verl, scripts: 3]"""


def iteration(tasks: list[Task], run: Run, config: Config) -> None:
    """One training step."""
    run.sample_and_update(
        tasks,
        roots=config.rollouts,
        advantages=partial(credit_trajectories, config=config),
        weights=token_mean,
        loss=partial(policy_loss, config=config),
    )


def credit_trajectories(trees: Sequence[RolloutTree], config: Config) -> list[Row]:
    """Make a row for every trajectory."""
    rows = []
    for tree in trees:
        advantages = tree_advantages(tree, config)
        rows += [Row(t, a) for t, a in zip(tree.trajectories, advantages, strict=True)]
    return rows


def tree_advantages(tree: RolloutTree, config: Config) -> list[Tensor]:
    """(T,) of every trajectory: its episode's advantage plus that of the token's turn."""
    rewards = torch.tensor([t.reward for t in tree.trajectories], dtype=torch.float64)
    episodes = normalise(rewards) if config.divide_by == "std" else centre(rewards)
    returns = torch.cat([step_returns(t, config.discount) for t in tree.trajectories])
    groups = step_groups([a for t in tree.trajectories for a in anchors(t)], config.similarity)
    counts = [len(t.turns) for t in tree.trajectories]
    steps = torch.split(step_advantages(returns, groups, config.divide_by), counts)
    advantages = []
    for trajectory, episode, turns in zip(tree.trajectories, episodes, steps, strict=True):
        lengths = torch.tensor([len(turn) for turn in trajectory.turns])
        combined = episode + config.step_weight * turns  # (K,)
        advantages.append(combined.repeat_interleave(lengths).float())
    return advantages


def step_returns(trajectory: Trajectory, discount: float) -> Tensor:
    """(K,) discounted return of each turn; the reward comes with the last one."""
    rewards = torch.zeros(len(trajectory.turns), dtype=torch.float64)
    rewards[-1] = trajectory.reward
    return suffix_sum(rewards, discount)


def anchors(trajectory: Trajectory) -> list[str]:
    """Return the last observation before each turn; "" stands for the question."""
    transcripts = [turn.state.transcript for turn in trajectory.turns]
    return [transcript[-1] if transcript else "" for transcript in transcripts]


def step_groups(anchors: Sequence[str], similarity: float) -> list[int]:
    """Return each turn's group number: it joins the first group whose first anchor is similar."""
    firsts: list[str] = []
    groups = []
    for anchor in anchors:
        similar = (i for i, first in enumerate(firsts) if _are_similar(first, anchor, similarity))
        group = next(similar, len(firsts))
        if group == len(firsts):
            firsts.append(anchor)
        groups.append(group)
    return groups


def _are_similar(first: str, second: str, similarity: float) -> bool:
    if first == second or similarity >= 1:
        return first == second
    matcher = SequenceMatcher(None, first, second)
    # The first two are upper bounds of the third, and cheap.
    bounds = (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio)
    return all(ratio() >= similarity for ratio in bounds)


def step_advantages(returns: Tensor, groups: Sequence[int], scale: str) -> Tensor:
    """(K,) advantages within each group of returns; 0 in a group of one."""
    numbers, advantages = torch.tensor(groups), torch.zeros_like(returns)
    for group in set(groups):
        members = numbers == group
        values = returns[members]
        advantages[members] = normalise(values) if scale == "std" else centre(values)
    return advantages


if __name__ == "__main__":
    from learners.runs import main

    main("learners.gigpo")
