"""The loss of a cold start on transcripts that it does not train on, and when to stop for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from learners.policy import Policy
from learners.tree import Trajectory

FILE = "held_out.jsonl"


class HeldOut:
    """Watches the loss on held-out trajectories. Mutated by `over`."""

    def __init__(
        self, trajectories: Sequence[Trajectory], every: int, patience: int | None, folder: Path
    ) -> None:
        """Watch nothing where there are no trajectories.

        Args:
            trajectories: that are not trained on.
            every: updates between two looks.
            patience: looks in a row without a lower loss after which to stop; None: never.
            folder: where the losses are written; a run that goes on reads them.
        """
        self._trajectories = trajectories
        self._every, self._patience = every, patience
        self._path = folder / FILE
        self._best: list[torch.Tensor] | None = None
        self.losses: list[float] = []
        """Nats per sampled token, one per look."""

    def resume(self, updates: int) -> None:
        """Take up the losses of the first `updates`; later ones are looked at anew."""
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        rows = [row for row in map(json.loads, lines) if row["updates"] <= updates]
        self.losses = [row["loss"] for row in rows]
        if self._trajectories:
            self._path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def over(self, policy: Policy) -> bool:
        """Look at the loss if it is time; True where training should stop."""
        if self._trajectories and policy.updates % self._every == 0:
            loss = mean_loss(policy, self._trajectories)
            if all(loss < earlier for earlier in self.losses):
                self._best = [p.detach().clone() for p in policy.model.parameters()]
            self.losses.append(loss)
            with self._path.open("a") as lines:
                lines.write(json.dumps({"updates": policy.updates, "loss": loss}) + "\n")
        return self.stopped

    @property
    def stopped(self) -> bool:
        """Whether the last `patience` looks were no better than the best before them."""
        if self._patience is None or not self.losses:
            return False
        return len(self.losses) - 1 - self.losses.index(min(self.losses)) >= self._patience

    def restore_best(self, policy: Policy) -> None:
        """Give the policy the weights of the lowest loss seen since this run was opened."""
        if self._best is not None:
            with torch.no_grad():
                for parameter, kept in zip(policy.model.parameters(), self._best, strict=True):
                    parameter.copy_(kept)


def mean_loss(policy: Policy, trajectories: Sequence[Trajectory]) -> float:
    """Minus the mean log-probability of what the trajectories' author said, nats per token."""
    stats = policy.token_stats(trajectories)
    total = sum(float(one.logprobs.sum()) for one in stats)
    return -total / max(1, sum(one.sampled_tokens for one in trajectories))
