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
Branches supply rewards, no gradient. In this profile the branches' rewards change one number per
rollout; only A_fut differs from token to token. `rl/branching.py` ranks tokens and shares out
budgets; `appo_reference.py` has the published code's formulas, which `--profile reference` runs.

The paper's ablations: `--branching entropy`, `--future-weight 0`, `--groups one`. Ours:
`--branching future`, `random` and `tool`, and `--train-branches`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from benchmarks import Task
from learners import appo_reference
from learners.config import RunConfig, validate_initial_rollouts
from learners.policy import Batch, TokenStats
from learners.rl import Prefix, Rule, branching, clipped_surrogate, sequence_mean
from learners.runs import Run
from learners.tree import RolloutTree, Row, Trajectory


@dataclass(frozen=True)
class Config(RunConfig):
    """APPO's own fields; defaults are the paper's unless said."""

    profile: Literal["paper", "reference"] = "paper"
    """paper: the equations; reference: the published code's formulas (appo_reference.py), which has
    no use for the fields below M and N."""
    rollouts: int = 16
    """M: trajectories per prompt, branches included. [Table 3]"""
    initial_rollouts: int = 4
    """N: rollouts sampled from the prompt; the other M - N are branches. [Table 3]"""
    layers: int = 1
    """L: branches of branches; each layer multiplies the trajectories by (M / N)^(1 / L). A branch
    is ranked by entropy: its own tokens have no older policy. [App. E; 1 elsewhere]"""
    branching: Rule = "score"
    """Rule for the tokens that branch: score, BS of eq. 5; entropy, H alone [Table 4]; future,
    Z(Omega) alone [App. D]; random, drawn; tool, right after a tool's result, by H. [ablations]"""
    pool: Literal["rollout", "task"] = "rollout"
    """rollout: each rollout gets the same number of branches, B, the remainder by draw [Alg. 1];
    task: the best tokens of all rollouts of the prompt get the branches [code]."""
    prefix: Prefix = "before"
    """before: the chosen token i is sampled anew [Alg. 1]; through: it is kept [code]."""
    discount: float = 2 ** (-1 / 32)
    """gamma of eqs. 4 and 7, per token. [App. C]"""
    future_clip: float = 0.2
    """eps' of eqs. 5 and 7, symmetric. [App. C prints [1, 1.2]; the text is silent]"""
    future_weight: float = 0.5
    """b of eq. 7; 0: no future-aware term [Table 4]. [App. C]"""
    groups: Literal["dual", "one"] = "dual"
    """T* of eq. 6: dual, T_init and T_branch; one, all M trajectories together [Table 4]."""
    train_branches: bool = False
    """Branches get credit and a gradient too, on the tokens they sampled themselves. [ablation]"""
    clip_low: float = 0.2
    """eps of eq. 8, below. [not given; PPO's]"""
    clip_high: float = 0.2
    """eps of eq. 8, above. [not given; PPO's]"""
    advantage_clip: float = 5.0
    """Bound on each term of eq. 6; taken literally, eq. 6 explodes. [ours]"""

    def validate(self) -> None:
        """Check option values. Raises UsageError if one is out of range."""
        super().validate()
        validate_initial_rollouts(self.initial_rollouts, self.rollouts)


def iteration(tasks: list[Task], run: Run, config: Config) -> None:
    """One training step: roll out, branch where the moved policy says, credit, update."""
    if config.profile == "reference":
        appo_reference.iteration(tasks, run, config.initial_rollouts, config.rollouts)
        return
    trees = run.rollout(run.new_trees(tasks, roots=config.initial_rollouts))  # by the old policy
    run.trainer.remember_old_logprobs([root for tree in trees for root in tree.roots])
    before, noise = run.trainer.updates, 0.0
    for batch in run.minibatches(trees):
        roots = [root for tree in batch for root in tree.roots]
        stats = run.trainer.token_stats(roots, branched=True)
        moved = run.trainer.updates > before
        if not moved:  # same weights: what differs between the two passes is rounding
            noise = branching.omega_spread(roots, stats, config.discount, config.future_clip)
        grown = grow(batch, run, config, stats, noise if moved else None)
        rows = [row for tree in grown for row in procedure_advantages(tree, stats, config, run)]
        masks = [branching.own_mask(row.trajectory) for row in rows]
        weights = sequence_mean(masks, len(grown) * config.rollouts)  # eq. 8: 1/M, 1/|H_n|
        run.trainer.update(rows, weights, partial(policy_loss, config=config))


def grow(
    trees: Sequence[RolloutTree],
    run: Run,
    config: Config,
    stats: dict[Trajectory, TokenStats],
    noise: float | None,
) -> Sequence[RolloutTree]:
    """Branch finished trees, layer by layer, until each has its M trajectories.

    Args:
        trees: of a mini-batch; mutated.
        run: samples and scores.
        config: M, N, L and the branching rules.
        stats: of the roots; those of branches are added when they are needed.
        noise: see `choose_branch_points`.

    Returns:
        The trees whose tools did not fail.
    """
    sizes = branching.layer_sizes(config.initial_rollouts, config.rollouts, config.layers)
    for layer, size in enumerate(sizes):
        for tree in trees:
            draw = run.draw(f"{tree.name}/{layer}" if layer else tree.name)
            choice = choose_branch_points(tree, stats, config, draw, noise, size)
            branching.record_choice(choice, run.recorder.note, run.recorder.count)
            for point in choice.points:
                tree.fork(point)
        trees = run.rollout(trees)  # by the current policy
        if layer < len(sizes) - 1 or config.train_branches:
            branches = [b for tree in trees for b in tree.branches if b not in stats]
            stats |= run.trainer.token_stats(branches, branched=layer < len(sizes) - 1)
            branching.remember_branch_logprobs(branches, stats)
    return trees


def choose_branch_points(
    tree: RolloutTree,
    stats: dict[Trajectory, TokenStats],
    config: Config,
    draw: random.Random,
    noise: float | None,
    size: int,
) -> branching.BranchChoice:
    """Choose the points at which a tree of finished trajectories branches.

    Args:
        tree: every trajectory of it may branch.
        stats: of its trajectories, under the current policy.
        config: gamma, eps' and the branching rules.
        draw: for the remainder, and for rules that draw.
        noise: spread of Omega that rounding alone causes; None: the policy has not moved.
        size: trajectories of the tree after this layer.
    """
    scores, rankings = [], []
    used = branching.count_branches(tree)
    for trajectory in tree.trajectories:
        omega = branching.defined_omega(
            trajectory, stats[trajectory], config.discount, config.future_clip, noise
        )
        token_scores = branching.score_tokens(trajectory, stats[trajectory], omega)
        branching.store_scores(trajectory, token_scores, omega)
        ranking = branching.rank_candidates(
            trajectory, token_scores, config.branching, config.prefix, draw, used
        )
        scores.append(token_scores)
        rankings.append(ranking)
    budget = size - len(tree.trajectories)
    if config.pool == "task":
        points = branching.pick_best(rankings, budget)
    else:
        points = branching.share_out(rankings, budget, draw)
    return branching.BranchChoice(points, scores)


def procedure_advantages(
    tree: RolloutTree, stats: dict[Trajectory, TokenStats], config: Config, run: Run
) -> list[Row]:
    """Credit trajectories by eqs. 6 and 7; those without any term are counted and get no row."""
    groups = [[t.reward for t in tree.roots], [t.reward for t in tree.branches]]
    if config.groups == "one":
        groups = [groups[0] + groups[1]]
    rows = []
    for trajectory in tree.trajectories if config.train_branches else tree.roots:
        all_terms = [_standardise(trajectory.reward, group) for group in groups]
        terms = [term for term in all_terms if term is not None]
        if not terms:
            run.recorder.count("advantage/no_term", 1)
            continue
        bounded = [max(-config.advantage_clip, min(config.advantage_clip, t)) for t in terms]
        run.recorder.note(
            "advantage/clipped", [float(a != b) for a, b in zip(terms, bounded, strict=True)]
        )
        base = sum(bounded) / len(bounded)
        run.recorder.note("advantage/base", [base])
        # A_fut, eq. 7
        future = branching.omega(trajectory, stats[trajectory], config.discount, config.future_clip)
        rows.append(Row(trajectory, base * (1 + config.future_weight * future)))
    run.recorder.count("advantage/dropped_groups", int(not rows))
    return rows


def policy_loss(logprobs: Tensor, batch: Batch, config: Config) -> Tensor:
    """Return eq. 8 over a micro-batch; the batch's weights hold 1/M and 1/|H_n|."""
    loss = clipped_surrogate(
        logprobs, batch.old_logprobs, batch.advantages, config.clip_low, config.clip_high
    )
    return (loss * batch.weights).sum()


def _standardise(reward: float, group: list[float]) -> float | None:
    """Return one term of eq. 6; None if the group is of one, or of equal rewards."""
    if len(group) < 2 or max(group) == min(group):
        return None
    mean = sum(group) / len(group)
    deviation = math.sqrt(sum((r - mean) ** 2 for r in group) / len(group))
    return (reward - mean) / deviation


if __name__ == "__main__":  # engines spawn workers: keep the guard
    from learners.runs import main

    main("learners.appo")
