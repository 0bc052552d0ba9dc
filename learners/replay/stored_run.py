"""The parts of a run without a model: a method's own `iteration` works on stored trees.

A trajectory that a method samples is the stored one of the same path, else the next unused one. The
method's branch points are collected, to be compared with those of the run. Weights do not move.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from benchmarks import Task
from learners.errors import RolloutFileError
from learners.policy import PolicyLoss, TokenStats
from learners.rollouts import Hook
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


class StoredRollouts:
    """Serves stored trees in place of sampled ones. Mutated by every tree it serves."""

    def __init__(self, trees: Sequence[RolloutTree], tokenizer: Texts) -> None:
        """Serve the trees of an iteration, in their order."""
        self.tokenizer = tokenizer
        self.tasks = [tree.task for tree in trees]
        self.chosen: list[Chosen] = []
        """Branches that the method made."""
        self._unused = list(enumerate(trees))
        self._stored: dict[RolloutTree, tuple[int, RolloutTree]] = {}

    def trees(self, tasks: Sequence[Task]) -> list[RolloutTree]:
        """The next stored trees without their trajectories, as many as there are tasks."""
        served, self._unused = self._unused[: len(tasks)], self._unused[len(tasks) :]
        trees = []
        for number, stored in served:
            tree = RolloutTree(stored.task, stored.prompt_ids, stored.start)
            self._stored[tree] = (number, stored)
            trees.append(tree)
        return trees

    def run(self, trees: Sequence[RolloutTree], key: str, after_turn: Hook | None = None) -> None:
        """Replace unfinished trajectories by stored ones; with a hook, all of them."""
        for tree in trees:
            number, stored = self._stored[tree]
            fresh = [t for t in tree.trajectories if not t.done and t not in stored.trajectories]
            for trajectory in fresh:
                if trajectory.parent is not None:
                    source, position, score = trajectory.parent
                    self.chosen.append(Chosen(number, source.path, position, score))
            served = [t for t in tree.trajectories if t not in fresh]
            tree.trajectories = served + _answers(stored, served, fresh, everything=after_turn)
            if any(not t.done for t in tree.trajectories):
                tree.unavailable = stored.unavailable


class StoredTrainer:
    """Answers with what the policy computed then, and collects credit. No weight moves."""

    def __init__(self) -> None:
        self.updates = 0
        self.credit: dict[Trajectory, Tensor] = {}
        """(T,) advantages of the stored trajectories that got a row."""

    def record_sampling(self, trajectories: Sequence[Trajectory]) -> None:
        """Do nothing: stored trajectories know their age."""

    def token_stats(
        self, trajectories: Sequence[Trajectory], *, branched: bool = False
    ) -> dict[Trajectory, TokenStats]:
        """Stored log-probabilities and entropies.

        Raises:
            RolloutFileError: the run's method did not compute them.
        """
        stats = {}
        for trajectory in trajectories:
            diagnostics = trajectory.diagnostics
            if diagnostics.logprobs is None or diagnostics.entropies is None:
                raise RolloutFileError(
                    f"trajectory {trajectory.path} was never scored by the policy, which this "
                    "method needs; it cannot be replayed without the model"
                )
            stats[trajectory] = TokenStats(diagnostics.logprobs, diagnostics.entropies)
        # Methods read from this only whether the policy had moved by then.
        self.updates = max((t.diagnostics.age or 0 for t in trajectories), default=0)
        return stats

    def remember_old_logprobs(self, trajectories: Sequence[Trajectory]) -> None:
        """Do nothing: they are stored."""

    def refer(self, trajectories: Sequence[Trajectory]) -> None:
        """Check that the reference's log-probabilities are stored.

        Raises:
            RolloutFileError: the run had no reference.
        """
        for trajectory in trajectories:
            if trajectory.reference_logprobs is None:
                raise RolloutFileError(
                    f"trajectory {trajectory.path} has no log-probabilities of the reference: the "
                    "run had neither --kl nor --kl-reward; it cannot be replayed with one"
                )

    def update(self, rows: Sequence[Row], weights: Sequence[Tensor], loss: PolicyLoss) -> None:
        """Collect the credit of rows."""
        self.credit |= dict(rows)


def _answers(
    stored: RolloutTree,
    served: Sequence[Trajectory],
    fresh: Sequence[Trajectory],
    everything: object,
) -> list[Trajectory]:
    """Stored trajectories in place of fresh ones; none is served twice."""
    unused = [t for t in stored.trajectories if t not in served]
    if everything is not None:
        return unused
    paths = {t.path for t in fresh}
    same = {t.path: t for t in unused if t.path in paths}
    others = iter([t for t in unused if t.path not in paths])
    answers = (same.get(t.path) or next(others, None) for t in fresh)
    return [t for t in answers if t is not None]
