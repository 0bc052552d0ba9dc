"""Wraps a method's loss with the KL penalty and records metrics of the loss."""

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
    """Add the KL penalty to a method's loss, and record metrics of both.

    The penalty is masked and averaged by the batch's weights, as most methods' losses are.

    Args:
        loss: of the method.
        note: takes metrics of the loss.
        coefficient: beta.
        estimator: see `divergence`.
    """

    def penalised_loss(logprobs: Tensor, batch: Batch) -> Tensor:
        value = loss(logprobs, batch)
        trained = _trained_tokens(batch)
        _note_loss_metrics(value, logprobs, batch, trained, note)
        if batch.reference_logprobs is not None:
            penalty = divergence(logprobs, batch.reference_logprobs, estimator)
            note("policy/kl_reference", penalty.detach()[trained].tolist())
            if coefficient:
                value = value + coefficient * (penalty * batch.weights).sum()
        return value

    return penalised_loss


def note_bounded_tokens(
    note: Note, logprobs: Tensor, batch: Batch, low: float, high: float
) -> None:
    """Record the tokens whose ratio is beyond a clip that leaves them a gradient (GPPO).

    Args:
        note: takes two flags per trained token: A < 0 and the ratio is below `low`; A > 0 and the
            ratio is above `high`.
        logprobs: (B, T).
        batch: has old log-probabilities, advantages and weights.
        low: 1 - eps.
        high: 1 + eps.
    """
    trained = _trained_tokens(batch)
    ratio = token_log_ratio(logprobs.detach(), batch.old_logprobs)[trained].exp()
    sign = batch.advantages[trained].sign()
    note("loss/bounded_low_fraction", ((ratio < low) & (sign < 0)).double().tolist())
    note("loss/bounded_high_fraction", ((ratio > high) & (sign > 0)).double().tolist())


def note_capped_tokens(note: Note, logprobs: Tensor, batch: Batch, cap: float) -> None:
    """Record the trained tokens whose ratio is above the cap of its weight (CISPO)."""
    trained = _trained_tokens(batch)
    ratio = token_log_ratio(logprobs.detach(), batch.old_logprobs)[trained].exp()
    note("loss/capped_fraction", (ratio > cap).double().tolist())


def _trained_tokens(batch: Batch) -> Tensor:
    """(B, T) True on tokens that count in the loss."""
    return batch.response_mask & (batch.weights != 0)


def _note_loss_metrics(
    value: Tensor, logprobs: Tensor, batch: Batch, trained: Tensor, note: Note
) -> None:
    """Record the divergence from the old policy and the tokens without a gradient."""
    with torch.no_grad():
        note("policy/kl_old", kl_k3(batch.old_logprobs, logprobs)[trained].tolist())
    if not value.requires_grad:
        return
    # Clipped tokens are those without a slope: this holds for every method's clip. The graph is
    # retained because the update differentiates the same loss afterwards.
    (slope,) = torch.autograd.grad(value, logprobs, retain_graph=True, allow_unused=True)
    if slope is None:
        return
    clipped = slope[trained] == 0
    sign = batch.advantages[trained].sign()
    note("loss/clip_low_fraction", (clipped & (sign < 0)).double().tolist())
    note("loss/clip_high_fraction", (clipped & (sign > 0)).double().tolist())
