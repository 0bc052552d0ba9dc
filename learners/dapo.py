"""DAPO, Decoupled Clip and Dynamic sampling Policy Optimization (arXiv 2503.14476).

Prompts whose rollouts all score the same are skipped: others are sampled until there are enough
(dynamic sampling). The score is that of the answer, if the reward reports it: neither a penalty on
the format nor a bonus for tools makes a prompt worth training on. Overlong responses are penalised
before A_i = (R_i - mean) / (std + 1e-6) over the rollouts of a prompt, the same for all tokens of a
rollout; the surrogate clips wider above than below and is averaged over all tokens. No KL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks import Task
from learners.config import RunConfig
from learners.rl import credit_groups, normalise, token_mean
from learners.rl import dual_clipped_policy_loss as policy_loss
from learners.runs import Run
from learners.tree import RolloutTree, Trajectory


@dataclass(frozen=True)
class Config(RunConfig):
    """DAPO's own fields."""

    rollouts: int = 16
    """G: rollouts per prompt. [paper: 16]"""
    generations: int = 10
    """Maximum number of batches of `prompts` prompts to sample until `prompts` of them differ in
    score; after them the step trains on fewer, or none. [recipe: 10 batches of 3 times `prompts`,
    then an error ends the run]"""
    clip_low: float = 0.2
    """The ratio is kept above 1 - clip_low. [paper]"""
    clip_high: float = 0.28
    """The ratio is kept below 1 + clip_high: clip-higher. [paper]"""
    dual_clip: float = 10.0
    """c: where A < 0 the loss is at most -c A. [recipe's clip_ratio_c; the paper has none: inf]"""
    overlong_share: float = 0.2
    """L_cache over L_max: the last part of the token limit, where length is penalised. [4096 of
    20480]"""
    overlong_penalty: float = 1.0
    """Penalty on a response that reaches the token limit; 0: none. [paper: 1]"""


def iteration(tasks: list[Task], run: Run, config: Config) -> None:
    """One training step."""
    run.credit_and_update(
        sample_informative_trees(tasks, run, config),
        advantages=partial(
            credit_groups, estimator=normalise, reward=partial(shaped_reward, config=config)
        ),
        weights=token_mean,
        loss=partial(policy_loss, config=config),
    )


def sample_informative_trees(tasks: list[Task], run: Run, config: Config) -> list[RolloutTree]:
    """Return `prompts` trees whose rollouts differ in score; fewer if bound or tasks run out."""
    sampled: list[RolloutTree] = []
    informative: list[RolloutTree] = []
    finished_count = 0
    draw = run.draw("refill")
    for _ in range(config.generations):
        trees = run.new_trees(tasks, config.rollouts)
        sampled += trees
        finished = run.rollout(trees)
        informative += [
            tree
            for tree in finished
            if is_informative([answer_score(t) for t in tree.trajectories])
        ]
        finished_count += len(finished)
        run.recorder.count("sampling/generations", 1)
        if len(informative) >= config.training.prompts:
            break
        used = {tree.task.id for tree in sampled}
        unused = [task for task in run.rollouts.tasks if task.id not in used]
        tasks = draw.sample(unused, min(config.training.prompts, len(unused)))
        if not tasks:
            break
    run.trees = sampled  # metrics and rollout files cover the skipped trees too
    surplus = max(len(informative) - config.training.prompts, 0)
    run.recorder.count("sampling/equal_groups", finished_count - len(informative))
    run.recorder.count("sampling/surplus_groups", surplus)
    return informative[: config.training.prompts]


def is_informative(scores: Sequence[float]) -> bool:
    """True if the scores of a group differ; a group of one is always trained on."""
    return len(scores) == 1 or max(scores) != min(scores)


def answer_score(trajectory: Trajectory) -> float:
    """Return the answer's score: 0 without an answer; the reward if it has no such part (arpo)."""
    terms = trajectory.reward_terms
    return 0.0 if "format" in terms else terms.get("score", trajectory.reward)


def shaped_reward(trajectory: Trajectory, config: Config) -> float:
    """Return the reward less the soft overlong penalty; observed tokens count in the length."""
    limit = config.sampling.max_response_tokens
    return trajectory.reward + config.overlong_penalty * length_penalty(
        len(trajectory), limit, config.overlong_share * limit
    )


def length_penalty(length: int, limit: float, buffer: float) -> float:
    """Return 0 up to limit - buffer, from there linearly less, -1 at the limit."""
    excess = length - (limit - buffer)
    return min(-excess / buffer, 0.0) if buffer > 0 else 0.0


if __name__ == "__main__":
    from learners.runs import main

    main("learners.dapo")
