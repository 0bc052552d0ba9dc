"""CISPO, Clipped Importance Sampling Policy Optimization (arXiv 2506.13585).

A_i = (R_i - mean) / (std + 1e-6) over the rollouts of a prompt, the same for all tokens of a
rollout; the loss is -w A log pi with the weight w = min(r, cap) held constant, so that no token
loses its gradient; averaged over all tokens. No KL.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from benchmarks import Task
from learners.config import RunConfig
from learners.policy import Batch
from learners.rl import Note, normalise_groups, note_capped_tokens, token_log_ratio, token_mean
from learners.runs import Run


@dataclass(frozen=True)
class Config(RunConfig):
    """CISPO's own fields."""

    rollouts: int = 16
    """G: rollouts per prompt. [16 as the other methods]"""
    ratio_cap: float = 5.0
    """1 + eps_high: bound on the weight of a token's ratio, with no lower one. [the paper gives no
    number; 4 to 8 work alike in ScaleRL, 5 is TRL's advice]"""


def iteration(tasks: list[Task], run: Run, config: Config) -> None:
    """One training step."""
    run.sample_and_update(
        tasks,
        roots=config.rollouts,
        advantages=normalise_groups,
        weights=token_mean,
        loss=partial(policy_loss, config=config, note=run.recorder.note),
    )


def policy_loss(logprobs: Tensor, batch: Batch, config: Config, note: Note | None = None) -> Tensor:
    """Return the weighted log-likelihood of a micro-batch; its value is not that of a surrogate.

    `note` takes the tokens whose weight is capped, whatever the sign of A.
    """
    if note is not None:
        note_capped_tokens(note, logprobs, batch, config.ratio_cap)
    log_ratio = token_log_ratio(logprobs.detach(), batch.old_logprobs)
    weight = log_ratio.exp().clamp(max=config.ratio_cap)
    loss = -weight * batch.advantages * logprobs
    return (loss * batch.weights).sum()


if __name__ == "__main__":
    from learners.runs import main

    main("learners.cispo")
