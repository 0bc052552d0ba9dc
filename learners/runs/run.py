"""Everything around a method's iteration: resources, tasks, metrics, checkpoints, the final table.

A method is a module with a `Config` and an `iteration(tasks, run, config)`. `Run` is a bag of
resources with a few verbs and no idea of methods; `train` runs iterations until they are done.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from benchmarks import Task
from learners.config import RunConfig
from learners.ledger import Ledger, policy_flops
from learners.metrics import PEAK, tree_metrics
from learners.policy import Policy, PolicyLoss, Reference, TokenStats, multiplier
from learners.rl import mismatch_weights, wrap_loss
from learners.rollouts import Hook, Rollouts
from learners.runs.memory import IterationPeak, meter_of
from learners.tree import RolloutTree, Row, Trajectory, usable
from tools import PythonTool

Weighting = Callable[[Sequence[Tensor]], list[Tensor]]
"""Response masks of the rows of a mini-batch -> what each token's loss counts."""


class Run:
    """What a method's iteration works with. Mutated by its verbs."""

    def __init__(
        self,
        config: RunConfig,
        policy: Policy,
        rollouts: Rollouts,
        reference: Reference | None = None,
    ) -> None:
        self.config = config
        self.policy = policy
        self.rollouts = rollouts
        self.reference = reference
        """Needed where `config.has_reference`."""
        self.ledger: Ledger = rollouts.ledger
        self.memory: IterationPeak | None = None
        """Of the iteration under way."""
        self.iteration = 0
        self.trees: list[RolloutTree] = []
        """Of the iteration under way or just done."""
        self.lost: list[str] = []
        """Ids of tasks whose tools were unavailable; served once more."""
        self._notes: defaultdict[str, list[float]] = defaultdict(list)
        self._counts: defaultdict[str, int] = defaultdict(int)
        self._versions: dict[Trajectory, int] = {}
        """Optimiser steps before a trajectory of this iteration was sampled."""
        self._counted: dict[str, int] | None = None
        """Counters of sampler and tools when the iteration began."""

    def begin(self) -> None:
        """Start an iteration: its learning rate, what is counted from here on."""
        config = self.config
        self._counted = readings(self.rollouts)
        self.memory = IterationPeak(meter_of(self.policy.model.device))
        self.memory.begin()
        share = multiplier(
            config.optimisation.schedule,
            config.optimisation.warmup,
            self.iteration,
            config.training.iterations,
        )
        self.policy.set_learning_rate(self.policy.learning_rate * share)
        self.note("update/learning_rate", [self.policy.learning_rate * share])

    def new_trees(self, tasks: Sequence[Task], roots: int) -> list[RolloutTree]:
        """A tree per task with unfinished roots; a task may occur more than once."""
        self.trees = [self.rollouts.tree(task) for task in tasks]
        met: Counter[str] = Counter()
        for tree in self.trees:
            tree.copy = met[tree.task.id]
            met[tree.task.id] += 1
            tree.begun = 0 if self._versions else roots
            for _ in range(roots):
                tree.root()
        return self.trees

    def rollout(self, trees: Sequence[RolloutTree], after_turn: Hook | None = None) -> None:
        """Run what is unfinished, by the current policy."""
        begun = {t for tree in trees for t in tree.trajectories if t.done}
        self.rollouts.run(trees, key=str(self.iteration), after_turn=after_turn)
        for tree in trees:
            for trajectory in tree.trajectories:
                if trajectory not in begun:
                    self._versions[trajectory] = self.policy.updates

    def minibatches(self, trees: Sequence[RolloutTree]) -> Iterator[list[RolloutTree]]:
        """The trees of one optimiser step after the other; trees without their tools left out."""
        kept = usable(trees)
        for start in range(0, len(kept), self.config.training.minibatch_prompts):
            yield kept[start : start + self.config.training.minibatch_prompts]

    def token_stats(
        self, trajectories: Sequence[Trajectory], *, branched: bool = False
    ) -> dict[Trajectory, TokenStats]:
        """Log-probabilities and entropies under the current policy.

        Args:
            trajectories: finished.
            branched: branches will leave them by the same weights, so the sampler may keep what
                is read of them here.
        """
        self.ledger.add("scored_tokens", sum(map(_tokens, trajectories)))
        keep = self.rollouts.sampler.keep if branched else None
        with self.ledger.phase("score"):
            stats = self.policy.token_stats(trajectories, keep)
        self.ledger.add("computed_tokens", self.policy.work.computed_tokens)
        for trajectory, found in zip(trajectories, stats, strict=True):
            trajectory.marks.logprobs, trajectory.marks.entropies = found
            trajectory.marks.age = self._age(trajectory)
        return dict(zip(trajectories, stats, strict=True))

    def _age(self, trajectory: Trajectory) -> int:
        """Optimiser steps since it was sampled."""
        return self.policy.updates - self._versions.get(trajectory, self.policy.updates)

    def remember_old_logprobs(self, trajectories: Sequence[Trajectory]) -> None:
        """Keep the current policy's log-probabilities as those the ratio is to."""
        for trajectory, stats in self.token_stats(trajectories).items():
            trajectory.old_logprobs = stats.logprobs
            mask = torch.tensor(trajectory.response_mask)
            sampled = torch.tensor(trajectory.sampler_logprobs)
            self.note("policy/entropy", stats.entropies[mask].tolist())
            self.note("policy/sampler_gap", (stats.logprobs - sampled)[mask].abs().tolist())

    def update(self, rows: Sequence[Row], weights: Sequence[Tensor], loss: PolicyLoss) -> None:
        """One optimiser step; none when no row is left."""
        if not rows:
            self.count("update/without_rows", 1)
            return
        config = self.config
        if config.optimisation.kl != 0:
            self.refer([row.trajectory for row in rows])
        for (trajectory, advantages), weight in zip(rows, weights, strict=True):
            trajectory.marks.advantages, trajectory.marks.weights = advantages, weight
        ages = [self._age(row.trajectory) for row in rows]
        self.note("update/staleness", [float(age) for age in ages])
        self.note("update/stale_rows", [float(age > 0) for age in ages])
        self.ledger.add("updated_tokens", sum(_tokens(row.trajectory) for row in rows))
        with self.ledger.phase("update"):
            done = self.policy.update(
                rows,
                self._corrected(rows, weights),
                wrap_loss(
                    loss, self.note, config.optimisation.kl, config.optimisation.kl_estimator
                ),
            )
        self.ledger.add("computed_tokens", done.computed_tokens)
        self.note("update/trees", [float(done.trees)])
        self.rollouts.sampler.sync()
        self.count("update/steps", 1)
        self.count("update/skipped", int(done.skipped))
        self.note("update/loss", [done.loss])
        self.note("update/gradient_norm", [done.gradient_norm])
        for row, w in zip(rows, weights, strict=True):
            trained = w * torch.tensor(row.trajectory.response_mask) != 0
            self.ledger.add("trained_tokens", int(trained.sum()))
            self.note("advantage/magnitude", row.advantages[trained].abs().tolist())

    def refer(self, trajectories: Sequence[Trajectory]) -> None:
        """Keep what the reference thinks of trajectories, each asked for once."""
        fresh = [t for t in trajectories if t.reference_logprobs is None]
        if not fresh:
            return
        assert self.reference is not None, "a run with kl needs its reference"
        with self.ledger.phase("score"):
            found = self.reference.logprobs(fresh)
        for trajectory, logprobs in zip(fresh, found, strict=True):
            trajectory.reference_logprobs = logprobs

    def _corrected(self, rows: Sequence[Row], weights: Sequence[Tensor]) -> Sequence[Tensor]:
        """Weights times what tokens count for a sampler that is not quite the policy."""
        cap = self.config.sampling.sampler_correction
        if cap is None:
            return weights
        found = []
        for (trajectory, _), weight in zip(rows, weights, strict=True):
            assert trajectory.old_logprobs is not None, "remember_old_logprobs before updating"
            mask = torch.tensor(trajectory.response_mask)
            gap = trajectory.old_logprobs - torch.tensor(trajectory.sampler_logprobs)
            factor = mismatch_weights(gap, mask, cap)
            self.note("policy/sampler_correction", factor[mask].tolist())
            found.append(weight * factor)
        return found

    def sample_and_update(
        self,
        tasks: Sequence[Task],
        *,
        roots: int,
        advantages: Callable[[Sequence[RolloutTree]], list[Row]],
        weights: Weighting,
        loss: PolicyLoss,
    ) -> None:
        """The iteration of every method without branches."""
        trees = self.new_trees(tasks, roots)
        self.rollout(trees)
        self.credit_and_update(trees, advantages=advantages, weights=weights, loss=loss)

    def credit_and_update(
        self,
        trees: Sequence[RolloutTree],
        *,
        advantages: Callable[[Sequence[RolloutTree]], list[Row]],
        weights: Weighting,
        loss: PolicyLoss,
    ) -> None:
        """Credit all trees of the iteration together, then one update per mini-batch."""
        kept = usable(trees)
        self.remember_old_logprobs([t for tree in kept for t in tree.trajectories])
        credited = {row.trajectory: row for row in advantages(kept)}
        for batch in self.minibatches(trees):
            groups = [[credited[t] for t in tree.trajectories if t in credited] for tree in batch]
            dropped = [not any(row.advantages.any() for row in group) for group in groups]
            self.count("advantage/dropped_groups", sum(dropped))
            self.update_by([row for group in groups for row in group], weights, loss)

    def update_by(self, rows: Sequence[Row], weights: Weighting, loss: PolicyLoss) -> None:
        """One update on rows that are weighted together; those without credit need no pass.

        Rows with advantage 0 count in the mean that the weights are, as in the reference
        implementations. Only a penalty has a gradient on them: without one they are left out then.
        """
        masks = [torch.tensor(row.trajectory.response_mask) for row in rows]
        pairs = list(zip(rows, weights(masks), strict=True))
        if self.config.optimisation.kl == 0:
            pairs = [(row, weight) for row, weight in pairs if row.advantages.any()]
        self.update([row for row, _ in pairs], [weight for _, weight in pairs], loss)

    def draw(self, name: str) -> random.Random:
        """A generator of this run's seed and iteration, for choices that are not tokens."""
        return random.Random(f"{self.config.training.seed}/{self.iteration}/{name}")

    def count(self, name: str, amount: int) -> None:
        """Add to a counter of this iteration."""
        self._counts[name] += amount

    def note(self, name: str, values: Sequence[float]) -> None:
        """Add observations whose mean is a metric of this iteration."""
        self._notes[name].extend(values)

    def metrics(self) -> dict[str, float]:
        """What the iteration was like; empties the counters."""
        if self._counted is not None:
            add_since(self._counted, self.rollouts)
            self._counted = None
        self.ledger.inherited(self.trees)
        found = {k: sum(v) / len(v) for k, v in self._notes.items() if v}
        found |= {k: float(v) for k, v in self._counts.items()}
        found |= self.ledger.take() | tree_metrics(self.trees)
        if self.memory is not None:
            found[PEAK] = self.memory.most()
            self.memory = None
        found["ledger/flops"] = policy_flops(self.policy.model.num_parameters(), found)
        self._notes.clear()
        self._counts.clear()
        self._versions.clear()
        return {name: found[name] for name in sorted(found)}


def _tokens(trajectory: Trajectory) -> int:
    """Tokens that a forward pass over a trajectory reads."""
    return len(trajectory.prompt_ids) + len(trajectory)


def readings(rollouts: Rollouts) -> dict[str, int]:
    """Counters as they stand; they only rise, also while others than the iteration use them.

    Args:
        rollouts: its sampler and tools are read. Only the built-in sampler tells what it prefills.
    """
    pythons = [tool for tool in rollouts.env.tools if isinstance(tool, PythonTool)]
    found = {
        "forked_states": sum(tool.forks for tool in pythons),
        "replayed_states": sum(tool.replays for tool in pythons),
    }
    prefilled = rollouts.sampler.stats().prefilled_tokens
    if prefilled is not None:
        found["prefilled_tokens"] = prefilled
    return found


def add_since(before: dict[str, int], rollouts: Rollouts) -> None:
    """Add to the ledger what the counters have risen by since they were read."""
    for name, value in readings(rollouts).items():
        rollouts.ledger.add(name, value - before[name])
