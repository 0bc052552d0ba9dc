"""A model in this process as the player of an evaluation: the very rollouts that training makes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from envs import ToolEnv
from learners.episodes import Episode, Job, ended
from learners.models import LoadedModel
from learners.rollout import Rollouts
from learners.sampler import TransformersSampler
from learners.tree import RolloutTree

CHUNK = 256
"""Episodes under way together; many more would fill the memory with trees."""


@dataclass(frozen=True)
class LocalPlayer:
    """Plays with a model of `transformers`; prompt and response are one row of token ids."""

    loaded: LoadedModel
    temperature: float
    seed: int
    rows: int
    """Most episodes in one forward pass."""

    left_out: frozenset[str] = frozenset()

    def play(
        self, env: ToolEnv, jobs: Sequence[Job], most_tokens: int, keep: Callable[[Episode], None]
    ) -> None:
        """Play the jobs; every episode is kept after the round of turns that ended it.

        Args:
            env: forked for every turn.
            jobs: what to play; the draws of a job do not depend on the others.
            most_tokens: sampled and observed tokens of one episode.
            keep: takes each episode.
        """
        model, tokenizer = self.loaded
        sampler = TransformersSampler(model, tokenizer, env.stop_tags, rows=self.rows)
        rollouts = Rollouts(env, sampler, tokenizer, most_tokens, self.temperature, self.seed)
        for start in range(0, len(jobs), CHUNK):
            _play(rollouts, jobs[start : start + CHUNK], keep)
            sampler.sync()


def _play(rollouts: Rollouts, jobs: Sequence[Job], keep: Callable[[Episode], None]) -> None:
    trees = []
    for job in jobs:
        tree = rollouts.tree(job.task)
        tree.copy = job.sample
        tree.root()
        trees.append(tree)
    kept: set[int] = set()

    def keep_ended(trees: Sequence[RolloutTree]) -> None:
        for index, (job, tree) in enumerate(zip(jobs, trees, strict=True)):
            (episode,) = tree.trajectories
            if index in kept or not (episode.done or tree.unavailable is not None):
                continue
            kept.add(index)
            if tree.unavailable is not None:
                keep(Episode(job.task.id, job.sample, error=tree.unavailable))
            else:
                keep(ended(job, episode.state, episode.sampled_tokens))

    rollouts.run(trees, key="evaluation", after_turn=keep_ended)
