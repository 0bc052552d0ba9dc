"""Early stopping of a cold start: validation loss, patience, and the weights of the lowest loss."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from learners.policy import Policy
from learners.tree import Trajectory

FILE = "held_out.jsonl"
"""The validation losses in a run's folder, a line each."""


class EarlyStopping:
    """Tracks the loss on trajectories that are not trained on. Mutated by `evaluate_if_due`."""

    def __init__(
        self, trajectories: Sequence[Trajectory], every: int, patience: int | None, folder: Path
    ) -> None:
        """Set up; without trajectories nothing is evaluated and training never stops early.

        Args:
            trajectories: that are not trained on.
            every: updates between two evaluations.
            patience: evaluations in a row without a lower loss before training stops; None: never.
            folder: where the losses are written, for a resumed run.
        """
        self._trajectories = trajectories
        self._every, self._patience = every, patience
        self._path = folder / FILE
        self._best: list[torch.Tensor] | None = None
        self.losses: list[float] = []
        """Validation losses in nats per sampled token, one per evaluation."""

    def resume(self, updates: int) -> None:
        """Load the losses of the first `updates`; later ones are discarded and evaluated again."""
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        rows = [row for row in map(json.loads, lines) if row["updates"] <= updates]
        self.losses = [row["loss"] for row in rows]
        if self._trajectories:
            self._path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def evaluate_if_due(self, policy: Policy) -> None:
        """Evaluate after every `every` updates; remember the weights of the lowest loss."""
        if not self._trajectories or policy.updates % self._every:
            return
        loss = compute_mean_loss(policy, self._trajectories)
        if all(loss < earlier for earlier in self.losses):
            self._best = [p.detach().clone() for p in policy.model.parameters()]
        self.losses.append(loss)
        with self._path.open("a") as lines:
            lines.write(json.dumps({"updates": policy.updates, "loss": loss}) + "\n")

    @property
    def should_stop(self) -> bool:
        """True if none of the last `patience` losses is below the best one before them."""
        if self._patience is None or not self.losses:
            return False
        return len(self.losses) - 1 - self.losses.index(min(self.losses)) >= self._patience

    def restore_best(self, policy: Policy) -> None:
        """Give the policy the weights of the lowest loss since the run was started or resumed.

        Weights from before a resumption are not stored: if no later loss was a new minimum, the
        policy stays as it is.
        """
        if self._best is not None:
            with torch.no_grad():
                for parameter, best in zip(policy.model.parameters(), self._best, strict=True):
                    parameter.copy_(best)


def compute_mean_loss(policy: Policy, trajectories: Sequence[Trajectory]) -> float:
    """Compute the negative mean log-probability of sampled tokens, in nats."""
    stats = policy.token_stats(trajectories)
    total = sum(float(entry.logprobs.sum()) for entry in stats)
    return -total / max(1, sum(trajectory.sampled_tokens for trajectory in trajectories))
