"""The training side of a run: token statistics, log-probabilities to compare with, and updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from learners.config import RunConfig
from learners.ledger import Ledger
from learners.policy import Policy, PolicyLoss, Reference, TokenStats, multiplier
from learners.rl import mismatch_weights, wrap_loss
from learners.runs.recorder import Recorder
from learners.sampling import Sampler
from learners.tree import Row, Trajectory


class Trainer(Protocol):
    """Scores trajectories and learns from them: from a model, or replayed from files."""

    @property
    def updates(self) -> int:
        """Optimizer steps so far."""
        ...

    def record_sampling(self, trajectories: Sequence[Trajectory]) -> None:
        """Remember that the current weights sampled these finished trajectories."""
        ...

    def token_stats(
        self, trajectories: Sequence[Trajectory], *, branched: bool = False
    ) -> dict[Trajectory, TokenStats]:
        """Log-probabilities and entropies under the current policy.

        Args:
            trajectories: finished ones.
            branched: True if branches will leave them under the same weights; the sampler may then
                keep the keys and values that are computed here.
        """
        ...

    def remember_old_logprobs(self, trajectories: Sequence[Trajectory]) -> None:
        """Store the current log-probabilities as the denominators of ratios."""
        ...

    def remember_reference_logprobs(self, trajectories: Sequence[Trajectory]) -> None:
        """Store the reference's log-probabilities on trajectories that lack them."""
        ...

    def update(self, rows: Sequence[Row], weights: Sequence[Tensor], loss: PolicyLoss) -> None:
        """Take one optimizer step; none if there are no rows.

        Args:
            rows: trajectories with their advantages.
            weights: per row (T,), each token's weight in the loss.
            loss: of the method.
        """
        ...


class PolicyTrainer:
    """Trains the policy and records how that went. Mutated by all its methods."""

    def __init__(
        self,
        config: RunConfig,
        policy: Policy,
        sampler: Sampler,
        ledger: Ledger,
        recorder: Recorder,
        reference: Reference | None = None,
    ) -> None:
        """Train a policy that a sampler follows.

        Args:
            config: its optimisation options and the sampler's correction.
            policy: updated.
            sampler: synchronised after every update.
            ledger: counts tokens and seconds.
            recorder: collects metrics.
            reference: needed if `config.has_reference`.
        """
        self.config = config
        self.policy = policy
        self.sampler = sampler
        self.ledger = ledger
        self.recorder = recorder
        self.reference = reference
        self._versions: dict[Trajectory, int] = {}
        """Optimizer steps before a trajectory of this iteration was sampled."""

    @property
    def updates(self) -> int:
        """Optimizer steps so far."""
        return self.policy.updates

    def begin_iteration(self, iteration: int) -> None:
        """Set the iteration's learning rate."""
        options = self.config.optimisation
        iterations = self.config.training.iterations
        share = multiplier(options.schedule, options.warmup, iteration, iterations)
        self._versions.clear()
        self.policy.set_learning_rate(self.policy.learning_rate * share)
        self.recorder.note("update/learning_rate", [self.policy.learning_rate * share])

    def record_sampling(self, trajectories: Sequence[Trajectory]) -> None:
        """See `Trainer`."""
        self._versions |= dict.fromkeys(trajectories, self.policy.updates)

    def token_stats(
        self, trajectories: Sequence[Trajectory], *, branched: bool = False
    ) -> dict[Trajectory, TokenStats]:
        """See `Trainer`."""
        self.ledger.add("scored_tokens", sum(map(_read_tokens, trajectories)))
        keep = self.sampler.keep if branched else None
        with self.ledger.phase("score"):
            stats = self.policy.token_stats(trajectories, keep)
        self.ledger.add("computed_tokens", self.policy.work.computed_tokens)
        for trajectory, (logprobs, entropies) in zip(trajectories, stats, strict=True):
            trajectory.diagnostics.logprobs, trajectory.diagnostics.entropies = logprobs, entropies
            trajectory.diagnostics.age = self._age(trajectory)
        return dict(zip(trajectories, stats, strict=True))

    def remember_old_logprobs(self, trajectories: Sequence[Trajectory]) -> None:
        """See `Trainer`."""
        for trajectory, stats in self.token_stats(trajectories).items():
            trajectory.old_logprobs = stats.logprobs
            mask, sampled = trajectory.tensors.mask, trajectory.tensors.sampler_logprobs
            self.recorder.note("policy/entropy", stats.entropies[mask].tolist())
            mismatch = (stats.logprobs - sampled)[mask].abs()
            self.recorder.note("policy/sampler_gap", mismatch.tolist())

    def remember_reference_logprobs(self, trajectories: Sequence[Trajectory]) -> None:
        """See `Trainer`."""
        missing = [t for t in trajectories if t.reference_logprobs is None]
        if not missing:
            return
        assert self.reference is not None, "a run with kl needs its reference"
        with self.ledger.phase("score"):
            scored = self.reference.logprobs(missing)
        for trajectory, logprobs in zip(missing, scored, strict=True):
            trajectory.reference_logprobs = logprobs

    def update(self, rows: Sequence[Row], weights: Sequence[Tensor], loss: PolicyLoss) -> None:
        """See `Trainer`."""
        if not rows:
            self.recorder.count("update/without_rows", 1)
            return
        options = self.config.optimisation
        if options.kl != 0:
            self.remember_reference_logprobs([row.trajectory for row in rows])
        for (trajectory, advantages), weight in zip(rows, weights, strict=True):
            trajectory.diagnostics.advantages, trajectory.diagnostics.weights = advantages, weight
        ages = [self._age(row.trajectory) for row in rows]
        self.recorder.note("update/staleness", [float(age) for age in ages])
        self.recorder.note("update/stale_rows", [float(age > 0) for age in ages])
        self.ledger.add("updated_tokens", sum(_read_tokens(row.trajectory) for row in rows))
        with self.ledger.phase("update"):
            stats = self.policy.update(
                rows,
                self._corrected_weights(rows, weights),
                wrap_loss(loss, self.recorder.note, options.kl, options.kl_estimator),
            )
        self.ledger.add("computed_tokens", stats.computed_tokens)
        self.sampler.sync()
        self.recorder.note("update/trees", [float(stats.trees)])
        self.recorder.count("update/steps", 1)
        self.recorder.count("update/skipped", int(stats.skipped))
        self.recorder.note("update/loss", [stats.loss])
        self.recorder.note("update/gradient_norm", [stats.gradient_norm])
        for row, weight in zip(rows, weights, strict=True):
            trained = weight * row.trajectory.tensors.mask != 0
            self.ledger.add("trained_tokens", int(trained.sum()))
            self.recorder.note("advantage/magnitude", row.advantages[trained].abs().tolist())

    def _age(self, trajectory: Trajectory) -> int:
        """Optimizer steps since a trajectory was sampled."""
        return self.policy.updates - self._versions.get(trajectory, self.policy.updates)

    def _corrected_weights(
        self, rows: Sequence[Row], weights: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """Weights times the importance weights of policy over sampler, if the config asks."""
        cap = self.config.sampling.sampler_correction
        if cap is None:
            return weights
        corrected = []
        for (trajectory, _), weight in zip(rows, weights, strict=True):
            assert trajectory.old_logprobs is not None, "remember_old_logprobs before updating"
            mask = trajectory.tensors.mask
            log_ratio = trajectory.old_logprobs - trajectory.tensors.sampler_logprobs
            factor = mismatch_weights(log_ratio, mask, cap)
            self.recorder.note("policy/sampler_correction", factor[mask].tolist())
            corrected.append(weight * factor)
        return corrected


def _read_tokens(trajectory: Trajectory) -> int:
    """Tokens that a forward pass over a trajectory reads."""
    return len(trajectory.prompt_ids) + len(trajectory)
