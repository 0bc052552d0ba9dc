"""What the numbers of metrics.jsonl mean, and those that an iteration's trees give.

`python -m learners.metrics` prints the table. A name ending in `<...>` stands for several.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean, pvariance, variance

from learners.tree import RolloutTree, Trajectory, usable

PEAK = "memory/peak"
"""The metric of peak memory."""

METRICS = {
    "iteration": "training step, from 0",
    "reward/mean": "mean reward of initial rollouts, however many a prompt came to have",
    "reward/first": "mean over an iteration's prompts of the mean reward of what each began with: "
    "no rollout or prompt that was added by what had been sampled, so that methods compare",
    "reward/std": "its deviation within a prompt, mean over prompts",
    "reward/min": "smallest reward of an initial rollout",
    "reward/max": "largest",
    "reward/term_<name>": "a part of the reward, mean over initial rollouts",
    "reward/kl_penalty": "what --kl-reward takes off the reward of a rollout, mean (REINFORCE++, "
    "RLOO)",
    "stop/<how>": "share of initial rollouts that ended so: answered, malformed, tool_limit, "
    "turn_limit, length",
    "response/tokens": "sampled and observed tokens per initial rollout",
    "response/sampled_tokens": "those that the policy sampled",
    "response/longest": "most tokens of an initial rollout",
    "response/turns": "turns per initial rollout",
    "response/tool_calls": "calls per initial rollout",
    "group/size": "trajectories per prompt",
    "group/equal": "share of prompts whose initial rollouts all earned the same",
    "group/branches_equal": "share of prompts whose branches all earned the same",
    "policy/entropy": "nats per sampled token of what is scored before the update, exact",
    "policy/sampler_gap": "mean absolute difference, sampler's to policy's log-probabilities",
    "policy/sampler_correction": "mean weight of a trained token with --sampler-correction",
    "policy/kl_old": "k3 estimate of KL(old || current) per trained token",
    "policy/kl_reference": "estimate of KL(current || reference) per trained token, with --kl or "
    "--kl-reward",
    "branch/branches": "branches of all prompts",
    "branch/reward_mean": "their mean reward",
    "branch/position": "where they left their parent (0 start, 1 end)",
    "branch/diverged": "share whose first token is not their parent's",
    "branch/distinct": "share of a prompt's branches that no other trajectory of it equals",
    "branch/reward_variance": "variance of the rewards of all that goes on from a branch point, "
    "the parent included, mean over points",
    "branch/score": "mean branching score of chosen tokens (APPO)",
    "branch/undefined": "trajectories ranked without a score: the policy had not moved (APPO)",
    "branch/from_prompt": "branches that begin anew, no token could be branched at (APPO, "
    "published code)",
    "branch/initial_rollouts": "initial rollouts that a probe of the prompt decided on (AEPO)",
    "score/defined": "share of tokens with a defined branching score (APPO)",
    "score/strict": "share of those with both z-scores positive",
    "score/p10": "10th percentile of a rollout's scores, mean over rollouts",
    "score/p50": "median",
    "score/p90": "90th percentile",
    "sampling/generations": "batches of prompts sampled (DAPO)",
    "sampling/equal_groups": "prompts left out, all rewards were equal (DAPO)",
    "sampling/surplus_groups": "prompts left out, there were enough (DAPO)",
    "advantage/magnitude": "mean |A| of trained tokens: what the method multiplies a gradient with",
    "advantage/dropped_groups": "prompts whose rollouts all have advantage 0; only --kl gives them "
    "a gradient",
    "advantage/no_term": "trajectories without credit: both groups had equal rewards (APPO)",
    "advantage/base": "mean of eq. 6 (APPO)",
    "advantage/clipped": "share of its terms that were clipped (APPO)",
    "loss/clip_low_fraction": "share of trained tokens with A < 0 that a clip leaves no gradient",
    "loss/clip_high_fraction": "the same with A > 0",
    "loss/bounded_low_fraction": "share with A < 0 and a ratio below its clip; the gradient is the "
    "bound's (GPPO)",
    "loss/bounded_high_fraction": "the same with A > 0 and above (GPPO)",
    "loss/capped_fraction": "share whose weight the cap on the ratio decides (CISPO)",
    "loss/clip_fraction": "share of trained tokens where the clip decides (APPO, published code)",
    "loss/dual_clip_fraction": "share where the dual clip decides (APPO, published code)",
    "loss/dropped_rows": "share of rows left out for it (APPO, published code)",
    "update/steps": "optimiser steps",
    "update/without_rows": "mini-batches with nothing to learn from",
    "update/skipped": "steps with a gradient that was not finite",
    "update/trees": "share of steps that read shared tokens once; others read padded rows",
    "update/loss": "of a mini-batch before its step",
    "update/gradient_norm": "before clipping",
    "update/learning_rate": "of the iteration",
    "update/stale_rows": "share of trained rows sampled before the last optimiser step",
    "update/staleness": "optimiser steps between sampling and training, mean over rows",
    "validation/score": "official score of validation tasks after the iteration, --eval-every",
    "validation/reward": "their mean reward",
    "tools/unavailable_trees": "trees dropped because a tool's machinery failed",
    "tools/unavailable_after_<calls>": "share given up of the calls that were made after so many",
    "ledger/sampled_tokens": "tokens that the policy sampled",
    "ledger/reused_tokens": "tokens that branches share with their parents",
    "ledger/prefilled_tokens": "read before sampling could begin, beyond what the sampler had kept",
    "ledger/trained_tokens": "tokens that were trained on",
    "ledger/scored_tokens": "tokens read to score rollouts, prompts included",
    "ledger/updated_tokens": "tokens read to update, prompts and results included",
    "ledger/computed_tokens": "read by both in fact: shared ones once, padding included",
    "ledger/flops": "of the policy's matrix products: 2 a parameter and token forward, 4 backward",
    "ledger/tool_calls": "calls that were executed",
    "ledger/tool_calls_<tool>": "of one tool",
    "ledger/retries": "steps of the environment made again after a fault of the machinery",
    "ledger/replayed_states": "states of Python rebuilt by replay, their live ones being gone",
    "ledger/forked_states": "states of Python that a cell was run in, each a fork of a live one",
    "ledger/inherited_calls": "calls that branches share with their parents",
    "ledger/free_calls": "calls that a recording answered",
    "ledger/free_calls_<tool>": "of one tool",
    "ledger/judge_calls": "verdicts asked of the judge; evaluations have theirs in their own files",
    "ledger/judge_cached": "those of them that it had given before",
    "ledger/judge_faults": "requests to it that brought none; it was sent calls - cached + faults",
    "ledger/cost": "of the calls that were executed and not free, of verdicts not given before, "
    "with --prices",
    "ledger/lost_tokens": "sampled by work that was discarded; told in the iteration or evaluation "
    "after it",
    "ledger/lost_calls": "the same of calls that were executed",
    "ledger/lost_judge_calls": "the same of verdicts asked for",
    "memory/peak": "bytes that this process held at most, on CUDA that were allocated; tools and "
    "servers have processes of their own",
    "seconds/<phase>": "wall clock: sample, tools, score, update, iteration",
}
"""Name -> meaning. Every name that a run writes is here."""


def documented(name: str) -> str | None:
    """The entry of METRICS that a written name falls under, the most specific one."""
    if name in METRICS:
        return name
    stems = {entry: entry.partition("<")[0] for entry in METRICS if "<" in entry}
    fitting = [entry for entry, stem in stems.items() if name.startswith(stem)]
    return max(fitting, key=lambda entry: len(stems[entry]), default=None)


def tree_metrics(trees: Sequence[RolloutTree]) -> dict[str, float]:
    """What the trees of an iteration were like; those without their tools are left out."""
    kept = usable(trees)
    roots = [root for tree in kept for root in tree.roots]
    branches = [branch for tree in kept for branch in tree.branches]
    found = {"branch/branches": float(len(branches))}
    found["tools/unavailable_trees"] = float(sum(t.unavailable is not None for t in trees))
    if roots:
        found |= _rollout_metrics(roots) | _group_metrics(kept)
    first = [
        [root.reward for root in tree.roots[: tree.initial_roots]]
        for tree in kept
        if tree.initial_roots
    ]
    if first:
        found["reward/first"] = fmean(map(fmean, first))
    if branches:
        found |= _branch_metrics(kept, branches)
    return found


def _rollout_metrics(roots: Sequence[Trajectory]) -> dict[str, float]:
    rewards = [root.reward for root in roots]
    found = {
        "reward/mean": fmean(rewards),
        "reward/min": min(rewards),
        "reward/max": max(rewards),
        "response/tokens": fmean(len(root) for root in roots),
        "response/sampled_tokens": fmean(root.sampled_tokens for root in roots),
        "response/longest": float(max(len(root) for root in roots)),
        "response/turns": fmean(len(root.turns) for root in roots),
        "response/tool_calls": fmean(len(root.state.calls) for root in roots),
    }
    for name in {name for root in roots for name in root.reward_terms}:
        found[f"reward/term_{name}"] = fmean(root.reward_terms.get(name, 0.0) for root in roots)
    ends = {"answered", "malformed", "tool_limit", "length"} | {
        root.state.stop for root in roots if root.state.stop is not None
    }
    return found | {f"stop/{e}": fmean(root.state.stop == e for root in roots) for e in ends}


def _group_metrics(trees: Sequence[RolloutTree]) -> dict[str, float]:
    groups = [[root.reward for root in tree.roots] for tree in trees if tree.roots]
    found = {
        "group/size": fmean(len(tree.trajectories) for tree in trees),
        "group/equal": fmean(max(group) == min(group) for group in groups),
        "reward/std": fmean(pvariance(group) ** 0.5 for group in groups),
    }
    others = [[branch.reward for branch in tree.branches] for tree in trees if tree.branches]
    if others:
        found["group/branches_equal"] = fmean(max(group) == min(group) for group in others)
    return found


def _branch_metrics(
    trees: Sequence[RolloutTree], branches: Sequence[Trajectory]
) -> dict[str, float]:
    places, diverged = [], []
    rewards: defaultdict[tuple[Trajectory, int], list[float]] = defaultdict(list)
    for branch in branches:
        assert branch.parent is not None
        source, position, _ = branch.parent
        places.append(position / max(len(source), 1))
        diverged.append(
            branch.response_ids[position : position + 1]
            != source.response_ids[position : position + 1]
        )
        rewards[source, position].append(branch.reward)
    distinct = []
    for tree in trees:
        said = [one.response_ids for one in tree.trajectories]
        distinct += [said.count(branch.response_ids) == 1 for branch in tree.branches]
    return {
        "branch/reward_mean": fmean(branch.reward for branch in branches),
        "branch/position": fmean(places),
        "branch/diverged": fmean(diverged),
        "branch/distinct": fmean(distinct),
        "branch/reward_variance": fmean(
            variance([source.reward, *earned]) for (source, _), earned in rewards.items()
        ),
    }


def main() -> None:
    """Print the table."""
    width = max(map(len, METRICS))
    for name, meaning in METRICS.items():
        print(f"{name:<{width}}  {meaning}")  # noqa: T201


if __name__ == "__main__":
    main()
