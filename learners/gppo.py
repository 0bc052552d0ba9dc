"""GPPO, Gradient-Preserving clipping Policy Optimization (arXiv 2508.07629).

A_i = (R_i - mean) / (std + 1e-6) over the rollouts of a prompt, the same for all tokens of a
rollout; the clipped surrogate in value, but a clipped token keeps a gradient, with the bound in
place of the ratio (eqs. 11 and 12); averaged over all tokens. No KL. The paper's likelihood term on
correct rollouts (eq. 13) is left out: it is a separate objective.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from benchmarks import Task
from learners.config import RunConfig
from learners.policy import Batch
from learners.rl import (
    Note,
    normalise_groups,
    note_bounded_tokens,
    preserving_surrogate,
    token_mean,
)
from learners.runs import Run


@dataclass(frozen=True)
class Config(RunConfig):
    """GPPO's own fields."""

    rollouts: int = 16
    """G: rollouts per prompt. [paper: 8; 16 as the other methods]"""
    clip_low: float = 0.2
    """The ratio is kept above 1 - clip_low. [paper]"""
    clip_high: float = 0.28
    """The ratio is kept below 1 + clip_high. [paper]"""
    dual_clip: float = 10.0
    """c: a token with A < 0 and a larger ratio gets no gradient. [code; paper: none, inf]"""


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
    """Return the gradient-preserving surrogate of a micro-batch; `note` takes clip metrics."""
    if note is not None:
        note_bounded_tokens(note, logprobs, batch, 1 - config.clip_low, 1 + config.clip_high)
    clips = (config.clip_low, config.clip_high, config.dual_clip)
    loss = preserving_surrogate(logprobs, batch.old_logprobs, batch.advantages, *clips)
    return (loss * batch.weights).sum()


if __name__ == "__main__":
    from learners.runs import main

    main("learners.gppo")
