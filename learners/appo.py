"""APPO, Agentic Procedural Policy Optimization (arXiv 2606.12384), as the paper states it.

For each prompt N rollouts are sampled by the old policy. Inside the mini-batch loop, where the
policy has moved, each rollout is branched at the B tokens with the highest branching score

    BS_i = Z(clip(Omega_i, 1 - eps', 1 + eps')) * Z(H_i)                            (eq. 5)
    Omega_i = exp(sum over j >= i of gamma^(j - i) log rho_j)                        (eq. 4)

uncertain by entropy H and consequential by Omega, the discounted importance ratio rho of what
follows. Initial rollouts are credited with

    A_base = mean over {T_init, T_branch} of (R - mean) / std                       (eq. 6)
    A_i = A_base (1 + b clip(Omega_i, 1 - eps', 1 + eps'))                           (eq. 7)

and trained by the clipped objective of eq. 8, summed over the N initial rollouts and divided by M.
Branches supply rewards, no gradient. In this profile the branches' rewards move one number per
rollout; only A_fut differs from token to token. `appo_reference.py` has the published code's
formulas; `--profile reference` runs them.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from learners.losses import clipped_surrogate, future_values, sequence_mean, zscore
from learners.run_config import RunConfig
from learners.tree import BranchPoint, RolloutTree, Row, Trajectory, usable

if TYPE_CHECKING:
    from benchmarks import Task
    from learners.batch import Batch
    from learners.loop import Run
    from learners.policy import TokenStats


@dataclass(frozen=True)
class Config(RunConfig):
    """APPO's own fields; defaults are the paper's unless said."""

    profile: Literal["paper", "reference"] = "paper"
    """paper: the equations; reference: the published code's formulas (appo_reference.py)."""
    rollouts: int = 16
    """M: trajectories per prompt, branches included. [Table 3]"""
    initial_rollouts: int = 4
    """N: rollouts sampled from the prompt; the other M - N are branches. [Table 3]"""
    discount: float = 2 ** (-1 / 32)
    """gamma of eqs. 4 and 7, per token. [App. C]"""
    future_clip: float = 0.2
    """eps' of eqs. 5 and 7, symmetric. [App. C prints [1, 1.2]; ours where the text is silent]"""
    future_weight: float = 0.5
    """b of eq. 7. [App. C]"""
    clip_low: float = 0.2
    """eps of eq. 8, below. [not given; PPO's]"""
    clip_high: float = 0.2
    """eps of eq. 8, above. [not given; PPO's]"""
    advantage_clip: float = 5.0
    """Each term of eq. 6 is kept within this; taken literally, eq. 6 explodes. [ours]"""


def iteration(tasks: "list[Task]", run: "Run", config: Config) -> None:
    """One training step: roll out, branch where the moved policy says, credit, update."""
    if config.profile == "reference":
        from learners import appo_reference

        appo_reference.iteration(tasks, run, config)
        return
    trees = run.new_trees(tasks, roots=config.initial_rollouts)
    run.rollout(trees)  # by the old policy
    run.remember_old_logprobs([root for tree in usable(trees) for root in tree.roots])
    before, noise = run.policy.updates, 0.0
    for batch in run.minibatches(trees):
        roots = [root for tree in batch for root in tree.roots]
        stats = run.token_stats(roots)
        moved = run.policy.updates > before
        if not moved:  # same weights: what differs between the two passes is rounding
            noise = omega_spread(roots, stats, config)
        for tree in batch:
            chosen = branch_points(tree, stats, config, run.draw(tree.name), noise, moved=moved)
            run.count("branch/undefined", chosen.undefined)
            run.note("branch/score", [point.score for point in chosen.points])
            for point in chosen.points:
                tree.fork(point)
        run.rollout(batch)  # by the current policy
        kept = usable(batch)  # a branch may have met a tool that failed
        rows = [row for tree in kept for row in procedure_advantages(tree, stats, config, run)]
        masks = [torch.tensor(row.trajectory.response_mask) for row in rows]
        weights = sequence_mean(masks, rows=len(kept) * config.rollouts)  # eq. 8: 1/M, 1/|H_n|
        run.update(rows, weights, partial(policy_loss, config=config))


class Branching(NamedTuple):
    """Where a tree branches."""

    points: list[BranchPoint]
    undefined: int
    """Roots whose score was undefined and that were ranked by entropy."""


def branch_points(
    tree: RolloutTree,
    stats: "dict[Trajectory, TokenStats]",
    config: Config,
    draw: random.Random,
    noise: float,
    *,
    moved: bool,
) -> Branching:
    """The M - N branch points of a tree: B from each root, the remainder by draw.

    Args:
        tree: with finished roots only.
        stats: of the roots, under the current policy.
        config: M, N, gamma, eps'.
        draw: decides which roots get the remainder.
        noise: spread of Omega that rounding alone causes.
        moved: whether an optimiser step lies between the old and the current policy.
    """
    roots = tree.roots
    budget = config.rollouts - len(roots)
    each, remainder = divmod(budget, len(roots))
    lucky = set(draw.sample(range(len(roots)), remainder))
    points, undefined = [], 0
    for index, root in enumerate(roots):
        ranking, defined = ranked_tokens(root, stats[root], config, noise if moved else None)
        undefined += not defined
        count = each + (index in lucky)
        # A root with fewer tokens than branches branches twice at its best ones.
        points += [ranking[i % len(ranking)] for i in range(count)]
    return Branching(points, undefined)


def ranked_tokens(
    root: Trajectory, stats: "TokenStats", config: Config, noise: float | None
) -> tuple[list[BranchPoint], bool]:
    """The sampled tokens of a root, best branch point first, and whether the score was defined.

    Tokens that are both uncertain and consequential (both z-scores positive) come first, by score;
    then the others by entropy. An undefined score leaves only the entropy.
    """
    mask = torch.tensor(root.response_mask)
    valid = mask.nonzero()[:, 0]
    entropy = stats.entropies[valid]
    omega = _omega(root, stats, config)[valid]
    defined = noise is not None and float(omega.std(correction=0)) > 2 * noise
    score = zscore(omega) * zscore(entropy) if defined else torch.zeros_like(entropy)
    both = (
        (zscore(omega) > 0) & (zscore(entropy) > 0) if defined else torch.zeros_like(valid).bool()
    )
    order = sorted(
        range(len(valid)),
        key=lambda i: (not both[i], -float(score[i]) if both[i] else -float(entropy[i]), i),
    )
    return [BranchPoint(root, int(valid[i]), float(score[i])) for i in order], defined


def procedure_advantages(
    tree: RolloutTree, stats: "dict[Trajectory, TokenStats]", config: Config, run: "Run"
) -> list[Row]:
    """A row for every root that eqs. 6 and 7 give credit; the others are counted and dropped."""
    groups = [[t.reward for t in tree.roots], [t.reward for t in tree.branches]]
    rows = []
    for root in tree.roots:
        terms = [
            t for t in (_standardised(root.reward, group) for group in groups) if t is not None
        ]
        if not terms:
            run.count("advantage/no_term", 1)
            continue
        kept = [max(-config.advantage_clip, min(config.advantage_clip, term)) for term in terms]
        run.note("advantage/clipped", [float(a != b) for a, b in zip(terms, kept, strict=True)])
        base = sum(kept) / len(kept)
        future = _omega(root, stats[root], config)  # A_fut, eq. 7
        run.note("advantage/base", [base])
        rows.append(Row(root, base * (1 + config.future_weight * future)))
    return rows


def policy_loss(logprobs: Tensor, batch: "Batch", config: Config) -> Tensor:
    """Eq. 8 over a micro-batch; its weights hold 1/M and 1/|H_n|."""
    loss = clipped_surrogate(
        logprobs, batch.old_logprobs, batch.advantages, config.clip_low, config.clip_high
    )
    return (loss * batch.weights).sum()


def omega_spread(
    roots: Sequence[Trajectory], stats: "dict[Trajectory, TokenStats]", config: Config
) -> float:
    """Largest deviation of Omega within a root; with equal weights it is rounding noise."""
    spreads = [
        float(_omega(root, stats[root], config)[torch.tensor(root.response_mask)].std(correction=0))
        for root in roots
    ]
    return max(spreads, default=0.0)


def _omega(root: Trajectory, stats: "TokenStats", config: Config) -> Tensor:
    """(T,) clipped future values of a root under the current policy."""
    assert root.old_logprobs is not None, "remember_old_logprobs before scoring"
    mask = torch.tensor(root.response_mask)
    return future_values(
        stats.logprobs - root.old_logprobs, mask, config.discount, config.future_clip
    )


def _standardised(reward: float, group: list[float]) -> float | None:
    """One term of eq. 6; None where the group does not define it."""
    if len(group) < 2 or max(group) == min(group):
        return None
    mean = sum(group) / len(group)
    deviation = math.sqrt(sum((r - mean) ** 2 for r in group) / len(group))
    return (reward - mean) / deviation


if __name__ == "__main__":  # engines spawn workers: keep the guard
    from learners.training import main

    main("learners.appo")
