"""A model in this process as the player of an evaluation: the very rollouts that training makes.

Rows of one forward pass are padded to the longest of them and attend over its length, so tasks of
like length are played together, and long ones in fewer rows at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import median_low
from typing import NamedTuple

from envs import ToolEnv
from learners.episodes import Episode, Job, ended
from learners.models import LoadedModel
from learners.rollout import Rollouts
from learners.sampler import TransformersSampler
from learners.tree import RolloutTree

CHUNK = 256
"""Episodes under way together; many more would fill the memory with trees."""


class Group(NamedTuple):
    """Jobs that are under way together."""

    rows: int
    """Most of them in one forward pass."""
    jobs: list[Job]


def grouped(jobs: Sequence[Job], lengths: Sequence[int], rows: int) -> Iterator[Group]:
    """Jobs of like length together, the longest first: what memory must hold shows at once.

    A group whose longest job is up to twice the usual length has all rows. Beyond that a row's
    attention costs the square of its length, and the rows are halved until all rows of the group
    together cost no more than `rows` of twice the usual length.

    Args:
        jobs: in any order; those of equal length keep theirs.
        lengths: of each job, the prompt and all that an episode may add, in tokens.
        rows: in one forward pass, at the usual length.
    """
    if not jobs:
        return
    usual = 2 * median_low(lengths)

    def fitting(length: int) -> int:
        room = rows
        while room > 1 and room * length**2 > rows * usual**2:
            room //= 2
        return room

    order = sorted(range(len(jobs)), key=lambda index: -lengths[index])
    for room, like in groupby(order, key=lambda index: fitting(lengths[index])):
        together = [jobs[index] for index in like]
        for start in range(0, len(together), CHUNK):
            yield Group(room, together[start : start + CHUNK])


@dataclass(frozen=True)
class LocalPlayer:
    """Plays with a model of `transformers`; prompt and response are one row of token ids."""

    loaded: LoadedModel
    temperature: float
    seed: int
    rows: int
    """Most episodes of the usual length in one forward pass."""

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
        questions = {job.task.id: job.task.question for job in jobs}
        prompts = {t: len(rollouts.prompt(env.instructions, q)) for t, q in questions.items()}
        lengths = [prompts[job.task.id] + most_tokens for job in jobs]
        for group in grouped(jobs, lengths, self.rows):
            sampler = TransformersSampler(
                model, tokenizer, env.stop_tags, rows=group.rows, dtype=model.dtype
            )
            _play(replace(rollouts, sampler=sampler), group.jobs, keep)


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
