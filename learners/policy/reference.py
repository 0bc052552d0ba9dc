"""TODO."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from learners.config import RunConfig
from learners.policy.loading import load_model
from learners.policy.lora import _layers
from learners.policy.policy import Policy
from learners.tree import Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Reference(Protocol):
    """A policy that stays as it is."""

    def logprobs(self, trajectories: Sequence[Trajectory]) -> list[Tensor]:
        """Per trajectory (T,), nats; 0 on observations."""
        ...


class FrozenPolicy:
    """The model that the run started from, beside the one in training."""

    def __init__(self, policy: Policy) -> None:
        """Score by a policy that nothing updates from here on."""
        policy.model.requires_grad_(False)
        self._policy = policy

    def logprobs(self, trajectories: Sequence[Trajectory]) -> list[Tensor]:
        """Per trajectory (T,), nats."""
        return [stats.logprobs for stats in self._policy.token_stats(trajectories)]


def reference_of(config: RunConfig, policy: Policy) -> Reference | None:
    """The model that a run started from, where its loss or reward has a penalty for leaving it."""
    if not config.has_reference:
        return None
    if config.optimisation.lora_rank:
        return WithoutAdapters(policy)
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


class WithoutAdapters:
    """The model that a run with adapters started from: the same weights, adapters left out."""

    def __init__(self, policy: Policy) -> None:
        """Score by a policy's frozen weights."""
        self._policy = policy

    def logprobs(self, trajectories: Sequence[Trajectory]) -> list[Tensor]:
        """Per trajectory (T,), nats."""
        with _switched_off(self._policy.model):
            return [stats.logprobs for stats in self._policy.token_stats(trajectories)]


@contextmanager
def _switched_off(model: PreTrainedModel) -> Iterator[None]:
    layers = [layer for _, layer in _layers(model)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
