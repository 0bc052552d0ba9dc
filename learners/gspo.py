"""GSPO, Group Sequence Policy Optimization (arXiv 2507.18071).

A_i = (R_i - mean) / (std + 1e-6) over the rollouts of a prompt, the same for all tokens of a
rollout; the clipped surrogate of the rollout's ratio, the geometric mean s of its tokens' ratios;
averaged over the tokens of each rollout, then over rollouts. No KL. Each token's loss has s in
value and its own log-probability in gradient (GSPO-token), which for equal advantages is the
gradient of s. A rollout with tool results is one sequence: s is over the tokens that the policy
sampled in all of its turns; observed tokens have no ratio.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from benchmarks import Task
from learners.config import RunConfig
from learners.policy import Batch
from learners.rl import clipped_losses, normalise_groups, sequence_log_ratio, sequence_mean
from learners.runs import Run

LARGEST_LOG_RATIO = 10.0
"""log s is cut to it, without gradient beyond. [verl]"""


@dataclass(frozen=True)
class Config(RunConfig):
    """GSPO's own fields."""

    rollouts: int = 16
    """G: rollouts per prompt. [16 as the other methods]"""
    clip_low: float = 3e-4
    """s is kept above 1 - clip_low; about 1000 times smaller than for single tokens. [sec. 5.1]"""
    clip_high: float = 4e-4
    """s is kept below 1 + clip_high. [sec. 5.1]"""


def iteration(tasks: list[Task], run: Run, config: Config) -> None:
    """One training step."""
    run.sample_and_update(
        tasks,
        roots=config.rollouts,
        advantages=normalise_groups,
        weights=sequence_mean,
        loss=partial(policy_loss, config=config),
    )


def policy_loss(logprobs: Tensor, batch: Batch, config: Config) -> Tensor:
    """Return the clipped surrogate of a micro-batch's rollouts."""
    log_ratio = sequence_log_ratio(
        logprobs, batch.old_logprobs, batch.response_mask, LARGEST_LOG_RATIO
    )
    loss = clipped_losses(log_ratio, batch.advantages, config.clip_low, config.clip_high)
    return (loss * batch.weights).sum()


if __name__ == "__main__":
    from learners.runs import main

    main("learners.gspo")
