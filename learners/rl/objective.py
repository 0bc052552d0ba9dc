"""What an update minimises around a method's loss: a penalty, and what is taken down on the way."""

from __future__ import annotations

import torch
from torch import Tensor

from learners.config import Estimator
from learners.policy import Batch, PolicyLoss
from learners.rl.kl import Note, divergence
from learners.rl.losses import kl_k3, token_log_ratio


def wrap_loss(
    loss: PolicyLoss, note: Note, coefficient: float = 0.0, estimator: Estimator = "k3"
) -> PolicyLoss:
    """A method's loss, plus coefficient times the divergence from the reference.

    The penalty is masked and averaged by the batch's weights, as most methods' losses are.

    Args:
        loss: of the method.
        note: takes metrics of the loss.
        coefficient: beta.
        estimator: see `divergence`.
    """

    def whole(logprobs: Tensor, batch: Batch) -> Tensor:
        value = loss(logprobs, batch)
        trained = batch.response_mask & (batch.weights != 0)
        _take_down(value, logprobs, batch, trained, note)
        if batch.reference_logprobs is not None:
            penalty = divergence(logprobs, batch.reference_logprobs, estimator)
            note("policy/kl_reference", penalty.detach()[trained].tolist())
            if coefficient:
                value = value + coefficient * (penalty * batch.weights).sum()
        return value

    return whole


def _take_down(value: Tensor, logprobs: Tensor, batch: Batch, trained: Tensor, note: Note) -> None:
    """How far the policy is from the old one, and which tokens the loss leaves as they are."""
    with torch.no_grad():
        note("policy/kl_old", kl_k3(batch.old_logprobs, logprobs)[trained].tolist())
    if not value.requires_grad:
        return
    (slope,) = torch.autograd.grad(value, logprobs, retain_graph=True, allow_unused=True)
    if slope is None:
        return
    still = slope[trained] == 0
    sign = batch.advantages[trained].sign()
    note("loss/clip_low_fraction", (still & (sign < 0)).double().tolist())
    note("loss/clip_high_fraction", (still & (sign > 0)).double().tolist())


def note_bounded(note: Note, logprobs: Tensor, batch: Batch, low: float, high: float) -> None:
    """Take down the tokens whose ratio is beyond a clip that leaves them a gradient (GPPO).

    Args:
        note: takes, per trained token, whether A < 0 and the ratio is below `low`, or A > 0 and it
            is above `high`.
        logprobs: (B, T).
        batch: has the rest.
        low: 1 - eps.
        high: 1 + eps.
    """
    trained = batch.response_mask & (batch.weights != 0)
    ratio = token_log_ratio(logprobs.detach(), batch.old_logprobs)[trained].exp()
    sign = batch.advantages[trained].sign()
    note("loss/bounded_low_fraction", ((ratio < low) & (sign < 0)).double().tolist())
    note("loss/bounded_high_fraction", ((ratio > high) & (sign > 0)).double().tolist())


def note_capped(note: Note, logprobs: Tensor, batch: Batch, cap: float) -> None:
    """Take down, per trained token, whether its ratio is above the cap of its weight (CISPO)."""
    trained = batch.response_mask & (batch.weights != 0)
    ratio = token_log_ratio(logprobs.detach(), batch.old_logprobs)[trained].exp()
    note("loss/capped_fraction", (ratio > cap).double().tolist())
