"""The reference policy of KL penalties: the model that a run started from, never updated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from learners.config import RunConfig
from learners.policy.loading import load_model
from learners.policy.lora import disable_adapters
from learners.policy.policy import Policy
from learners.tree import Trajectory


class Reference(Protocol):
    """A policy that is never updated."""

    def logprobs(self, trajectories: Sequence[Trajectory]) -> list[Tensor]:
        """Compute (T,) log-probabilities of each trajectory, in nats; 0 on observations."""
        ...


class FrozenPolicy:
    """A second copy of the model that the run started from."""

    def __init__(self, policy: Policy) -> None:
        """Freeze a policy's weights and score with them."""
        policy.model.requires_grad_(False)
        self._policy = policy

    def logprobs(self, trajectories: Sequence[Trajectory]) -> list[Tensor]:
        """Compute (T,) log-probabilities of each trajectory, in nats."""
        return [stats.logprobs for stats in self._policy.token_stats(trajectories)]


def make_reference(config: RunConfig, policy: Policy) -> Reference | None:
    """Return the model that a run started from; None if neither loss nor reward penalise KL."""
    if not config.has_reference:
        return None
    if config.optimisation.lora_rank:
        return AdapterFreePolicy(policy)
    loaded = load_model(config.training.model, seed=config.training.seed)
    if torch.cuda.is_available():
        loaded.model.to("cuda")
    return FrozenPolicy(
        Policy(
            loaded,
            learning_rate=0.0,
            temperature=config.sampling.temperature,
            microbatch_tokens=config.optimisation.microbatch_tokens,
            autocast=config.optimisation.autocast,
        )
    )


class AdapterFreePolicy:
    """The model that a run with adapters started from: its frozen weights, adapters disabled."""

    def __init__(self, policy: Policy) -> None:
        """Score with a policy's frozen weights; no second copy is needed."""
        self._policy = policy

    def logprobs(self, trajectories: Sequence[Trajectory]) -> list[Tensor]:
        """Compute (T,) log-probabilities of each trajectory, in nats."""
        with disable_adapters(self._policy.model):
            return [stats.logprobs for stats in self._policy.token_stats(trajectories)]
