"""GRPO, Group Relative Policy Optimization (arXiv 2402.03300).

A_i = (R_i - mean) / (std + 1e-6) over the rollouts of a prompt, the same for all tokens of a
rollout; the clipped surrogate, averaged over the tokens of each rollout, then over rollouts. No KL.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from benchmarks import Task
from learners.config import RunConfig
from learners.rl import clipped_policy_loss as policy_loss
from learners.rl import normalise_groups, sequence_mean
from learners.runs import Run


@dataclass(frozen=True)
class Config(RunConfig):
    """GRPO's own fields."""

    rollouts: int = 16
    """G: rollouts per prompt. [paper: 64; 16 as the other methods]"""
    clip_low: float = 0.2
    """eps: the ratio is kept above 1 - clip_low. [verl, TRL: 0.2]"""
    clip_high: float = 0.2
    """eps: the ratio is kept below 1 + clip_high. [verl, TRL: 0.2]"""


def iteration(tasks: list[Task], run: Run, config: Config) -> None:
    """One training step."""
    run.sample_and_update(
        tasks,
        roots=config.rollouts,
        advantages=normalise_groups,
        weights=sequence_mean,
        loss=partial(policy_loss, config=config),
    )


if __name__ == "__main__":
    from learners.runs import main

    main("learners.grpo")
