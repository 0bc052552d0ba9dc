"""Decides where a rollout tree branches: ranks tokens and shares out a budget, or draws by entropy.

The first part is APPO's: it ranks the tokens of finished trajectories and fills a budget exactly.
Candidates are only tokens that a trajectory sampled itself; those it shares with its parent belong
to the parent. The last part, from `grow` on, is ARPO's and AEPO's: it branches running trajectories
after a tool result. Nothing here samples.
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
"""Order of the candidates; see `rank_candidates`."""

Prefix = Literal["before", "through"]
"""End of what a branch shares: before the chosen token, or after it."""


class TokenScores(NamedTuple):
    """Scores of the n tokens that a trajectory sampled itself, in order; all (n,)."""

    positions: Tensor
    entropies: Tensor
    """H, nats."""
    future: Tensor | None
    """Z(Omega); None if it is undefined: the policy has not moved."""
    score: Tensor
    """BS = Z(Omega) Z(H), eq. 5 of APPO; 0 if it is undefined."""
    strict: Tensor
    """True where both z-scores are positive: uncertain and consequential."""


class Candidate(NamedTuple):
    """A token that a branch may leave at."""

    rank: tuple[float, ...]
    """The smaller the better; comparable within a tree."""
    point: BranchPoint


class BranchChoice(NamedTuple):
    """The branch points chosen for a tree."""

    points: list[BranchPoint]
    scores: list[TokenScores]
    """Scores of every trajectory that could be branched."""


class GrowthConfig(Protocol):
    """The budget of a method that branches running trajectories."""

    @property
    def rollouts(self) -> int: ...
    @property
    def beam(self) -> int: ...
    @property
    def entropy_tokens(self) -> int: ...


def omega(trajectory: Trajectory, stats: TokenStats, discount: float, clip: float) -> Tensor:
    """(T,) clipped future values under the current policy, eqs. 4 and 7 of APPO."""
    assert trajectory.old_logprobs is not None, "remember_old_logprobs before scoring"
    log_ratio = stats.logprobs - trajectory.old_logprobs
    return future_values(log_ratio, trajectory.tensors.mask, discount, clip)


def defined_omega(
    trajectory: Trajectory, stats: TokenStats, discount: float, clip: float, noise: float | None
) -> Tensor | None:
    """(T,) future values; None if they are undefined, or spread no more than rounding does.

    Args:
        trajectory: finished.
        stats: of the trajectory under the current policy.
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
    """Return the largest deviation of Omega within a root.

    Under the weights that sampled the roots it is rounding noise.
    """
    sampled = [omega(root, stats[root], discount, clip)[root.tensors.mask] for root in roots]
    return max((float(values.std(correction=0)) for values in sampled if len(values)), default=0.0)


def score_tokens(trajectory: Trajectory, stats: TokenStats, omega: Tensor | None) -> TokenScores:
    """Score the tokens of a trajectory by its own statistics.

    Args:
        trajectory: finished.
        stats: of the trajectory under the current policy.
        omega: (T,) clipped future values, eq. 4; None if they are undefined.
    """
    positions = own_tokens(trajectory)
    entropies = stats.entropies[positions]
    if omega is None or not len(positions):
        nowhere = torch.zeros_like(positions, dtype=torch.bool)
        return TokenScores(positions, entropies, None, torch.zeros_like(entropies), nowhere)
    uncertain, consequential = zscore(entropies), zscore(omega[positions])
    strict = (uncertain > 0) & (consequential > 0)
    return TokenScores(positions, entropies, consequential, uncertain * consequential, strict)


def store_scores(trajectory: Trajectory, scores: TokenScores, omega: Tensor | None) -> None:
    """Store future values and scores in the trajectory's diagnostics; None if undefined."""
    trajectory.diagnostics.future_values, trajectory.diagnostics.scores = omega, None
    if scores.future is not None:
        values = torch.zeros(len(trajectory), dtype=scores.score.dtype)
        values[scores.positions] = scores.score
        trajectory.diagnostics.scores = values


def rank_candidates(
    trajectory: Trajectory,
    scores: TokenScores,
    rule: Rule,
    prefix: Prefix,
    draw: random.Random,
    used: Counter[tuple[Trajectory, int]],
) -> list[Candidate]:
    """Rank the tokens of a trajectory, best first; none only for a branch that sampled nothing.

    Args:
        trajectory: may be branched.
        scores: of its tokens.
        rule: score, both z-scores positive first, by BS, then the others by H; entropy, by H;
            future, by Z(Omega), drawn if it is undefined; random, drawn; tool, only tokens that
            follow a tool's result, by H.
        prefix: before, the token is sampled anew; through, it is kept. A token that ends its turn
            is not kept: the branch would skip the tool's result, or equal its parent.
        draw: for rules that draw.
        used: branches that have left so far, by trajectory and position.
    """
    keys = _ranking_keys(scores, rule, draw)
    positions: list[int] = scores.positions.tolist()
    mask = trajectory.response_mask
    inside_turn = [i + 1 < len(mask) and mask[i + 1] for i in positions]
    allowed = [True] * len(positions)
    if rule == "tool":
        allowed = [i > 0 and not mask[i - 1] for i in positions]
        if not any(allowed):  # no tool was called: branch at the prompt
            allowed = [index == 0 for index in range(len(positions))]
    # If every allowed token ends its turn, none can be kept: they are sampled anew instead.
    keep = prefix == "through" and any(a and b for a, b in zip(allowed, inside_turn, strict=True))
    ranking = []
    for index, position in enumerate(positions):
        if allowed[index] and (inside_turn[index] or not keep):
            point = BranchPoint(trajectory, position + keep, float(scores.score[index]))
            rank = (float(used[trajectory, point.position]), *keys[index])
            ranking.append(Candidate(rank, point))
    if not ranking and trajectory.parent is None:  # the root sampled nothing: start anew
        ranking.append(Candidate((0.0, 2.0, 0.0), BranchPoint(trajectory, 0)))
    return sorted(ranking, key=lambda candidate: candidate.rank)


def _ranking_keys(scores: TokenScores, rule: Rule, draw: random.Random) -> list[tuple[float, ...]]:
    """Return a sorting key for each token; smaller is better."""
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
    """Take the same number from each ranking, the remainder by draw: `budget` in all.

    A trajectory with fewer tokens than branches branches again at its best ones.
    """
    usable = [ranking for ranking in rankings if ranking]
    share, remainder = divmod(budget, len(usable))
    with_one_more = set(draw.sample(range(len(usable)), remainder))
    return [
        ranking[turn % len(ranking)].point
        for index, ranking in enumerate(usable)
        for turn in range(share + (index in with_one_more))
    ]


def pick_best(rankings: Sequence[Sequence[Candidate]], budget: int) -> list[BranchPoint]:
    """Take the best of all rankings together, `budget` in all; ties keep their order."""
    best = sorted((c for ranking in rankings for c in ranking), key=lambda c: c.rank)
    return [best[turn % len(best)].point for turn in range(budget)]


def layer_sizes(roots: int, total: int, layers: int) -> list[int]:
    """Return the trajectories of a tree after each layer of branches; layers multiply alike.

    The last is `total`: with N (B + 1)^L of them, every trajectory branches B times per layer.
    """
    growth = total / roots
    return [round(roots * growth ** (layer / layers)) for layer in range(1, layers)] + [total]


def count_branches(tree: RolloutTree) -> Counter[tuple[Trajectory, int]]:
    """Count the branches of a tree by the trajectory and the position that they left."""
    return Counter((b.parent.trajectory, b.parent.position) for b in tree.branches if b.parent)


def remember_branch_logprobs(
    branches: Sequence[Trajectory], stats: dict[Trajectory, TokenStats]
) -> None:
    """Set old log-probabilities of branches: the parent's, then those of the policy that sampled.

    Args:
        branches: in the order they were made: a parent comes first.
        stats: of the branches, under the policy that sampled them.
    """
    for branch in branches:
        assert branch.parent is not None
        assert branch.parent.trajectory.old_logprobs is not None
        shared = branch.parent.position
        branch.old_logprobs = stats[branch].logprobs.clone()
        branch.old_logprobs[:shared] = branch.parent.trajectory.old_logprobs[:shared]


def own_tokens(trajectory: Trajectory) -> Tensor:
    """(n,) positions of the tokens that a trajectory sampled itself, after its branch point."""
    return own_mask(trajectory).nonzero()[:, 0]


def own_mask(trajectory: Trajectory) -> Tensor:
    """(T,) True on the tokens a trajectory sampled itself: shared ones train in its parent."""
    mask = trajectory.tensors.mask.clone()  # the trajectory's own is shared and read-only
    if trajectory.parent is not None:
        mask[: trajectory.parent.position] = False
    return mask


def record_choice(
    choice: BranchChoice,
    note: Callable[[str, Sequence[float]], None],
    count: Callable[[str, int], None],
) -> None:
    """Record metrics of the chosen branch points and of the scores they were chosen by."""
    note("branch/score", [point.score for point in choice.points])
    for scores in choice.scores:
        defined = scores.future is not None
        count("branch/undefined", int(not defined))
        note("score/defined", [float(defined)] * len(scores.positions))
        if defined:
            note("score/strict", scores.strict.double().tolist())
            levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.double)
            quantiles = scores.score.double().quantile(levels).tolist()
            for name, value in zip(("p10", "p50", "p90"), quantiles, strict=True):
                note(f"score/{name}", [value])


def grow(
    tree: RolloutTree,
    config: GrowthConfig,
    vocabulary: int,
    should_branch: Callable[[float], bool],
) -> int:
    """Branch running trajectories after a round of turns; if none is running, start a new one.

    Args:
        tree: mutated, never beyond its budget of `rollouts`.
        config: a rollout makes at most beam - 1 branches.
        vocabulary: V.
        should_branch: dH -> True if a trial branches; asked in the order of the trajectories.

    Returns:
        The number of new trajectories.
    """
    before = len(tree.trajectories)
    running = [t for t in tree.trajectories if not t.done]
    left = config.rollouts - before
    if not running and left > 0:
        tree.root()
    for trajectory in running:
        gain = entropy_gain(trajectory, config.entropy_tokens, vocabulary)
        for _ in range(min(config.beam - 1, left)):
            if should_branch(gain):
                tree.fork(BranchPoint(trajectory, len(trajectory), gain))
                left -= 1
    return len(tree.trajectories) - before


def entropy_gain(trajectory: Trajectory, tokens: int, vocabulary: int) -> float:
    """Return dH of a running trajectory: H of its last turn less that of its own first turn.

    A branch's own first turn is the first after its branch point.
    """
    position = trajectory.parent.position if trajectory.parent else 0
    own_turns: list[Turn] = []
    start = 0
    for turn in trajectory.turns:
        if start >= position:
            own_turns.append(turn)
        start += len(turn)
    last, first = own_turns[-1], own_turns[0]
    return turn_entropy(last, tokens, vocabulary) - turn_entropy(first, tokens, vocabulary)


def turn_entropy(turn: Turn, tokens: int, vocabulary: int) -> float:
    """Return H of a turn: the entropies of its first tokens, summed, in units of ln V."""
    return sum(turn.action.entropies[:tokens]) / math.log(vocabulary)
