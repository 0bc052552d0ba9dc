"""The parts of a run without a model, so that a method's own `iteration` works on stored trees.

Instead of sampling a trajectory, the stored one with the same path is served, or the next unused
one. The method's branch points are collected, to be compared with the stored ones. No weight moves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from benchmarks import Task
from learners.errors import RolloutFileError
from learners.policy import PolicyLoss, TokenStats
from learners.rollouts import Hook
from learners.tree import RolloutTree, Row, Trajectory


class ChosenBranch(NamedTuple):
    """A branch that a method would have made."""

    tree: int
    """Index of its tree."""
    parent: tuple[int, ...]
    """Path of the trajectory that it leaves."""
    position: int
    """Response tokens that it shares with its parent."""
    score: float


class StoredTokenizer:
    """The part of a tokenizer that methods read, with the tokens that occur in stored rows."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Collect the texts of tokens from rows of a rollout file."""
        self._texts: dict[int, str] = {}
        for row in rows:
            begin = 0
            for token, end in zip(row["token_ids"] or (), row["token_ends"] or (), strict=True):
                self._texts[token] = row["text"][begin:end]
                begin = end

    def __len__(self) -> int:
        return max(self._texts, default=1) + 1

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens; tokens whose text is not stored read as "word"."""
        return "".join(self._texts.get(token, "word") for token in token_ids)


class StoredRollouts:
    """Serves stored trees instead of sampled ones. Mutated by every tree it serves."""

    def __init__(self, trees: Sequence[RolloutTree], tokenizer: StoredTokenizer) -> None:
        """Serve the trees of an iteration, in their order."""
        self.tokenizer = tokenizer
        self.tasks = [tree.task for tree in trees]
        self.branches: list[ChosenBranch] = []
        """Branches that the method made."""
        self._unused = list(enumerate(trees))
        self._stored: dict[RolloutTree, tuple[int, RolloutTree]] = {}

    def trees(self, tasks: Sequence[Task]) -> list[RolloutTree]:
        """Serve the next stored trees, one per task, without their trajectories."""
        served, self._unused = self._unused[: len(tasks)], self._unused[len(tasks) :]
        trees = []
        for index, stored in served:
            tree = RolloutTree(stored.task, stored.prompt_ids, stored.start)
            self._stored[tree] = (index, stored)
            trees.append(tree)
        return trees

    def run(self, trees: Sequence[RolloutTree], key: str, after_turn: Hook | None = None) -> None:
        """Replace unfinished trajectories by stored ones; with a hook, all of them.

        With a hook the method branches while trajectories are played, so the stored branches are
        served together with their roots.
        """
        for tree in trees:
            index, stored = self._stored[tree]
            fresh = [t for t in tree.trajectories if not t.done and t not in stored.trajectories]
            for trajectory in fresh:
                if trajectory.parent is not None:
                    source, position, score = trajectory.parent
                    self.branches.append(ChosenBranch(index, source.path, position, score))
            served = [t for t in tree.trajectories if t not in fresh]
            unused = [t for t in stored.trajectories if t not in served]
            answers = unused if after_turn is not None else _match_by_path(fresh, unused)
            tree.trajectories = served + answers
            if any(not t.done for t in tree.trajectories):
                tree.unavailable = stored.unavailable


def _match_by_path(fresh: Sequence[Trajectory], stored: Sequence[Trajectory]) -> list[Trajectory]:
    """For each fresh trajectory, the stored one of the same path, else the next one left over."""
    paths = {t.path for t in fresh}
    by_path = {t.path: t for t in stored if t.path in paths}
    left_over = iter([t for t in stored if t.path not in paths])
    answers = (by_path.get(t.path) or next(left_over, None) for t in fresh)
    return [t for t in answers if t is not None]


class StoredTrainer:
    """Answers with what the run's policy computed, and collects credit. No weight moves."""

    def __init__(self) -> None:
        self.updates = 0
        """Optimizer steps; above 0 if the policy had moved when the trajectories were scored."""
        self.credit: dict[Trajectory, Tensor] = {}
        """(T,) advantages of the stored trajectories that the method trains on."""

    def record_sampling(self, trajectories: Sequence[Trajectory]) -> None:
        """Do nothing: a stored trajectory has its age."""

    def token_stats(
        self, trajectories: Sequence[Trajectory], *, branched: bool = False
    ) -> dict[Trajectory, TokenStats]:
        """Return the stored log-probabilities and entropies.

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
        # Methods only ask if the policy has moved since it sampled, so the age is enough.
        self.updates = max((t.diagnostics.age or 0 for t in trajectories), default=0)
        return stats

    def remember_old_logprobs(self, trajectories: Sequence[Trajectory]) -> None:
        """Do nothing: they are stored."""

    def remember_reference_logprobs(self, trajectories: Sequence[Trajectory]) -> None:
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
        """Collect the advantages of rows."""
        self.credit |= dict(rows)
