"""RLOO, REINFORCE leave-one-out (arXiv 2402.14740).

A_i = R_i - mean of the prompt's other rewards, the same for all tokens of a rollout; the loss is
-A log pi, summed over the tokens of each rollout and averaged over rollouts: no ratio, no clip. A
rollout with tool results is one sequence: the tokens that the policy sampled in all of its turns.
The paper's KL term, k1 summed over the rollout and subtracted from R_i, is `--kl-reward`; `--kl`
adds one in the loss. With several mini-batches per iteration the later ones are off-policy and not
corrected, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from benchmarks import Task
from learners.policy import Batch
from learners.rl import (
    KlRewardConfig,
    credit_groups,
    leave_one_out,
    penalised_reward,
    sequence_sum,
    with_reference,
)
from learners.runs import Run


@dataclass(frozen=True)
class Config(KlRewardConfig):
    """RLOO's own fields."""

    rollouts: int = 16
    """k: rollouts per prompt. [paper: 2 and 4; 16 as the other methods]"""


def iteration(tasks: list[Task], run: Run, config: Config) -> None:
    """One training step."""
    reward = partial(penalised_reward, coefficient=config.kl_reward)
    credit = partial(credit_groups, estimator=leave_one_out, reward=reward)
    run.sample_and_update(
        tasks,
        roots=config.rollouts,
        advantages=with_reference(
            credit, run.trainer.remember_reference_logprobs, run.recorder.note, config.kl_reward
        ),
        weights=sequence_sum,
        loss=policy_loss,
    )


def policy_loss(logprobs: Tensor, batch: Batch) -> Tensor:
    """Return the REINFORCE loss of a micro-batch."""
    return -(batch.advantages * logprobs * batch.weights).sum()


if __name__ == "__main__":
    from learners.runs import main

    main("learners.rloo")
