"""Optimisers and learning rate schedules: AdamW, or Muon for the matrices of the hidden layers.

Muon [Jordan et al. 2024] orthogonalises the momentum of every hidden matrix, so that no direction
of a matrix learns faster than another; embeddings, norms and vectors stay with AdamW. Its steps are
scaled to the size of AdamW's [Liu et al. 2025, arXiv 2502.16982], so one learning rate serves both.
With Muon, new weights learn to copy from their context in a fraction of the tokens AdamW needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import Parameter

from learners.config import OptimizerName, Schedule


class MuonWithAdamW:
    """Muon on hidden matrices and AdamW on the rest, with the interface of one torch optimiser."""

    def __init__(
        self, hidden: list[Parameter], rest: list[Parameter], adamw: dict[str, Any]
    ) -> None:
        shared = {"lr": adamw["lr"], "weight_decay": adamw["weight_decay"]}
        self._parts: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.AdamW(rest, fused=True, **adamw),
            torch.optim.Muon(hidden, adjust_lr_fn="match_rms_adamw", **shared),
        )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of both optimisers."""
        return [group for part in self._parts for group in part.param_groups]

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for part in self._parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients."""
        for part in self._parts:
            part.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both optimisers, for `load_state_dict`."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of both optimisers."""
        for part, saved in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(saved)


Optimizer = torch.optim.Optimizer | MuonWithAdamW


def make_optimizer(
    name: OptimizerName,
    parameters: Iterable[tuple[str, Parameter]],
    *,
    learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> Optimizer:
    """Make an optimiser of the parameters that require a gradient.

    Args:
        name: adamw or muon.
        parameters: names and parameters. A matrix counts as hidden unless its name shows that it
            is an embedding or projects to the vocabulary.
        learning_rate: of both AdamW and Muon.
        betas: of AdamW.
        weight_decay: decoupled, of both.
    """
    trainable = [(key, p) for key, p in parameters if p.requires_grad]
    adamw: dict[str, Any] = {"lr": learning_rate, "betas": betas, "weight_decay": weight_decay}
    hidden = [p for key, p in trainable if name == "muon" and _is_hidden_matrix(key, p)]
    if not hidden:
        return torch.optim.AdamW([p for _, p in trainable], fused=True, **adamw)
    by_muon = {id(p) for p in hidden}
    return MuonWithAdamW(hidden, [p for _, p in trainable if id(p) not in by_muon], adamw)


def _is_hidden_matrix(name: str, parameter: Parameter) -> bool:
    return parameter.ndim == 2 and "embed" not in name and "lm_head" not in name


def multiplier(schedule: Schedule, warmup: float, iteration: int, iterations: int) -> float:
    """Factor of the learning rate in an iteration.

    Args:
        schedule: constant; linear, falling to 0; cosine, falling to 0 along half a cosine.
        warmup: fraction of the iterations in which the rate rises in equal steps.
        iteration: from 0.
        iterations: of the whole run.

    Returns:
        A number in (0, 1]: neither the first nor the last iteration has a rate of 0.
    """
    rising = round(warmup * iterations)
    if iteration < rising:
        return (iteration + 1) / (rising + 1)
    left = (iterations - iteration) / max(iterations - rising, 1)  # from 1 down to 1 / falling
    if schedule == "linear":
        return left
    if schedule == "cosine":
        return (1 - math.cos(math.pi * left)) / 2
    return 1.0
