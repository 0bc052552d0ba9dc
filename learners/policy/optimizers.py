"""What turns gradients into steps: AdamW, or Muon for the matrices of the hidden layers.

Muon [Jordan et al. 2024] orthogonalises the momentum of every hidden matrix, so that no direction
of a matrix learns faster than another; embeddings, norms and vectors stay with AdamW. The step has
the size of AdamW's [Liu et al. 2025, arXiv 2502.16982], so one learning rate serves both. New
weights learn to copy what they read in a fraction of the tokens AdamW takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import Parameter

from learners.config import OptimizerName, Schedule


class MuonWithAdamW:
    """Muon on hidden matrices, AdamW on the rest, behind the face of one torch optimiser."""

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
        """The groups of both."""
        return [group for part in self._parts for group in part.param_groups]

    def step(self) -> None:
        """Move every parameter that has a gradient."""
        for part in self._parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for part in self._parts:
            part.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Of both, as `load_state_dict` takes it."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from another's state."""
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
    """An optimiser of the parameters that require a gradient.

    Args:
        name: adamw, or muon.
        parameters: names and parameters; a matrix is hidden unless its name says that it embeds or
            projects to the vocabulary.
        learning_rate: of both parts of muon.
        betas: of AdamW.
        weight_decay: decoupled, of both.
    """
    trained = [(called, p) for called, p in parameters if p.requires_grad]
    adamw: dict[str, Any] = {"lr": learning_rate, "betas": betas, "weight_decay": weight_decay}
    hidden = [p for called, p in trained if name == "muon" and _hidden(called, p)]
    if not hidden:
        return torch.optim.AdamW([p for _, p in trained], fused=True, **adamw)
    chosen = {id(p) for p in hidden}
    return MuonWithAdamW(hidden, [p for _, p in trained if id(p) not in chosen], adamw)


def _hidden(name: str, parameter: Parameter) -> bool:
    return parameter.ndim == 2 and "embed" not in name and "lm_head" not in name


def multiplier(schedule: Schedule, warmup: float, iteration: int, iterations: int) -> float:
    """What the learning rate is multiplied by in an iteration.

    Args:
        schedule: constant; linear, falls to 0; cosine, falls to 0 along half a cosine.
        warmup: share of the iterations in which the rate rises in equal steps.
        iteration: from 0.
        iterations: of the whole run.

    Returns:
        In (0, 1]: the first iteration trains, and so does the last.
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
