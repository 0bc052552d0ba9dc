"""Pieces of policy losses that methods share. Tensors are (B, T), log-probabilities in nats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from learners.policy import Batch

LARGEST_LOG = 20.0
"""Magnitude at which sums of log-ratios are cut before the exponential."""

STD_FLOOR = 1e-6
"""Added to a deviation that is divided by, as the reference implementations do."""


def suffix_sum(x: Tensor, discount: float) -> Tensor:
    """Discounted sum of everything from each position on, in log2(T) passes over x.

    out[..., t] = sum over k >= t of discount ** (k - t) * x[..., k]

    Args:
        x: (..., T), zero where there is no token; a masked position counts in the exponent.
        discount: per token, in (0, 1].

    Returns:
        (..., T), same dtype as x.
    """
    total, step = x, 1
    while step < x.shape[-1]:  # total[t] holds the terms up to t + step - 1
        later = torch.nn.functional.pad(total[..., step:], (0, step))
        total = total + discount**step * later
        step *= 2
    return total


def future_values(log_ratio: Tensor, mask: Tensor, discount: float, clip: float) -> Tensor:
    """Omega, eq. 4 of APPO: the discounted importance ratio of a token and all that follows.

    Args:
        log_ratio: (..., T) current minus old log-probabilities, nats.
        mask: (..., T) True on tokens the policy sampled; others add 0 and count in the exponent.
        discount: gamma per token.
        clip: eps'; the result is kept in [1 - clip, 1 + clip]; 0 leaves it as it is.

    Returns:
        (..., T), positive.
    """
    exponent = suffix_sum(log_ratio * mask, discount)
    omega = exponent.clamp(-LARGEST_LOG, LARGEST_LOG).exp()
    return omega.clamp(1 - clip, 1 + clip) if clip > 0 else omega


def token_log_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """(B, T) log r of every token, cut to LARGEST_LOG; no gradient beyond."""
    return (logprobs - old_logprobs).clamp(-LARGEST_LOG, LARGEST_LOG)


def sequence_log_ratio(
    logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, largest: float
) -> Tensor:
    """(B, T) log s of the token's row in value, its own log-probability in gradient (GSPO-token).

    log s is the mean over the row's trained tokens of log pi - log pi_old; a row is never split.

    Args:
        logprobs: (B, T) with gradient.
        old_logprobs: (B, T).
        mask: (B, T) True on trained tokens.
        largest: log s is cut to it; no gradient beyond.
    """
    total = ((logprobs - old_logprobs).detach() * mask).sum(-1, keepdim=True)
    mean = total / mask.sum(-1, keepdim=True).clamp_min(1)
    return (mean + logprobs - logprobs.detach()).clamp(max=largest)


def clipped_losses(
    log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """-min(r A, clip(r, 1 - low, 1 + high) A) of every token; no gradient where a bound decides."""
    ratio = log_ratio.exp()
    return torch.maximum(
        -advantages * ratio, -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    )


def dual_clip(losses: Tensor, advantages: Tensor, cap: float) -> Tensor:
    """Bound losses by -cap A where A < 0, without gradient where that decides; inf: no bound."""
    return torch.where(advantages < 0, torch.minimum(-advantages * cap, losses), losses)


class ClippedLosses(NamedTuple):
    """A clipped surrogate and the tokens that its clips decide; all (B, T)."""

    losses: Tensor
    upper: Tensor
    """True where the ratio's clip decides."""
    lower: Tensor
    """True where the dual clip decides."""


def dual_clipped_losses(
    log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, cap: float
) -> ClippedLosses:
    """Apply both clips, and mark the tokens that each decides."""
    once = clipped_losses(log_ratio, advantages, clip_low, clip_high)
    twice = dual_clip(once, advantages, cap)
    return ClippedLosses(twice, once > -advantages * log_ratio.exp(), twice < once)


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
    cap: float = math.inf,
) -> Tensor:
    """The PPO loss of every token.

    Args:
        logprobs: (B, T) with gradient; none flows where |log r| exceeds LARGEST_LOG.
        old_logprobs: (B, T).
        advantages: (B, T).
        clip_low: where A < 0 the ratio is kept above 1 - clip_low.
        clip_high: where A > 0 the ratio is kept below 1 + clip_high.
        cap: c of the dual clip; where A < 0 the loss is at most -c A.

    Returns:
        (B, T), to be masked and summed by the caller.
    """
    log_ratio = token_log_ratio(logprobs, old_logprobs)
    return dual_clip(clipped_losses(log_ratio, advantages, clip_low, clip_high), advantages, cap)


def preserving_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
    cap: float = math.inf,
    *,
    below: float = 1.0,
    above: float = 1.0,
) -> Tensor:
    """As `clipped_surrogate` in value; a clipped token keeps a gradient, the bound for its ratio.

    The coefficient is formed without dividing by the ratio, which may overflow.

    Args:
        logprobs: (B, T) with gradient.
        old_logprobs: (B, T).
        advantages: (B, T).
        clip_low: see `clipped_surrogate`.
        clip_high: see `clipped_surrogate`.
        cap: see `clipped_surrogate`; the dual clip leaves no gradient.
        below: share of the gradient that is kept where A < 0 and the ratio is under its clip.
        above: the same where A > 0 and the ratio is over its clip; 0 and 0 is PPO.
    """
    ratio = (logprobs.detach() - old_logprobs).clamp(max=80.0).exp()  # finite in float32
    good = advantages >= 0
    bound = torch.where(good, ratio.clamp(max=1 + clip_high), ratio.clamp(1 - clip_low, cap))
    share = torch.ones_like(ratio)
    share[good & (ratio > 1 + clip_high)] = above
    share[~good & (ratio < 1 - clip_low)] = below
    share[~good & (ratio > cap)] = 0.0
    change = (logprobs - logprobs.detach()).expm1()  # 0, with the gradient of the log-probability
    return -advantages * bound * (1 + share * change)


def sequence_mean(masks: Sequence[Tensor], rows: int | None = None) -> list[Tensor]:
    """Weights of a mean over tokens within each row, then over rows.

    Args:
        masks: per row (T,), True on trained tokens.
        rows: divide by this many rows; None: by the number of masks.
    """
    count = len(masks) if rows is None else rows
    return [mask.double() / (mask.sum().clamp_min(1) * count) for mask in masks]


def token_mean(masks: Sequence[Tensor]) -> list[Tensor]:
    """Weights of one mean over all trained tokens of the rows."""
    total = sum(int(mask.sum()) for mask in masks)
    return [mask.double() / max(total, 1) for mask in masks]


def sequence_sum(masks: Sequence[Tensor], divisor: float = 1.0) -> list[Tensor]:
    """Weights of a sum over tokens within each row over a constant, then a mean over rows."""
    return [mask.double() / (len(masks) * divisor) for mask in masks]


def mismatch_weights(
    log_ratio: Tensor, mask: Tensor, high: float, low: float = 0.0, *, whole_rows: bool = False
) -> Tensor:
    """Weights of tokens that correct the mismatch between sampler and policy probabilities.

    Args:
        log_ratio: (..., T) the policy's own old log-probabilities minus the sampler's.
        mask: (..., T) True on sampled tokens.
        high: larger weights are cut to it, or zeroed if `low` is given.
        low: smaller weights are zeroed.
        whole_rows: multiply the ratios of a row.

    Returns:
        (..., T), 0 off the mask, without gradient.
    """
    log_weight = (log_ratio * mask).detach()
    if whole_rows:
        log_weight = log_weight.sum(-1, keepdim=True)
    weight = log_weight.clamp(-LARGEST_LOG, LARGEST_LOG).exp()
    if low > 0:
        return weight * ((weight >= low) & (weight <= high)) * mask
    return weight.clamp(max=high) * mask


def kl_k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """The estimator log(p / q) of KL(p || q): unbiased, of high variance."""
    return logprobs - reference


def kl_k2(logprobs: Tensor, reference: Tensor) -> Tensor:
    """The estimator log(p / q)^2 / 2: biased, of low variance."""
    return 0.5 * (logprobs - reference).square()


def kl_k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """The estimator q / p - log(q / p) - 1, kept within 10: unbiased, of low variance."""
    gap = (reference - logprobs).clamp(-LARGEST_LOG, LARGEST_LOG)  # else 0 times inf backwards
    return (gap.exp() - gap - 1).clamp(-10, 10)


def zscore(x: Tensor, correction: int = 0, floor: float = STD_FLOOR) -> Tensor:
    """Standardise: (x - mean) / (std + floor); an empty x stays empty.

    Args:
        x: (n,).
        correction: 0, the population's deviation; 1, the sample's.
        floor: keeps the result finite if all values are equal.
    """
    return (x - x.mean()) / (x.std(correction=correction) + floor) if len(x) else x


class ClipRange(Protocol):
    """The clip range of a method's Config."""

    @property
    def clip_low(self) -> float: ...
    @property
    def clip_high(self) -> float: ...


class DualClipRange(ClipRange, Protocol):
    """A clip range with the cap on the ratio of tokens with negative advantages."""

    @property
    def dual_clip(self) -> float: ...


def clipped_policy_loss(logprobs: Tensor, batch: Batch, config: ClipRange) -> Tensor:
    """The clipped surrogate of a micro-batch, weighted and summed: what most methods minimise."""
    clips = (config.clip_low, config.clip_high)
    loss = clipped_surrogate(logprobs, batch.old_logprobs, batch.advantages, *clips)
    return (loss * batch.weights).sum()


def dual_clipped_policy_loss(logprobs: Tensor, batch: Batch, config: DualClipRange) -> Tensor:
    """As `clipped_policy_loss`, with the method's dual clip."""
    clips = (config.clip_low, config.clip_high, config.dual_clip)
    loss = clipped_surrogate(logprobs, batch.old_logprobs, batch.advantages, *clips)
    return (loss * batch.weights).sum()
