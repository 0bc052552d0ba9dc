"""What an update minimises around a method's loss: a penalty, and what is taken down on the way."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from learners.losses import kl_k1, kl_k2, kl_k3, token_log_ratio
from learners.run_config import Estimator, RunConfig
from learners.tree import Trajectory

if TYPE_CHECKING:
    from learners.batch import Batch
    from learners.policy import Policy, PolicyLoss

Note = Callable[[str, Sequence[float]], None]
"""Takes observations whose mean is a metric."""


class Reference(Protocol):
    """A policy that stays as it is."""

    def logprobs(self, trajectories: Sequence[Trajectory]) -> list[Tensor]:
        """Per trajectory (T,), nats; 0 on observations."""
        ...


class FrozenPolicy:
    """The model that the run started from, beside the one in training."""

    def __init__(self, policy: "Policy") -> None:
        """Score by a policy that nothing updates from here on."""
        policy.model.requires_grad_(False)
        self._policy = policy

    def logprobs(self, trajectories: Sequence[Trajectory]) -> list[Tensor]:
        """Per trajectory (T,), nats."""
        return [stats.logprobs for stats in self._policy.token_stats(trajectories)]


def reference_of(config: RunConfig, policy: "Policy") -> Reference | None:
    """The model that a run started from, where its loss or reward has a penalty for leaving it."""
    from learners.lora import WithoutAdapters
    from learners.models import load_model
    from learners.policy import Policy

    if not config.has_reference:
        return None
    if config.lora_rank:
        return WithoutAdapters(policy)
    loaded = load_model(config.model, seed=config.seed)
    if torch.cuda.is_available():
        loaded.model.to("cuda")
    return FrozenPolicy(
        Policy(
            loaded,
            learning_rate=0.0,
            temperature=config.temperature,
            microbatch_tokens=config.microbatch_tokens,
            autocast=config.autocast,
        )
    )


def divergence(logprobs: Tensor, reference: Tensor, estimator: Estimator) -> Tensor:
    """Estimate of KL(current || reference) of every token, to be masked and averaged.

    k1 and k2 differ in value, not in gradient: the gradient of k1 itself is 0 in the mean, whatever
    the policies are, so that k1 trains with that of k2.

    Args:
        logprobs: (B, T) with gradient.
        reference: (B, T).
        estimator: k1, log(p / q); k2, its square halved; k3, q / p - log(q / p) - 1.
    """
    if estimator == "k3":
        return kl_k3(logprobs, reference)
    slope = kl_k2(logprobs, reference)
    if estimator == "k2":
        return slope
    return kl_k1(logprobs, reference).detach() + slope - slope.detach()


def objective(
    loss: "PolicyLoss", note: Note, coefficient: float = 0.0, estimator: Estimator = "k3"
) -> "PolicyLoss":
    """A method's loss, plus coefficient times the divergence from the reference.

    The penalty is masked and averaged by the batch's weights, as most methods' losses are.

    Args:
        loss: of the method.
        note: takes metrics of the loss.
        coefficient: beta.
        estimator: see `divergence`.
    """

    def whole(logprobs: Tensor, batch: "Batch") -> Tensor:
        value = loss(logprobs, batch)
        trained = batch.response_mask & (batch.weights != 0)
        _take_down(value, logprobs, batch, trained, note)
        if batch.reference_logprobs is not None:
            penalty = divergence(logprobs, batch.reference_logprobs, estimator)
            note("policy/kl_reference", penalty.detach()[trained].tolist())
            if coefficient:
                value = value + coefficient * (penalty * batch.weights).sum()
        return value

    return whole


def _take_down(
    value: Tensor, logprobs: Tensor, batch: "Batch", trained: Tensor, note: Note
) -> None:
    """How far the policy is from the old one, and which tokens the loss leaves as they are."""
    with torch.no_grad():
        note("policy/kl_old", kl_k3(batch.old_logprobs, logprobs)[trained].tolist())
    if not value.requires_grad:
        return
    (slope,) = torch.autograd.grad(value, logprobs, retain_graph=True, allow_unused=True)
    if slope is None:
        return
    still = slope[trained] == 0
    sign = batch.advantages[trained].sign()
    note("loss/clip_low_fraction", (still & (sign < 0)).double().tolist())
    note("loss/clip_high_fraction", (still & (sign > 0)).double().tolist())


def note_bounded(note: Note, logprobs: Tensor, batch: "Batch", low: float, high: float) -> None:
    """Take down the tokens whose ratio is beyond a clip that leaves them a gradient (GPPO).

    Args:
        note: takes, per trained token, whether A < 0 and the ratio is below `low`, or A > 0 and it
            is above `high`.
        logprobs: (B, T).
        batch: has the rest.
        low: 1 - eps.
        high: 1 + eps.
    """
    trained = batch.response_mask & (batch.weights != 0)
    ratio = token_log_ratio(logprobs.detach(), batch.old_logprobs)[trained].exp()
    sign = batch.advantages[trained].sign()
    note("loss/bounded_low_fraction", ((ratio < low) & (sign < 0)).double().tolist())
    note("loss/bounded_high_fraction", ((ratio > high) & (sign > 0)).double().tolist())


def note_capped(note: Note, logprobs: Tensor, batch: "Batch", cap: float) -> None:
    """Take down, per trained token, whether its ratio is above the cap of its weight (CISPO)."""
    trained = batch.response_mask & (batch.weights != 0)
    ratio = token_log_ratio(logprobs.detach(), batch.old_logprobs)[trained].exp()
    note("loss/capped_fraction", (ratio > cap).double().tolist())
