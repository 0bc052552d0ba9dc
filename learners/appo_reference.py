"""APPO as its published code runs it (AMAP-ML/APPO, commit b04e7e9); `--profile reference`.

It differs from the paper's equations, which `appo.py` has:

- Branches are made once per step, before any update. Omega therefore compares the policy's own pass
  with the sampler's report, two computations of the same weights, and not a moved policy.
- The best tokens of all of a prompt's rollouts are taken together, and the chosen token is kept.
- A branch's standardised reward is credited to its source up to the token it left after.
- The future-aware factor is computed from the policy in training, inside the loss.

M, N, temperature and lengths are the run's; the code has M = 16, N = 8 (12 and 6 for its 14B
model). Its mistakes are corrected here: log-probabilities stay with their tokens after a tool's
result, calls are counted in the response only, nothing is padded before the update. A chosen token
that ends a turn could only give a branch that skips the tool's result or equals its source; the
next candidate takes its place. The code's KL term is `--kl 0.001`, off by default as in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks import Task
from learners.policy import Batch
from learners.rl import (
    ClippedLosses,
    dual_clipped_losses,
    future_values,
    suffix_sum,
    token_log_ratio,
    zscore,
)
from learners.rl import token_mean as token_mean_weights
from learners.runs import Run
from learners.tree import BranchPoint, RolloutTree, Row, Trajectory


@dataclass(frozen=True)
class Settings:
    """Settings of the code's launchers besides M and N; those for 7B reasoning unless said."""

    score_discount: float = 1.0
    """gamma of Omega in the branching score. [algorithm.gamma; the launchers leave it]"""
    score_clip: float = 0.2
    """Omega is kept in [1 - e, 1 + e] there. [policy_loss.future_kl_clip_ratio]"""
    reward_discount: float = 0.9
    """Discount of the factor M of token rewards. [algorithm.reward_scale_discount]"""
    clip: tuple[float, float] = (0.2, 0.28)
    """PPO's clip, below and above. [actor.clip_ratio_low, clip_ratio_high]"""
    dual_clip: float = 3.0
    """c: bounds the loss where A < 0; tokens of a larger ratio add nothing to f. [clip_ratio_c]"""
    future_discount: float = 2 ** (-1 / 64)
    """Discount of f, per token. [policy_loss.decay_rate 64; the YAML's default is 128]"""
    future_bounds: tuple[float, float] = (1.0, 1.2)
    """f is kept in this range. [future_kl_clip_ratio 0.2 with future_kl_clip_high_only]"""
    future_weight: float = 1.0
    """b of A (1 + b f). [policy_loss.future_kl_weight; the paper: 0.5]"""
    safety_ratio: float = 6.0
    """Above it f of a token with A < 0 is at most 1. [policy_loss.safety_thresh; YAML: 4]"""
    aggregation: Literal["token-mean", "row-sum", "row-mean", "sum-over-length"] = "token-mean"
    """Aggregation of a micro-batch's token losses. [actor.loss_agg_mode]"""


PUBLISHED = Settings()

Aggregation = Callable[[Tensor, Tensor], Tensor]
"""Token losses and mask, both (B, L) -> scalar."""


class RowScores(NamedTuple):
    """Branching scores of padded rows; both (B, L)."""

    score: Tensor
    """Z(entropy) * Z(Omega); 0 where the mask is False."""
    strict: Tensor
    """True where both z-scores are positive: uncertain and consequential."""


class Pick(NamedTuple):
    """A token to branch after."""

    row: int
    token: int
    score: float


def iteration(
    tasks: list[Task],
    run: Run,
    initial_rollouts: int,
    rollouts: int,
    settings: Settings = PUBLISHED,
) -> None:
    """One training step: roll out, branch, credit, update.

    Args:
        tasks: of the step.
        run: samples and trains.
        initial_rollouts: N, sampled from the prompt.
        rollouts: M, branches included.
        settings: of the published code.
    """
    trees = run.rollout(run.new_trees(tasks, roots=initial_rollouts))
    run.trainer.remember_old_logprobs([root for tree in trees for root in tree.roots])
    budget = rollouts - initial_rollouts
    for tree in trees:
        points = choose_branch_points(tree, budget, run.rollouts.tokenizer.decode, settings)
        run.recorder.note("branch/score", [point.score for point in points])
        run.recorder.count("branch/from_prompt", sum(point.position == 0 for point in points))
        for point in points:
            tree.fork(point)
    trees = run.rollout(trees)
    best = largest_score(trees)
    for batch in run.minibatches(trees):
        rows = [row for tree in batch for row in credit(tree, best, settings)]
        # Branches count as rows of the mini-batch, though they carry no loss.
        root_share = len(rows) / (len(batch) * rollouts)
        weights = token_mean_weights([row.trajectory.tensors.mask for row in rows])
        loss = partial(
            policy_loss,
            settings=settings,
            root_share=root_share,
            length=run.config.sampling.max_response_tokens,
            tokens=sum(row.trajectory.sampled_tokens for row in rows),
            note=run.recorder.note,
        )
        run.trainer.update(rows, [weight * root_share for weight in weights], loss)


def choose_branch_points(
    tree: RolloutTree, budget: int, decode: Callable[[list[int]], str], settings: Settings
) -> list[BranchPoint]:
    """Choose the points at which a prompt's branches leave its roots, best first.

    Args:
        tree: with finished roots that remember their old log-probabilities.
        budget: M - N, always filled.
        decode: one token's text; blank tokens are no candidates.
        settings: discount and clip of the score.
    """
    roots = tree.roots
    mask = pad_sequence([root.tensors.mask for root in roots], batch_first=True)
    log_ratio = _pad([_log_ratio(root) for root in roots])
    entropies = _pad([torch.tensor(root.sampler_entropies) for root in roots])
    scores = branching_scores(
        log_ratio, entropies, mask, settings.score_discount, settings.score_clip
    )
    omega = future_values(log_ratio, mask, settings.score_discount, settings.score_clip)
    for root, future, score in zip(roots, omega, scores.score, strict=True):
        root.diagnostics.future_values = future[: len(root)]
        root.diagnostics.scores = score[: len(root)]
    candidates = _inside_turns(mask) & _not_blank(roots, decode, mask)
    picks = select(scores, candidates, budget)
    if not picks:  # every answer is one token: start anew, and credit no token with it
        return [BranchPoint(roots[i % len(roots)], 0) for i in range(budget)]
    return [BranchPoint(roots[pick.row], pick.token + 1, pick.score) for pick in picks]


def largest_score(trees: Sequence[RolloutTree]) -> float:
    """Return the largest branching score of the step; 0 without branches."""
    return max((b.parent.score for tree in trees for b in tree.branches if b.parent), default=0.0)


def credit(tree: RolloutTree, best: float, settings: Settings) -> list[Row]:
    """Make a row for every root; branches are not trained on.

    The reward is on the last token, and no branch leaves after that one, so that the factor M
    changes no outcome; it would change rewards given along the way.

    Args:
        tree: with finished trajectories.
        best: `largest_score` of the step.
        settings: discount of the factor M.
    """
    roots, branches = tree.roots, tree.branches
    mask = pad_sequence([torch.ones(len(r), dtype=torch.bool) for r in roots], batch_first=True)
    parents = [b.parent for b in branches if b.parent is not None]
    rewards = torch.zeros(mask.shape, dtype=torch.float64)  # (N, L)
    for index, root in enumerate(roots):
        rewards[index, len(root) - 1] = root.reward
        profiles = [
            reward_profile(p.position - 1, p.score, best, mask.shape[1], settings.reward_discount)
            for p in parents
            if p.trajectory is root and p.position > 0
        ]
        if profiles:
            rewards[index] *= torch.stack(profiles).mean(0)
    advantages = dual_group_advantages(
        rewards.sum(-1),
        torch.tensor([b.reward for b in branches], dtype=torch.float64),
        torch.tensor([roots.index(p.trajectory) for p in parents], dtype=torch.long),
        torch.tensor([p.position - 1 for p in parents], dtype=torch.long),
        mask,
    ).float()
    return [Row(root, row[: len(root)]) for root, row in zip(roots, advantages, strict=True)]


def policy_loss(
    logprobs: Tensor,
    batch: Batch,
    *,
    settings: Settings,
    root_share: float,
    length: int,
    tokens: int,
    note: Callable[[str, list[float]], None],
) -> Tensor:
    """Return the micro-batch's aggregated loss, times its share of the mini-batch's rows.

    Args:
        logprobs: (B, T).
        batch: its weights, the mean over the mini-batch's trained tokens times `root_share`, are
            used only for the sampler correction; the code averages within each micro-batch.
        settings: of the loss.
        root_share: roots over all trajectories of the mini-batch.
        length: the longest response there may be, in tokens.
        tokens: trained tokens of the mini-batch.
        note: takes metrics.
    """
    surrogate, mask = future_surrogate(
        logprobs,
        batch.old_logprobs,
        batch.advantages,
        batch.response_mask,
        clip=settings.clip,
        dual_clip=settings.dual_clip,
        discount=settings.future_discount,
        bounds=settings.future_bounds,
        weight=settings.future_weight,
        safety_ratio=settings.safety_ratio,
    )
    note("loss/clip_fraction", surrogate.upper[batch.response_mask].float().tolist())
    note("loss/dual_clip_fraction", surrogate.lower[batch.response_mask].float().tolist())
    note("loss/dropped_rows", (batch.response_mask.any(-1) & ~mask.any(-1)).float().tolist())
    modes: dict[str, Aggregation] = {
        "token-mean": token_mean,
        "row-sum": row_mean_of_sums,
        "row-mean": row_mean_of_means,
        "sum-over-length": partial(sum_over_length, length=length),
    }
    counts = batch.weights * (tokens / root_share)  # 1 without a sampler correction
    loss = modes[settings.aggregation](surrogate.losses * counts, mask)
    return loss * batch.share * root_share


def branching_scores(
    log_ratio: Tensor, entropies: Tensor, mask: Tensor, discount: float, clip: float
) -> RowScores:
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
    return RowScores(score, strict & (score > 0))


def select(scores: RowScores, candidates: Tensor, budget: int) -> list[Pick]:
    """Pick the best tokens of all rows of a prompt: strict ones, the others, then repeats.

    Equal scores keep the order of rows, then of positions. The others are ordered by score alone,
    so that a token with two negative z-scores leads them.

    Args:
        scores: of the prompt's rows.
        candidates: (B, L) True where a branch may leave.
        budget: number of picks.

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
    """Return M, a branch's factor on the token rewards of its source, largest where it left.

    Args:
        split: the token that the branch left after.
        score: its branching score.
        best: largest score of all branches of the batch.
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
    """Add to a root's standardised reward the mean of its branches', up to where they left.

    Args:
        root_rewards: (B,) of the prompt's roots.
        branch_rewards: (K,) of its branches.
        sources: (K,) row of the root that each branch left.
        splits: (K,) last token that each branch shares; -1 if it shares none.
        mask: (B, L) True on response tokens.

    Returns:
        (B, L) advantages of the roots; branches get none.
    """
    rows, columns = (torch.arange(size) for size in mask.shape)
    root_credit = zscore(root_rewards)[:, None]  # (B, 1)
    is_shared = (sources[:, None] == rows)[:, :, None] & (splits[:, None] >= columns)[:, None]
    shares = is_shared.to(root_credit.dtype)  # (K, B, L)
    branch_credit = zscore(branch_rewards).to(root_credit.dtype)[:, None, None] * shares
    return (root_credit + branch_credit.sum(0) / shares.sum(0).clamp_min(1)) * mask


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
) -> tuple[ClippedLosses, Tensor]:
    """Return the loss `future_kl`: the dual-clipped surrogate of A (1 + weight f).

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
    log_ratio = token_log_ratio(logprobs, old_logprobs)
    constant = log_ratio.detach()
    future = future_weights(constant, mask, discount, bounds, dual_clip)
    unsafe = (advantages < 0) & (constant.exp() > safety_ratio)
    future = torch.where(unsafe, future.clamp(0.8, 1.0), future)
    surrogate = dual_clipped_losses(log_ratio, advantages * (1 + weight * future), *clip, dual_clip)
    is_trained = (surrogate.lower & mask).sum(-1, keepdim=True) <= 1  # (B, 1)
    return surrogate, mask & is_trained


def token_mean(losses: Tensor, mask: Tensor) -> Tensor:
    """Average over all trained tokens; 0 without one."""
    return (losses * mask).sum() / (mask.sum() + 1e-8)


def row_mean_of_sums(losses: Tensor, mask: Tensor) -> Tensor:
    """Sum within each row, average over the rows that have a trained token."""
    return (losses * mask).sum() / mask.any(-1).sum().clamp_min(1)


def row_mean_of_means(losses: Tensor, mask: Tensor) -> Tensor:
    """Average within each row, then over the rows that have a trained token."""
    means = (losses * mask).sum(-1) / mask.sum(-1).clamp_min(1)
    return means.sum() / mask.any(-1).sum().clamp_min(1)


def sum_over_length(losses: Tensor, mask: Tensor, length: int) -> Tensor:
    """Sum over all trained tokens, divided by the padded response length."""
    return (losses * mask).sum() / length


def _log_ratio(root: Trajectory) -> Tensor:
    """(T,) the policy's own log-probabilities minus the sampler's."""
    assert root.old_logprobs is not None, "remember_old_logprobs before scoring"
    return root.old_logprobs.cpu() - root.tensors.sampler_logprobs


def _pad(rows: Sequence[Tensor]) -> Tensor:
    """(B, L), 0 where a row is shorter."""
    return pad_sequence([row.float() for row in rows], batch_first=True)


def _inside_turns(mask: Tensor) -> Tensor:
    """(B, L) True where the next token is sampled too: the token does not end its turn."""
    following = torch.zeros_like(mask)
    following[:, :-1] = mask[:, 1:]
    return following


def _not_blank(
    roots: Sequence[Trajectory], decode: Callable[[list[int]], str], mask: Tensor
) -> Tensor:
    """(B, L) True where the policy sampled a token whose text is not blank."""
    distinct = {token for root in roots for token in root.response_ids}
    worded = {token for token in distinct if decode([token]).strip()}
    flags = [torch.tensor([token in worded for token in root.response_ids]) for root in roots]
    return pad_sequence(flags, batch_first=True) & mask
