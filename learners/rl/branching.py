"""Where a rollout tree branches: which tokens come first, and how a budget is shared out.

Only tokens that a trajectory sampled itself are candidates: what it shares with its parent belongs
to the parent. Nothing here samples, and every budget is filled exactly.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from learners.policy import TokenStats
from learners.rl.losses import future_values, zscore
from learners.tree import BranchPoint, RolloutTree, Trajectory, Turn

Rule = Literal["score", "entropy", "future", "random", "tool"]


Prefix = Literal["before", "through"]


class Candidate(NamedTuple):
    """A token that a branch may leave at."""

    rank: tuple[float, ...]
    """The smaller the better; comparable within a tree."""
    point: BranchPoint


class Scores(NamedTuple):
    """Of the tokens that a trajectory sampled itself, in order; all (n,)."""

    positions: Tensor
    entropies: Tensor
    """H, nats."""
    future: Tensor | None
    """Z(Omega); None where it is undefined: the policy has not moved."""
    score: Tensor
    """BS = Z(Omega) Z(H), eq. 5 of APPO; 0 where it is undefined."""
    strict: Tensor
    """True where both z-scores are positive: uncertain and consequential."""


class Branching(NamedTuple):
    """Where a tree branches."""

    points: list[BranchPoint]
    scores: list[Scores]
    """Of every trajectory that could be branched."""


def token_scores(trajectory: Trajectory, stats: TokenStats, omega: Tensor | None) -> Scores:
    """Score the tokens of a trajectory by its own statistics.

    Args:
        trajectory: finished.
        stats: of it, under the current policy.
        omega: (T,) clipped future values, eq. 4; None where they are undefined.
    """
    own = own_tokens(trajectory)
    entropies = stats.entropies[own]
    if omega is None or not len(own):
        return Scores(own, entropies, None, torch.zeros_like(entropies), torch.zeros_like(own) > 0)
    uncertain, consequential = zscore(entropies), zscore(omega[own])
    strict = (uncertain > 0) & (consequential > 0)
    return Scores(own, entropies, consequential, uncertain * consequential, strict)


def leave(trajectory: Trajectory, scores: Scores, omega: Tensor | None) -> None:
    """Leave future values and scores on the trajectory, where they are defined."""
    trajectory.diagnostics.future_values, trajectory.diagnostics.scores = omega, None
    if scores.future is not None:
        trajectory.diagnostics.scores = torch.zeros(len(trajectory), dtype=scores.score.dtype)
        trajectory.diagnostics.scores[scores.positions] = scores.score


def own_tokens(trajectory: Trajectory) -> Tensor:
    """(n,) positions of the tokens that a trajectory sampled itself, after its branch point."""
    own = _sampled(trajectory).clone()  # the trajectory's own is read-only
    if trajectory.parent is not None:
        own[: trajectory.parent.position] = False
    return own.nonzero()[:, 0]


def candidates(
    trajectory: Trajectory,
    scores: Scores,
    rule: Rule,
    prefix: Prefix,
    draw: random.Random,
    used: Counter[tuple[Trajectory, int]],
) -> list[Candidate]:
    """The tokens of a trajectory, best first; none only for a branch that sampled nothing.

    Args:
        trajectory: that may be branched.
        scores: of its tokens.
        rule: score, both z-scores positive first, by BS, then the others by H; entropy, by H;
            future, by Z(Omega), drawn where it is undefined; random, drawn; tool, only tokens that
            follow a tool's result, by H.
        prefix: before, the token is sampled anew; through, it is kept. A token that ends its turn
            is not kept: the branch would skip the tool's result, or equal its parent.
        draw: of rules that draw.
        used: branches that have left so far, by trajectory and position.
    """
    keys = _keys(scores, rule, draw)
    mask = trajectory.response_mask
    inner = [i + 1 < len(mask) and mask[i + 1] for i in scores.positions.tolist()]
    allowed = [True] * len(inner)
    if rule == "tool":
        allowed = [i > 0 and not mask[i - 1] for i in scores.positions.tolist()]
        if not any(allowed):
            allowed = [place == 0 for place in range(len(inner))]
    kept = prefix == "through" and any(a and b for a, b in zip(allowed, inner, strict=True))
    found = []
    for place, position in enumerate(scores.positions.tolist()):
        if allowed[place] and (inner[place] or not kept):
            point = BranchPoint(trajectory, position + kept, float(scores.score[place]))
            rank = (float(used[trajectory, point.position]), *keys[place])
            found.append(Candidate(rank, point))
    if not found and trajectory.parent is None:  # nothing was sampled: begin anew
        found.append(Candidate((0.0, 2.0, 0.0), BranchPoint(trajectory, 0)))
    return sorted(found, key=lambda candidate: candidate.rank)


def _keys(scores: Scores, rule: Rule, draw: random.Random) -> list[tuple[float, ...]]:
    """What each token is ranked by; smaller is better."""
    entropies = scores.entropies.tolist()
    if rule == "score":
        both = zip(scores.strict.tolist(), scores.score.tolist(), entropies, strict=True)
        return [(0.0, -score) if strict else (1.0, -entropy) for strict, score, entropy in both]
    if rule == "random":
        return [(0.0, draw.random()) for _ in entropies]
    if rule == "future":
        if scores.future is None:
            return [(1.0, draw.random()) for _ in entropies]
        return [(0.0, -value) for value in scores.future.tolist()]
    return [(0.0, -entropy) for entropy in entropies]


def share_out(
    rankings: Sequence[Sequence[Candidate]], budget: int, draw: random.Random
) -> list[BranchPoint]:
    """The same number from each ranking, the remainder by draw: `budget` in all.

    A trajectory with fewer tokens than branches branches again at its best ones.
    """
    fertile = [ranking for ranking in rankings if ranking]
    each, remainder = divmod(budget, len(fertile))
    lucky = set(draw.sample(range(len(fertile)), remainder))
    return [
        ranking[turn % len(ranking)].point
        for index, ranking in enumerate(fertile)
        for turn in range(each + (index in lucky))
    ]


def pool(rankings: Sequence[Sequence[Candidate]], budget: int) -> list[BranchPoint]:
    """The best of all rankings together; ties keep their order. `budget` in all."""
    best = sorted((c for ranking in rankings for c in ranking), key=lambda c: c.rank)
    return [best[turn % len(best)].point for turn in range(budget)]


def layer_sizes(roots: int, total: int, layers: int) -> list[int]:
    """Trajectories of a tree after each layer of branches; each grows it by the same factor.

    The last is `total`: with N (B + 1)^L of them, every trajectory branches B times per layer.
    """
    growth = total / roots
    return [round(roots * growth ** (layer / layers)) for layer in range(1, layers)] + [total]


def branches_used(tree: RolloutTree) -> Counter[tuple[Trajectory, int]]:
    """Branches that have left, by trajectory and position."""
    return Counter((b.parent.trajectory, b.parent.position) for b in tree.branches if b.parent)


def omega(trajectory: Trajectory, stats: TokenStats, discount: float, clip: float) -> Tensor:
    """(T,) clipped future values under the current policy, eqs. 4 and 7 of APPO."""
    assert trajectory.old_logprobs is not None, "remember_old_logprobs before scoring"
    log_ratio = stats.logprobs - trajectory.old_logprobs
    return future_values(log_ratio, _sampled(trajectory), discount, clip)


def defined_omega(
    trajectory: Trajectory, stats: TokenStats, discount: float, clip: float, noise: float | None
) -> Tensor | None:
    """(T,) future values; None where they are undefined, or spread no more than rounding does.

    Args:
        trajectory: finished.
        stats: of it, under the current policy.
        discount: gamma.
        clip: eps'.
        noise: spread of Omega that rounding alone causes; None: the policy has not moved.
    """
    if noise is None or trajectory.parent is not None:
        return None  # a branch's own tokens were sampled by the current policy: Omega is 1
    spread = omega_spread([trajectory], {trajectory: stats}, discount, clip)
    return omega(trajectory, stats, discount, clip) if spread > 2 * noise else None


def omega_spread(
    roots: Sequence[Trajectory],
    stats: dict[Trajectory, TokenStats],
    discount: float,
    clip: float,
) -> float:
    """Largest deviation of Omega within a root; with equal weights it is rounding noise."""
    sampled = [omega(root, stats[root], discount, clip)[_sampled(root)] for root in roots]
    return max((float(values.std(correction=0)) for values in sampled if len(values)), default=0.0)


def remember_branches(branches: Sequence[Trajectory], stats: dict[Trajectory, TokenStats]) -> None:
    """Old log-probabilities of branches: the parent's, then those of the policy that sampled.

    Args:
        branches: in the order they were made: a parent comes first.
        stats: of them, under the policy that sampled them.
    """
    for branch in branches:
        assert branch.parent is not None
        assert branch.parent.trajectory.old_logprobs is not None
        shared = branch.parent.position
        branch.old_logprobs = stats[branch].logprobs.clone()
        branch.old_logprobs[:shared] = branch.parent.trajectory.old_logprobs[:shared]


def own_mask(trajectory: Trajectory) -> Tensor:
    """(T,) True on the tokens a trajectory sampled itself: shared ones train in its parent."""
    mask = torch.zeros(len(trajectory), dtype=torch.bool)
    mask[own_tokens(trajectory)] = True
    return mask


def describe(
    chosen: Branching,
    note: Callable[[str, Sequence[float]], None],
    count: Callable[[str, int], None],
) -> None:
    """Take down what a placement was like."""
    note("branch/score", [point.score for point in chosen.points])
    for scores in chosen.scores:
        defined = scores.future is not None
        count("branch/undefined", int(not defined))
        note("score/defined", [float(defined)] * len(scores.positions))
        if defined:
            note("score/strict", scores.strict.double().tolist())
            levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.double)
            quantiles = scores.score.double().quantile(levels).tolist()
            for name, value in zip(("p10", "p50", "p90"), quantiles, strict=True):
                note(f"score/{name}", [value])


def _sampled(trajectory: Trajectory) -> Tensor:
    return trajectory.tensors.mask


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
