"""The formulas of APPO's published code (AMAP-ML/APPO), as functions of tensors.

B rows, L response tokens; masks are bool. Nothing here knows trees, policies or environments.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from learners.losses import LARGEST_LOG, Clipped, dual_clipped, future_values, suffix_sum, zscore

STD_FLOOR = 1e-6
"""Added to a group's deviation."""


class Scores(NamedTuple):
    """Of every token; both (B, L)."""

    score: Tensor
    """Z(entropy) * Z(Omega); 0 where the mask is False."""
    strict: Tensor
    """True where both z-scores are positive: uncertain and consequential."""


def branching_scores(
    log_ratio: Tensor, entropies: Tensor, mask: Tensor, discount: float, clip: float
) -> Scores:
    """Score the sampled tokens of each row by that row's own statistics.

    Args:
        log_ratio: (B, L) nats, of the policy's own pass over what the sampler reported.
        entropies: (B, L) nats.
        mask: (B, L) True on sampled tokens.
        discount: gamma per token, in (0, 1].
        clip: Omega is kept in [1 - clip, 1 + clip]; 0 leaves it as it is.
    """
    omega = future_values(log_ratio, mask, discount, clip)
    score, strict = torch.zeros_like(omega), torch.zeros_like(mask)
    for row, valid in enumerate(mask):
        if valid.any():
            uncertain, consequential = zscore(entropies[row, valid]), zscore(omega[row, valid])
            score[row, valid] = uncertain * consequential
            strict[row, valid] = (uncertain > 0) & (consequential > 0)
    return Scores(score, strict & (score > 0))


class Pick(NamedTuple):
    """A token to branch after."""

    row: int
    token: int
    score: float


def select(scores: Scores, candidates: Tensor, budget: int) -> list[Pick]:
    """The best tokens of all rows of a prompt together: strict ones, the others, then repeats.

    Equal scores keep the order of rows, then of positions. The others are ordered by score alone,
    so that a token with two negative z-scores leads them.

    Args:
        scores: of the prompt's rows.
        candidates: (B, L) True where a branch may leave.
        budget: how many to pick.

    Returns:
        `budget` picks, or none without a candidate.
    """

    def ranked(among: Tensor) -> list[Pick]:
        picks = [Pick(r, t, float(scores.score[r, t])) for r, t in among.nonzero().tolist()]
        return sorted(picks, key=lambda pick: -pick.score)

    chosen = ranked(candidates & scores.strict) + ranked(candidates & ~scores.strict)
    chosen = chosen[:budget]
    return [chosen[i % len(chosen)] for i in range(budget)] if chosen else []


def reward_profile(split: int, score: float, best: float, length: int, discount: float) -> Tensor:
    """What a branch multiplies its source's token rewards by: M, largest where it left.

    Args:
        split: the token it left after.
        score: its branching score.
        best: largest score of the whole batch's branches.
        length: L.
        discount: per token before the split.

    Returns:
        (L,) 1 + score / best * discount ** (split - t) up to the split, else 1.
    """
    if score <= 0 or best <= 0:
        return torch.ones(length)
    distance = split - torch.arange(length)
    profile = 1 + score / best * discount ** distance.clamp_min(0)
    return torch.where(distance >= 0, profile, 1.0)


def dual_group_advantages(
    root_rewards: Tensor, branch_rewards: Tensor, sources: Tensor, splits: Tensor, mask: Tensor
) -> Tensor:
    """A root's own standardised reward, plus the mean of its branches' up to where they left.

    Args:
        root_rewards: (B,) of the prompt's roots.
        branch_rewards: (K,) of its branches.
        sources: (K,) row of the root that each branch left.
        splits: (K,) last token that it shares; -1 where it shares none.
        mask: (B, L) True on response tokens.

    Returns:
        (B, L) advantages of the roots; branches get none.
    """
    rows, columns = (torch.arange(size) for size in mask.shape)
    own = standardised(root_rewards)[:, None]  # (B, 1)
    shares = (sources[:, None] == rows)[:, :, None] & (splits[:, None] >= columns)[:, None]
    reached = shares.to(own.dtype)  # (K, B, L)
    credit = standardised(branch_rewards).to(own.dtype)[:, None, None] * reached
    return (own + credit.sum(0) / reached.sum(0).clamp_min(1)) * mask


def standardised(rewards: Tensor) -> Tensor:
    """(n,) by the group's mean and population deviation; 0 for a group of one."""
    if len(rewards) < 2:
        return torch.zeros_like(rewards)
    return (rewards - rewards.mean()) / (rewards.std(correction=0) + STD_FLOOR)


def future_weights(
    log_ratio: Tensor, mask: Tensor, discount: float, bounds: tuple[float, float], dual_clip: float
) -> Tensor:
    """(B, L) f_t = exp(sum over k >= t of discount ** (k - t) log r_k), kept within bounds.

    Tokens whose ratio exceeds `dual_clip` add nothing.
    """
    counted = mask & (log_ratio <= math.log(dual_clip))
    return suffix_sum(log_ratio * counted, discount).exp().clamp(*bounds)


def future_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: tuple[float, float],
    dual_clip: float,
    discount: float,
    bounds: tuple[float, float],
    weight: float,
    safety_ratio: float,
) -> tuple[Clipped, Tensor]:
    """The loss `future_kl`: the dual-clipped surrogate of A (1 + weight f).

    Args:
        logprobs: (B, L) nats, with gradient.
        old_logprobs: (B, L) nats.
        advantages: (B, L).
        mask: (B, L) True on trained tokens.
        clip: of the ratio, below and above 1.
        dual_clip: c.
        discount: of f, per token.
        bounds: of f.
        weight: b.
        safety_ratio: above it f of a token with A < 0 is kept in [0.8, 1].

    Returns:
        The surrogate, and the mask without the rows where the dual clip decided more than one
        token; those are not trained on.
    """
    log_ratio = (logprobs - old_logprobs).clamp(-LARGEST_LOG, LARGEST_LOG)
    constant = log_ratio.detach()
    future = future_weights(constant, mask, discount, bounds, dual_clip)
    unsafe = (advantages < 0) & (constant.exp() > safety_ratio)
    future = torch.where(unsafe, future.clamp(0.8, 1.0), future)
    surrogate = dual_clipped(log_ratio, advantages * (1 + weight * future), *clip, dual_clip)
    kept = (surrogate.lower & mask).sum(-1, keepdim=True) <= 1
    return surrogate, mask & kept


Aggregation = Callable[[Tensor, Tensor], Tensor]
"""Token losses and mask, both (B, L) -> scalar."""


def token_mean(losses: Tensor, mask: Tensor) -> Tensor:
    """Mean over all trained tokens; 0 without one."""
    return (losses * mask).sum() / (mask.sum() + 1e-8)


def row_mean_of_sums(losses: Tensor, mask: Tensor) -> Tensor:
    """Sum within each row, mean over the rows that have a trained token."""
    return (losses * mask).sum() / mask.any(-1).sum().clamp_min(1)


def row_mean_of_means(losses: Tensor, mask: Tensor) -> Tensor:
    """Mean within each row, mean over the rows that have a trained token."""
    means = (losses * mask).sum(-1) / mask.sum(-1).clamp_min(1)
    return means.sum() / mask.any(-1).sum().clamp_min(1)


def sum_over_length(losses: Tensor, mask: Tensor, length: int) -> Tensor:
    """Sum over all trained tokens, divided by the padded response length."""
    return (losses * mask).sum() / length
