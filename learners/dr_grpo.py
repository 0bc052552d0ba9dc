"""Dr. GRPO, GRPO done right (arXiv 2503.20783).

A_i = R_i - mean over the rollouts of a prompt, the same for all tokens of a rollout; the clipped
surrogate, summed over tokens, divided by the limit of response tokens and averaged over rollouts.
It divides neither by the deviation nor by a rollout's own length. No KL.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from benchmarks import Task
from learners.config import RunConfig
from learners.rl import centre, credit_groups, sequence_sum
from learners.rl import clipped_policy_loss as policy_loss
from learners.runs import Run


@dataclass(frozen=True)
class Config(RunConfig):
    """Dr. GRPO's own fields."""

    rollouts: int = 16
    """G: rollouts per prompt. [16 as the other methods]"""
    clip_low: float = 0.2
    """eps: the ratio is kept above 1 - clip_low. [verl, TRL: 0.2]"""
    clip_high: float = 0.2
    """eps: the ratio is kept below 1 + clip_high. [verl, TRL: 0.2]"""


def iteration(tasks: list[Task], run: Run, config: Config) -> None:
    """One training step."""
    run.sample_and_update(
        tasks,
        roots=config.rollouts,
        advantages=partial(credit_groups, estimator=centre),
        weights=partial(sequence_sum, divisor=config.sampling.max_response_tokens),
        loss=partial(policy_loss, config=config),
    )


if __name__ == "__main__":
    from learners.runs import main

    main("learners.dr_grpo")
