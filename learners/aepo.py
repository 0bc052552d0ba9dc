"""AEPO, Agentic Entropy-Balanced Policy Optimization (arXiv 2510.14545).

As ARPO (`arpo.py`), balanced by entropy in three places. A first rollout, the probe, decides how
many of a prompt's n rollouts start from the prompt (pre-monitoring):

    N = floor(n sigmoid(b (H_root - H_step))) + 1, at most n

with H_root of the probe's first turn and H_step, the mean H of its turns. A running rollout
branches after a tool result if

    (u + w dH) max(0, 1 - l s) >= p,  u uniform in [0, 1], within [0, 1] on the left,

where s counts the consecutive rounds in which its prompt has grown: p is a threshold, the reverse
of ARPO's. Uncertain tokens learn more:

    A_t = A_i (1 + a z_t), A_i = (R_i - mean) / (std + 1e-6), z_t = (H_t - mean) / std

over the trained tokens of an optimiser step, with the current policy's entropies H_t. A good token
over its clip keeps a gradient, with the bound in place of its ratio. The loss is averaged over all
tokens. No KL.

The published code discards its probe; here it is the first of the N. In the code s is kept over
rounds in which no prompt grows; here a round in which the prompt itself does not grow resets it.
In the code z is taken over a micro-batch, which may be cut in any way; here over the optimiser
step, whose entropies take one more forward pass.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks import Task
from learners.config import RunConfig, validate_initial_rollouts
from learners.policy import Batch
from learners.rl import (
    branching,
    has_variance,
    normalise_groups,
    preserving_surrogate,
    token_mean,
    turn_entropy,
)
from learners.runs import Run
from learners.tree import RolloutTree, Row


@dataclass(frozen=True)
class Config(RunConfig):
    """AEPO's own fields."""

    rollouts: int = 16
    """n (the paper's k): trajectories per prompt, branches included. [scripts: 16]"""
    pre_monitoring: bool = True
    """Let a probe decide how many rollouts start from the prompt. [paper; scripts: off]"""
    initial_rollouts: int = 8
    """N without pre-monitoring (the paper's m). [ARPO's scripts: 8]"""
    budget_sensitivity: float = 0.5
    """b (the paper's beta): sensitivity of N to the gap of entropies. [code: 0.5]"""
    beam: int = 2
    """A rollout makes at most beam - 1 branches at a tool result. [scripts: 2]"""
    branch_threshold: float = 0.5
    """p: the higher, the fewer branches; the scripts' branch_probability. [scripts: 0.5]"""
    entropy_weight: float = 0.2
    """w: weight of the change of entropy. [scripts: 0.2]"""
    branch_penalty: float = 0.05
    """l: penalty per consecutive round in which the prompt has grown. [code: 0.05]"""
    entropy_tokens: int = 20
    """Number of first tokens of a turn whose entropies are summed. [code: 20]"""
    advantage_weight: float = 0.2
    """a: weight of a token's standardised entropy in its advantage; 0: none. [code: 0.2]"""
    clip_low: float = 0.2
    """The ratio is kept above 1 - clip_low; no gradient beyond. [scripts: 0.2]"""
    clip_high: float = 0.2
    """The ratio is kept below 1 + clip_high; beyond, the gradient is the bound's. [scripts: 0.2]"""
    dual_clip: float = 3.0
    """c: a token with A < 0 and a larger ratio gets no gradient; inf: none. [verl, scripts: 3]"""

    def validate(self) -> None:
        """Check option values. Raises UsageError if one is out of range."""
        super().validate()
        validate_initial_rollouts(self.initial_rollouts, self.rollouts)


def iteration(tasks: list[Task], run: Run, config: Config) -> None:
    """One training step: probe, branch by entropy, credit uncertain tokens more, update."""
    trees = sample_trees(tasks, run, config)
    run.trainer.remember_old_logprobs([t for tree in trees for t in tree.trajectories])
    for batch in run.minibatches(trees):
        rows = normalise_groups(batch)
        run.recorder.count(
            "advantage/dropped_groups", sum(_has_equal_rewards(tree) for tree in batch)
        )
        stats = run.trainer.token_stats([row.trajectory for row in rows])
        masks = [row.trajectory.tensors.mask for row in rows]
        entropies = [stats[row.trajectory].entropies for row in rows]
        factors = entropy_factors(entropies, masks, config.advantage_weight)
        rows = [Row(t, a * f.float()) for (t, a), f in zip(rows, factors, strict=True)]
        run.update_by(rows, token_mean, partial(policy_loss, config=config))


def sample_trees(tasks: list[Task], run: Run, config: Config) -> list[RolloutTree]:
    """Return finished trees of n trajectories, without those whose tools failed."""
    vocabulary = len(run.rollouts.tokenizer)
    first = 1 if config.pre_monitoring else config.initial_rollouts
    trees = run.new_trees(tasks, roots=first)
    draws = {tree: run.draw(tree.name) for tree in trees}
    growing = dict.fromkeys(trees, 0)
    if config.pre_monitoring:
        trees = run.rollout(trees)
        for tree in trees:
            steps = [
                turn_entropy(turn, config.entropy_tokens, vocabulary)
                for turn in tree.roots[0].turns
            ]
            count = initial_rollouts(config.rollouts, steps[0], steps, config.budget_sensitivity)
            run.recorder.note("branch/initial_rollouts", [float(count)])
            # At least one must still run, or nothing would use the rest of the budget.
            for _ in range(min(max(count - 1, 1), config.rollouts - 1)):
                tree.root()

    def after_turn(trees: Sequence[RolloutTree]) -> None:
        for tree in trees:
            growing[tree] = grow(tree, config, vocabulary, draws[tree], growing[tree])

    return run.rollout(trees, after_turn)


def initial_rollouts(rollouts: int, root: float, steps: Sequence[float], sensitivity: float) -> int:
    """Return N of n: the larger, the more uncertain the prompt is than the steps; at least 1.

    Args:
        rollouts: n.
        root: H of the probe's first turn.
        steps: H of every turn; empty: no gap.
        sensitivity: b.
    """
    gap = root - sum(steps) / len(steps) if steps else 0.0
    share = 1 / (1 + math.exp(-sensitivity * gap))
    return min(math.floor(rollouts * share) + 1, rollouts)


def grow(
    tree: RolloutTree, config: Config, vocabulary: int, draw: random.Random, growing: int
) -> int:
    """Branch after a round of turns, with one random number per trial; see `branching.grow`.

    Args:
        tree: mutated.
        config: budget and rule.
        vocabulary: V.
        draw: for the trials.
        growing: s before this round.

    Returns:
        s after it: the consecutive rounds in which the tree has grown.
    """
    new = branching.grow(
        tree, config, vocabulary, lambda gain: should_branch(draw.random(), gain, growing, config)
    )
    return growing + 1 if new else 0


def should_branch(uniform: float, gain: float, growing: int, config: Config) -> bool:
    """True if a trial branches."""
    chance = uniform + config.entropy_weight * gain
    chance *= max(0.0, 1 - config.branch_penalty * growing)
    return min(max(chance, 0.0), 1.0) >= config.branch_threshold


def entropy_factors(
    entropies: Sequence[Tensor], masks: Sequence[Tensor], weight: float
) -> list[Tensor]:
    """(T,) per row: 1 + a z, z by the mean and sample deviation over all trained tokens; else 1."""
    if not masks:
        return []
    trained = torch.cat([e[m] for e, m in zip(entropies, masks, strict=True)])
    if not has_variance(trained):
        return [torch.ones_like(e) for e in entropies]
    mean, deviation = trained.mean(), trained.std()
    return [1 + weight * m * (e - mean) / deviation for e, m in zip(entropies, masks, strict=True)]


def policy_loss(logprobs: Tensor, batch: Batch, config: Config) -> Tensor:
    """Return the surrogate that keeps the gradient of good tokens over their clip."""
    clips = (config.clip_low, config.clip_high, config.dual_clip)
    loss = preserving_surrogate(logprobs, batch.old_logprobs, batch.advantages, *clips, below=0.0)
    return (loss * batch.weights).sum()


def _has_equal_rewards(tree: RolloutTree) -> bool:
    return len({t.reward for t in tree.trajectories}) < 2


if __name__ == "__main__":
    from learners.runs import main

    main("learners.aepo")
