"""DAPO, Decoupled Clip and Dynamic sampling Policy Optimization (arXiv 2503.14476).

Prompts whose rollouts are all equally right are sampled past: others are drawn until there are
enough (dynamic sampling). Right is what the answer scored, where the reward tells: neither the
penalty of a format nor the bonus for tools makes a prompt worth training on. Overlong responses are
penalised before A_i = (R_i - mean) / (std + 1e-6) over the rollouts of a prompt, the same for all
tokens of a rollout; the surrogate clips wider above than below and is averaged over all tokens. No
KL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks import Task
from learners.config import RunConfig
from learners.rl import by_group, normalised, token_mean
from learners.rl import dual_clipped_policy_loss as policy_loss
from learners.runs import Run
from learners.tree import RolloutTree, Trajectory


@dataclass(frozen=True)
class Config(RunConfig):
    """DAPO's own fields."""

    rollouts: int = 16
    """G: rollouts per prompt. [paper: 16]"""
    generations: int = 10
    """Most batches of `prompts` prompts that are sampled until as many are kept; then fewer are
    trained on, or none. [recipe: 10 batches of 3 times `prompts`, then an error ends the run]"""
    clip_low: float = 0.2
    """The ratio is kept above 1 - clip_low. [paper]"""
    clip_high: float = 0.28
    """The ratio is kept below 1 + clip_high: clip-higher. [paper]"""
    dual_clip: float = 10.0
    """c: where A < 0 the loss is at most -c A. [recipe's clip_ratio_c; the paper has none: inf]"""
    overlong_share: float = 0.2
    """L_cache over L_max: the last part of the room, where length is penalised. [4096 of 20480]"""
    overlong_penalty: float = 1.0
    """Taken off the reward of a response that fills its room; 0: no penalty. [paper: 1]"""


def iteration(tasks: list[Task], run: Run, config: Config) -> None:
    """One training step."""
    run.credit_and_update(
        informative_trees(tasks, run, config),
        advantages=partial(by_group, credit=normalised, reward=partial(shaped, config=config)),
        weights=token_mean,
        loss=partial(policy_loss, config=config),
    )


def informative_trees(tasks: list[Task], run: Run, config: Config) -> list[RolloutTree]:
    """`prompts` trees with different scores, or as many as the bound and the tasks allow."""
    sampled: list[RolloutTree] = []
    kept: list[RolloutTree] = []
    finished_count = 0
    draw = run.draw("refill")
    for _ in range(config.generations):
        trees = run.new_trees(tasks, config.rollouts)
        sampled += trees
        finished = run.rollout(trees)
        kept += [t for t in finished if teaches([score(one) for one in t.trajectories])]
        finished_count += len(finished)
        run.recorder.count("sampling/generations", 1)
        if len(kept) >= config.training.prompts:
            break
        met = {tree.task.id for tree in sampled}
        others = [task for task in run.rollouts.tasks if task.id not in met]
        tasks = draw.sample(others, min(config.training.prompts, len(others)))
        if not tasks:
            break
    run.trees = sampled
    run.recorder.count("sampling/equal_groups", finished_count - len(kept))
    run.recorder.count("sampling/surplus_groups", max(len(kept) - config.training.prompts, 0))
    return kept[: config.training.prompts]


def teaches(scores: Sequence[float]) -> bool:
    """Whether a group is kept, by what its answers scored; a group of one is."""
    return len(scores) == 1 or max(scores) != min(scores)


def score(trajectory: Trajectory) -> float:
    """What the answer scored: 0 without one; the whole of a reward that is of one piece (arpo)."""
    terms = trajectory.reward_terms
    return 0.0 if "format" in terms else terms.get("score", trajectory.reward)


def shaped(trajectory: Trajectory, config: Config) -> float:
    """The reward less the soft overlong penalty, which counts what the tools said too."""
    room = config.sampling.max_response_tokens
    return trajectory.reward + config.overlong_penalty * overlong(
        len(trajectory), room, config.overlong_share * room
    )


def overlong(length: int, room: float, buffer: float) -> float:
    """0 up to room - buffer, from there linear to -1 at room."""
    excess = length - (room - buffer)
    return min(-excess / buffer, 0.0) if buffer > 0 else 0.0


if __name__ == "__main__":
    from learners.runs import main

    main("learners.dapo")
