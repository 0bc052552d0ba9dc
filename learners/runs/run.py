"""The interface of a method's iteration: trees to sample, a trainer, a recorder of metrics.

A method is a module with a `Config` and an `iteration(tasks, run, config)`. A run knows nothing of
methods.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from torch import Tensor

from benchmarks import Task
from learners.config import RunConfig
from learners.policy import PolicyLoss
from learners.rl import Credit
from learners.rollouts import Hook
from learners.runs.recorder import Recorder
from learners.runs.trainer import Trainer
from learners.tree import RolloutTree, Row, usable

Weighting = Callable[[Sequence[Tensor]], list[Tensor]]
"""Response masks of a mini-batch's rows -> each token's weight in the loss."""


class Vocabulary(Protocol):
    """The part of a tokenizer that methods read."""

    def __len__(self) -> int:
        """Number of tokens."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of tokens."""
        ...


class TreeSource(Protocol):
    """Plays trees: with a sampler and an environment, or replayed from files."""

    @property
    def tokenizer(self) -> Vocabulary:
        """Texts of tokens."""
        ...

    @property
    def tasks(self) -> Sequence[Task]:
        """All tasks that may be trained on."""
        ...

    def trees(self, tasks: Sequence[Task]) -> list[RolloutTree]:
        """A tree per task, without trajectories."""
        ...

    def run(self, trees: Sequence[RolloutTree], key: str, after_turn: Hook | None = None) -> None:
        """Bring every unfinished trajectory to its end."""
        ...


class Run:
    """Samples and trains for a method. Mutated by `begin` and by what it samples."""

    def __init__(
        self, config: RunConfig, rollouts: TreeSource, trainer: Trainer, recorder: Recorder
    ) -> None:
        self.config = config
        self.rollouts = rollouts
        self.trainer = trainer
        self.recorder = recorder
        self.iteration = 0
        self.trees: list[RolloutTree] = []
        """Trees of the current iteration, those whose tools failed included."""
        self._has_sampled = False

    def begin(self, iteration: int) -> None:
        """Start an iteration."""
        self.iteration = iteration
        self._has_sampled = False

    def new_trees(self, tasks: Sequence[Task], roots: int) -> list[RolloutTree]:
        """Make a tree per task with unfinished roots; a task may occur more than once."""
        self.trees = self.rollouts.trees(tasks)
        copies: Counter[str] = Counter()
        for tree in self.trees:
            tree.copy = copies[tree.task.id]
            copies[tree.task.id] += 1
            tree.initial_roots = 0 if self._has_sampled else roots
            for _ in range(roots):
                tree.root()
        return self.trees

    def rollout(
        self, trees: Sequence[RolloutTree], after_turn: Hook | None = None
    ) -> list[RolloutTree]:
        """Finish unfinished trajectories under the current policy.

        Args:
            trees: mutated.
            after_turn: called with trees between their rounds of turns; may fork trajectories.

        Returns:
            The trees whose tools did not fail; only these may be trained on.
        """
        finished = {t for tree in trees for t in tree.trajectories if t.done}
        self.rollouts.run(trees, key=str(self.iteration), after_turn=after_turn)
        self._has_sampled = True
        self.trainer.record_sampling(
            [t for tree in trees for t in tree.trajectories if t not in finished]
        )
        return usable(trees)

    def minibatches(self, trees: Sequence[RolloutTree]) -> Iterator[Sequence[RolloutTree]]:
        """Yield the trees of each optimizer step."""
        size = self.config.training.minibatch_prompts
        for start in range(0, len(trees), size):
            yield trees[start : start + size]

    def sample_and_update(
        self,
        tasks: Sequence[Task],
        *,
        roots: int,
        advantages: Credit,
        weights: Weighting,
        loss: PolicyLoss,
    ) -> None:
        """Run the whole iteration of a method without branches."""
        trees = self.rollout(self.new_trees(tasks, roots))
        self.credit_and_update(trees, advantages=advantages, weights=weights, loss=loss)

    def credit_and_update(
        self,
        trees: Sequence[RolloutTree],
        *,
        advantages: Credit,
        weights: Weighting,
        loss: PolicyLoss,
    ) -> None:
        """Credit all trees of the iteration together, then update once per mini-batch."""
        self.trainer.remember_old_logprobs([t for tree in trees for t in tree.trajectories])
        credited = {row.trajectory: row for row in advantages(trees)}
        for batch in self.minibatches(trees):
            groups = [[credited[t] for t in tree.trajectories if t in credited] for tree in batch]
            dropped = [not any(row.advantages.any() for row in group) for group in groups]
            self.recorder.count("advantage/dropped_groups", sum(dropped))
            self.update_by([row for group in groups for row in group], weights, loss)

    def update_by(self, rows: Sequence[Row], weights: Weighting, loss: PolicyLoss) -> None:
        """Update once on rows that are weighted together.

        Rows whose advantages are 0 count in the means that the weights form, as in the reference
        implementations. Only a KL penalty has a gradient on them, so without one they are left out
        of the forward pass.
        """
        masks = [row.trajectory.tensors.mask for row in rows]
        pairs = list(zip(rows, weights(masks), strict=True))
        if self.config.optimisation.kl == 0:
            pairs = [(row, weight) for row, weight in pairs if row.advantages.any()]
        self.trainer.update([row for row, _ in pairs], [weight for _, weight in pairs], loss)

    def draw(self, name: str) -> random.Random:
        """Return a random generator seeded by run, iteration and name, for all but tokens."""
        return random.Random(f"{self.config.training.seed}/{self.iteration}/{name}")
