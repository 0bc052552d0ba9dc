"""Pieces of policy losses that methods share. All is (B, T); log-probabilities in nats."""

from collections.abc import Sequence

import torch
from torch import Tensor

LARGEST_LOG = 20.0
"""Magnitude at which sums of log-ratios are cut before the exponential."""


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


def clipped_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """The PPO loss of every token: -min(r A, clip(r, 1 - low, 1 + high) A).

    Returns:
        (B, T), to be masked and summed by the caller.
    """
    ratio = (logprobs - old_logprobs).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def sequence_mean(masks: Sequence[Tensor], rows: int | None = None) -> list[Tensor]:
    """Weights of a mean over tokens within each row, then over rows.

    Args:
        masks: per row (T,), True on trained tokens.
        rows: divide by this many rows instead of those given.
    """
    count = len(masks) if rows is None else rows
    return [mask.float() / (mask.sum().clamp_min(1) * count) for mask in masks]


def token_mean(masks: Sequence[Tensor]) -> list[Tensor]:
    """Weights of one mean over all trained tokens of the rows."""
    total = sum(int(mask.sum()) for mask in masks)
    return [mask.float() / max(total, 1) for mask in masks]
