"""Names and meanings of metrics, and the metrics of an iteration's rollout trees.

`python -m learners.metrics` prints the table. A name that ends in `<...>` stands for several.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean, pvariance, variance

from learners.tree import RolloutTree, Trajectory, usable

PEAK = "memory/peak"
"""Name of the metric of peak memory."""

METRICS = {
    "iteration": "training step, from 0",
    "reward/mean": "mean reward of initial rollouts",
    "reward/first": "mean, over prompts, of the mean reward of the rollouts that each prompt "
    "started with; rollouts and prompts added after sampling began do not count, so methods are "
    "comparable",
    "reward/std": "standard deviation of rewards within a prompt, mean over prompts",
    "reward/min": "smallest reward of an initial rollout",
    "reward/max": "largest reward of an initial rollout",
    "reward/term_<name>": "one term of the reward, mean over initial rollouts",
    "reward/kl_penalty": "mean amount that --kl-reward subtracts from a rollout's reward "
    "(REINFORCE++, RLOO)",
    "stop/<how>": "share of initial rollouts that ended this way: answered, malformed, tool_limit, "
    "turn_limit, length",
    "response/tokens": "sampled and observed tokens per initial rollout",
    "response/sampled_tokens": "tokens that the policy sampled per initial rollout",
    "response/longest": "tokens of the longest initial rollout",
    "response/turns": "turns per initial rollout",
    "response/tool_calls": "tool calls per initial rollout",
    "group/size": "trajectories per prompt",
    "group/equal": "share of zero-variance groups: prompts whose initial rollouts all have the "
    "same reward",
    "group/branches_equal": "share of prompts whose branches all have the same reward",
    "policy/entropy": "exact entropy per sampled token of the trajectories scored before the "
    "update, nats",
    "policy/sampler_gap": "sampler/trainer mismatch: mean absolute difference of their "
    "log-probabilities",
    "policy/sampler_correction": "mean weight of a trained token with --sampler-correction",
    "policy/kl_old": "k3 estimate of KL(old || current) per trained token",
    "policy/kl_reference": "estimate of KL(current || reference) per trained token, with --kl or "
    "--kl-reward",
    "branch/branches": "branches of all prompts",
    "branch/reward_mean": "mean reward of branches",
    "branch/position": "position of branch points in their parent (0 start, 1 end)",
    "branch/diverged": "share of branches whose first token differs from their parent's",
    "branch/distinct": "share of branches that equal no other trajectory of their prompt",
    "branch/reward_variance": "variance of the rewards of a branch point's branches and their "
    "parent, mean over branch points",
    "branch/score": "mean branching score of the chosen tokens (APPO)",
    "branch/undefined": "trajectories ranked without a score because the policy had not been "
    "updated (APPO)",
    "branch/from_prompt": "branches that start at the prompt because no token could be branched at "
    "(APPO, published code)",
    "branch/initial_rollouts": "initial rollouts chosen by the probe of the prompt (AEPO)",
    "score/defined": "share of tokens with a defined branching score (APPO)",
    "score/strict": "share of those with both z-scores positive",
    "score/p10": "10th percentile of a rollout's scores, mean over rollouts",
    "score/p50": "median of a rollout's scores, mean over rollouts",
    "score/p90": "90th percentile of a rollout's scores, mean over rollouts",
    "sampling/generations": "batches of prompts sampled (DAPO)",
    "sampling/equal_groups": "prompts left out because all their rewards were equal (DAPO)",
    "sampling/surplus_groups": "prompts left out because the batch was full (DAPO)",
    "advantage/magnitude": "mean |A| of trained tokens, the factor of their gradients",
    "advantage/dropped_groups": "prompts whose rollouts all have advantage 0; only --kl gives them "
    "a gradient",
    "advantage/no_term": "trajectories without an advantage: both of their groups had equal "
    "rewards (APPO)",
    "advantage/base": "mean base advantage, eq. 6 (APPO)",
    "advantage/clipped": "share of clipped terms of the base advantage (APPO)",
    "loss/clip_low_fraction": "share of trained tokens with A < 0 whose gradient the clip removes",
    "loss/clip_high_fraction": "share of trained tokens with A > 0 whose gradient the clip removes",
    "loss/bounded_low_fraction": "share of trained tokens with A < 0 and a ratio below the clip; "
    "their gradient is bounded, not removed (GPPO)",
    "loss/bounded_high_fraction": "share of trained tokens with A > 0 and a ratio above the clip "
    "(GPPO)",
    "loss/capped_fraction": "share of trained tokens whose ratio is above its cap (CISPO)",
    "loss/clip_fraction": "share of trained tokens whose loss is the clipped one (APPO, published "
    "code)",
    "loss/dual_clip_fraction": "share of trained tokens whose loss is the dual clip's (APPO, "
    "published code)",
    "loss/dropped_rows": "share of trajectories left out because the dual clip decides more than "
    "one of their tokens (APPO, published code)",
    "update/steps": "optimizer steps",
    "update/without_rows": "mini-batches without a trajectory to train on",
    "update/skipped": "steps skipped because a gradient was not finite",
    "update/trees": "share of steps that computed shared prefixes once; the others computed padded "
    "rows",
    "update/loss": "loss of a mini-batch before its step",
    "update/gradient_norm": "gradient norm before clipping",
    "update/learning_rate": "learning rate of the iteration",
    "update/stale_rows": "share of trained trajectories sampled before the last optimizer step",
    "update/staleness": "optimizer steps between sampling and training, mean over trajectories",
    "validation/score": "official score of the validation tasks after the iteration, --eval-every",
    "validation/reward": "mean reward of the validation tasks",
    "tools/unavailable_trees": "trees dropped because a tool's machinery failed",
    "tools/unavailable_after_<calls>": "share of tool calls that failed for good, among those made "
    "after this many calls of their episode",
    "ledger/sampled_tokens": "tokens that the policy sampled",
    "ledger/reused_tokens": "tokens that branches share with their parents",
    "ledger/prefilled_tokens": "tokens computed before sampling could start, beyond those in the "
    "sampler's KV cache",
    "ledger/trained_tokens": "tokens that were trained on",
    "ledger/scored_tokens": "tokens of scored trajectories, prompts included",
    "ledger/updated_tokens": "tokens of trained trajectories, prompts and tool results included",
    "ledger/computed_tokens": "tokens that scoring and updates computed: shared ones once, padding "
    "included",
    "ledger/flops": "FLOPs of the policy's matrix products: per parameter and token, 2 forward and "
    "4 backward",
    "ledger/tool_calls": "tool calls that were executed",
    "ledger/tool_calls_<tool>": "tool calls that were executed, of one tool",
    "ledger/retries": "environment steps retried after a fault of a tool's machinery",
    "ledger/replayed_states": "Python states rebuilt by replay because no live one was left",
    "ledger/forked_states": "Python states forked from a live one to run a cell",
    "ledger/inherited_calls": "tool calls that branches share with their parents",
    "ledger/free_calls": "tool calls that a recording answered",
    "ledger/free_calls_<tool>": "tool calls that a recording answered, of one tool",
    "ledger/judge_calls": "verdicts requested from the judge; evaluations count theirs in their "
    "own files",
    "ledger/judge_cached": "requested verdicts that the judge's cache held",
    "ledger/judge_faults": "requests to the judge that failed; it received judge_calls - "
    "judge_cached + judge_faults",
    "ledger/cost": "cost by --prices of executed tool calls that were not free and of verdicts "
    "that were not cached",
    "ledger/lost_tokens": "tokens sampled by discarded work, reported by the next iteration or "
    "evaluation",
    "ledger/lost_calls": "tool calls executed by discarded work",
    "ledger/lost_judge_calls": "verdicts requested by discarded work",
    "memory/peak": "peak memory of this process in bytes, on CUDA the peak allocated; tools and "
    "servers run in processes of their own",
    "seconds/<phase>": "wall clock of a phase: sample, tools, score, update, iteration",
}
"""Name -> meaning, for every name that a run writes."""


def find_entry(name: str) -> str | None:
    """Return the most specific entry of METRICS that covers a written name; None without one."""
    if name in METRICS:
        return name
    stems = {entry: entry.partition("<")[0] for entry in METRICS if "<" in entry}
    matches = [entry for entry, stem in stems.items() if name.startswith(stem)]
    return max(matches, key=lambda entry: len(stems[entry]), default=None)


def compute_tree_metrics(trees: Sequence[RolloutTree]) -> dict[str, float]:
    """Compute the metrics of an iteration's trees; those whose tools failed are only counted."""
    complete = usable(trees)
    roots = [root for tree in complete for root in tree.roots]
    branches = [branch for tree in complete for branch in tree.branches]
    metrics = {
        "branch/branches": float(len(branches)),
        "tools/unavailable_trees": float(sum(tree.unavailable is not None for tree in trees)),
    }
    if roots:
        metrics |= _compute_rollout_metrics(roots) | _compute_group_metrics(complete)
    first = [
        [root.reward for root in tree.roots[: tree.initial_roots]]
        for tree in complete
        if tree.initial_roots
    ]
    if first:
        metrics["reward/first"] = fmean(map(fmean, first))
    if branches:
        metrics |= _compute_branch_metrics(complete, branches)
    return metrics


def _compute_rollout_metrics(roots: Sequence[Trajectory]) -> dict[str, float]:
    rewards = [root.reward for root in roots]
    metrics = {
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
        metrics[f"reward/term_{name}"] = fmean(root.reward_terms.get(name, 0.0) for root in roots)
    # These four are written even at 0, so that their curves have no gaps.
    stops = {"answered", "malformed", "tool_limit", "length"} | {
        root.state.stop for root in roots if root.state.stop is not None
    }
    for stop in stops:
        metrics[f"stop/{stop}"] = fmean(root.state.stop == stop for root in roots)
    return metrics


def _compute_group_metrics(trees: Sequence[RolloutTree]) -> dict[str, float]:
    root_rewards = [[root.reward for root in tree.roots] for tree in trees if tree.roots]
    metrics = {
        "group/size": fmean(len(tree.trajectories) for tree in trees),
        "group/equal": fmean(max(group) == min(group) for group in root_rewards),
        "reward/std": fmean(pvariance(group) ** 0.5 for group in root_rewards),
    }
    branch_rewards = [
        [branch.reward for branch in tree.branches] for tree in trees if tree.branches
    ]
    if branch_rewards:
        metrics["group/branches_equal"] = fmean(
            max(group) == min(group) for group in branch_rewards
        )
    return metrics


def _compute_branch_metrics(
    trees: Sequence[RolloutTree], branches: Sequence[Trajectory]
) -> dict[str, float]:
    positions, diverged = [], []
    rewards: defaultdict[tuple[Trajectory, int], list[float]] = defaultdict(list)
    for branch in branches:
        assert branch.parent is not None
        source, position, _ = branch.parent
        positions.append(position / max(len(source), 1))
        diverged.append(
            branch.response_ids[position : position + 1]
            != source.response_ids[position : position + 1]
        )
        rewards[source, position].append(branch.reward)
    distinct = []
    for tree in trees:
        responses = [trajectory.response_ids for trajectory in tree.trajectories]
        distinct += [responses.count(branch.response_ids) == 1 for branch in tree.branches]
    return {
        "branch/reward_mean": fmean(branch.reward for branch in branches),
        "branch/position": fmean(positions),
        "branch/diverged": fmean(diverged),
        "branch/distinct": fmean(distinct),
        "branch/reward_variance": fmean(
            variance([source.reward, *group]) for (source, _), group in rewards.items()
        ),
    }


def main() -> None:
    """Print the table of metrics."""
    width = max(map(len, METRICS))
    for name, meaning in METRICS.items():
        print(f"{name:<{width}}  {meaning}")  # noqa: T201


if __name__ == "__main__":
    main()
