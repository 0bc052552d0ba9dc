"""A run without a model: a method's own `iteration` on stored trees.

What a method would sample is answered with what was sampled then: by path where it is the same
trajectory, else by the next one that is not used yet. What it would branch at is taken down, to be
compared with where branches left. Weights do not move.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

from torch import Tensor

from benchmarks import Task
from learners.config import RunConfig
from learners.errors import RolloutFileError
from learners.ledger import Ledger
from learners.policy import PolicyLoss, TokenStats
from learners.rollouts import Hook
from learners.runs import Run
from learners.tree import RolloutTree, Row, Trajectory


class Chosen(NamedTuple):
    """A branch that a method would have made."""

    tree: int
    """Number of its tree."""
    parent: tuple[int, ...]
    """Path."""
    position: int
    score: float


class Texts:
    """What methods ask of a tokenizer: how many tokens it has, and what one of them reads."""

    def __init__(self, rows: Sequence[Any]) -> None:
        """Learn texts of tokens from rows of a rollout file."""
        self._texts: dict[int, str] = {}
        for row in rows:
            begin = 0
            for token, end in zip(row["token_ids"] or (), row["token_ends"] or (), strict=True):
                self._texts[token] = row["text"][begin:end]
                begin = end

    def __len__(self) -> int:
        return max(self._texts, default=1) + 1

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of tokens; those of restricted tasks read as a word."""
        return "".join(self._texts.get(token, "word") for token in token_ids)


class StoredRun(Run):
    """Serves stored trees to a method. Mutated by its verbs; `credit` is what it learned."""

    def __init__(
        self, config: RunConfig, iteration: int, trees: Sequence[RolloutTree], texts: Texts
    ) -> None:
        """Serve the trees of an iteration, in their order."""
        env = SimpleNamespace(tasks=[tree.task for tree in trees])
        sampler = SimpleNamespace(sync=lambda: None)
        rollouts = SimpleNamespace(ledger=Ledger(), tokenizer=texts, env=env, sampler=sampler)
        policy = SimpleNamespace(updates=0)
        super().__init__(config, policy, rollouts)  # type: ignore[arg-type]
        self.iteration = iteration
        self.chosen: list[Chosen] = []
        """Branches that the method made."""
        self.credit: dict[Trajectory, Tensor] = {}
        """(T,) advantages of the stored trajectories that got a row."""
        self._unused = list(enumerate(trees))
        self._stored: dict[RolloutTree, tuple[int, RolloutTree]] = {}

    def new_trees(self, tasks: Sequence[Task], roots: int) -> list[RolloutTree]:
        """The next stored trees, with so many unfinished roots."""
        served, self._unused = self._unused[: len(tasks)], self._unused[len(tasks) :]
        self.trees = []
        for number, stored in served:
            tree = RolloutTree(stored.task, stored.prompt_ids, stored.start, copy=stored.copy)
            for _ in range(roots):
                tree.root()
            self._stored[tree] = (number, stored)
            self.trees.append(tree)
        return self.trees

    def rollout(self, trees: Sequence[RolloutTree], after_turn: Hook | None = None) -> None:
        """Put stored trajectories in the place of unfinished ones; with a hook, all of them."""
        for tree in trees:
            number, stored = self._stored[tree]
            fresh = [t for t in tree.trajectories if not t.done and t not in stored.trajectories]
            for trajectory in fresh:
                if trajectory.parent is not None:
                    source, position, score = trajectory.parent
                    self.chosen.append(Chosen(number, source.path, position, score))
            kept = [t for t in tree.trajectories if t not in fresh]
            tree.trajectories = kept + _answers(stored, kept, fresh, everything=after_turn)
            if any(not t.done for t in tree.trajectories):
                tree.unavailable = stored.unavailable

    def remember_old_logprobs(self, trajectories: Sequence[Trajectory]) -> None:
        """They are stored."""

    def refer(self, trajectories: Sequence[Trajectory]) -> None:
        """What the reference thought is stored.

        Raises:
            RolloutFileError: the run had no reference.
        """
        for trajectory in trajectories:
            if trajectory.reference_logprobs is None:
                raise RolloutFileError(
                    f"trajectory {trajectory.path} has no log-probabilities of the reference: the "
                    "run had neither --kl nor --kl-reward; it cannot be replayed with one"
                )

    def token_stats(
        self, trajectories: Sequence[Trajectory], *, branched: bool = False
    ) -> dict[Trajectory, TokenStats]:
        """What the policy thought of them then; no branch is sampled.

        Raises:
            RolloutFileError: the run's method did not ask it.
        """
        found = {}
        for trajectory in trajectories:
            marks = trajectory.marks
            if marks.logprobs is None or marks.entropies is None:
                raise RolloutFileError(
                    f"trajectory {trajectory.path} was never scored by the policy, which this "
                    "method needs; it cannot be replayed without the model"
                )
            found[trajectory] = TokenStats(marks.logprobs, marks.entropies)
        # Whether the policy had moved by then is all that methods read from this.
        self.policy.updates = max((t.marks.age or 0 for t in trajectories), default=0)
        return found

    def update(self, rows: Sequence[Row], weights: Sequence[Tensor], loss: PolicyLoss) -> None:
        """Take down the credit; nothing learns."""
        self.credit |= dict(rows)


def _answers(
    stored: RolloutTree,
    kept: Sequence[Trajectory],
    fresh: Sequence[Trajectory],
    everything: object,
) -> list[Trajectory]:
    """Stored trajectories for fresh ones, none of them kept already."""
    left = [t for t in stored.trajectories if t not in kept]
    if everything is not None:
        return left
    wanted = {t.path for t in fresh}
    same = {t.path: t for t in left if t.path in wanted}
    others = iter([t for t in left if t.path not in wanted])
    found = (same.get(t.path) or next(others, None) for t in fresh)
    return [t for t in found if t is not None]
