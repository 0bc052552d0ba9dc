"""Branching after tool results where entropy has changed: what ARPO and AEPO share.

    H = sum over the first tokens of a turn of their entropies / ln V
    dH = H of the last turn - H of the first turn this rollout wrote itself

H is a sum, so that a short turn counts as certain, whatever its tokens. Whether a dH branches is
each method's own rule.
"""

import math
from collections.abc import Callable
from typing import Protocol

from learners.tree import BranchPoint, RolloutTree, Trajectory, Turn


class Budget(Protocol):
    """Fields of a method's Config."""

    @property
    def rollouts(self) -> int: ...
    @property
    def beam(self) -> int: ...
    @property
    def entropy_tokens(self) -> int: ...


def grow(
    tree: RolloutTree, budget: Budget, vocabulary: int, branches: Callable[[float], bool]
) -> int:
    """Branch what is running after a round of turns; start anew where nothing is.

    Args:
        tree: mutated, never beyond its budget of `rollouts`.
        budget: a rollout makes at most beam - 1 branches.
        vocabulary: V.
        branches: dH -> whether a trial branches; asked in the order of the trajectories.

    Returns:
        How many trajectories are new.
    """
    before = len(tree.trajectories)
    running = [t for t in tree.trajectories if not t.done]
    left = budget.rollouts - before
    if not running and left > 0:
        tree.root()
    for trajectory in running:
        gain = entropy_gain(trajectory, budget.entropy_tokens, vocabulary)
        for _ in range(min(budget.beam - 1, left)):
            if branches(gain):
                tree.fork(BranchPoint(trajectory, len(trajectory), gain))
                left -= 1
    return len(tree.trajectories) - before


def entropy_gain(trajectory: Trajectory, tokens: int, vocabulary: int) -> float:
    """DH of a running trajectory. A branch's first turn is the first after its branch point."""
    position = trajectory.parent.position if trajectory.parent else 0
    own: list[Turn] = []
    start = 0
    for turn in trajectory.turns:
        if start >= position:
            own.append(turn)
        start += len(turn)
    return turn_entropy(own[-1], tokens, vocabulary) - turn_entropy(own[0], tokens, vocabulary)


def turn_entropy(turn: Turn, tokens: int, vocabulary: int) -> float:
    """H of a turn."""
    return sum(turn.action.entropies[:tokens]) / math.log(vocabulary)
