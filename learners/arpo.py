"""ARPO, Agentic Reinforced Policy Optimization (arXiv 2507.19849).

After every tool result a running rollout is branched with probability p + w dH, where

    H = sum over the first 20 tokens of the turn of their entropies / ln V
    dH = H of the last turn - H of the first turn this rollout wrote itself

until the prompt has its n trajectories; if all of a prompt's have ended early, a new one starts.
Branches are ordinary members of the group: A_i = (R_i - mean) / (std + 1e-6), the same for all
tokens; the clipped surrogate, averaged over all tokens. No KL.

Entropies are those of the whole distribution; the published code's, of the ten likeliest tokens,
are slightly smaller. `learners.rl.branching` has the parts that AEPO shares.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks import Task
from learners.config import RunConfig, validate_initial_rollouts
from learners.rl import branching, normalise_groups, token_mean
from learners.rl import dual_clipped_policy_loss as policy_loss
from learners.runs import Run
from learners.tree import RolloutTree


@dataclass(frozen=True)
class Config(RunConfig):
    """ARPO's own fields."""

    rollouts: int = 16
    """n: trajectories per prompt, branches included. [scripts: 16; 12 for 14B]"""
    initial_rollouts: int = 8
    """N: rollouts that start from the prompt. [scripts: 8; 6 for 14B]"""
    beam: int = 2
    """A rollout makes at most beam - 1 branches at a tool result. [scripts: 2]"""
    branch_probability: float = 0.5
    """p: probability of a branch if the entropy has not changed. [scripts: 0.5]"""
    entropy_weight: float = 0.2
    """w: weight of the change of entropy. [scripts: 0.2]"""
    entropy_tokens: int = 20
    """Number of first tokens of a turn whose entropies are summed. [code: 20]"""
    clip_low: float = 0.2
    """The ratio is kept above 1 - clip_low. [scripts: 0.2]"""
    clip_high: float = 0.2
    """The ratio is kept below 1 + clip_high. [scripts: 0.2]"""
    dual_clip: float = 3.0
    """c: where A < 0 the loss is at most -c A; inf: none. [verl, scripts: 3]"""

    def validate(self) -> None:
        """Check option values. Raises UsageError if one is out of range."""
        super().validate()
        validate_initial_rollouts(self.initial_rollouts, self.rollouts)


def iteration(tasks: list[Task], run: Run, config: Config) -> None:
    """One training step."""
    trees = run.new_trees(tasks, roots=config.initial_rollouts)
    draws = {tree: run.draw(tree.name) for tree in trees}
    vocabulary = len(run.rollouts.tokenizer)

    def after_turn(trees: Sequence[RolloutTree]) -> None:
        for tree in trees:
            grow(tree, config, vocabulary, draws[tree])

    run.credit_and_update(
        run.rollout(trees, after_turn),
        advantages=normalise_groups,
        weights=token_mean,
        loss=partial(policy_loss, config=config),
    )


def grow(tree: RolloutTree, config: Config, vocabulary: int, draw: random.Random) -> None:
    """Branch after a round of turns, with one random number per trial; see `branching.grow`."""
    branching.grow(
        tree, config, vocabulary, lambda gain: should_branch(draw.random(), gain, config)
    )


def should_branch(uniform: float, gain: float, config: Config) -> bool:
    """True if a trial branches: with probability p + w dH, within [0, 1]."""
    chance = uniform - config.entropy_weight * gain
    return min(max(chance, 0.0), 1.0) <= config.branch_probability


if __name__ == "__main__":
    from learners.runs import main

    main("learners.arpo")
