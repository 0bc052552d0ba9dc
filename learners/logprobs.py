"""Log-probabilities of tokens and entropies, from logits over the vocabulary.

The gradient of a log-probability is written in as few passes over the vocabulary as it takes:
autograd's own, of gather and logsumexp, fills and adds tensors as large as the logits three times,
and logsumexp alone takes several times as long as log_softmax.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

CHUNK = 512
"""Tokens whose logits exist at the same time, where there are many."""
KEPT_LOGITS = 1 << 24
"""Most logits of a pass that are kept for its backward pass; beyond it they are computed again."""


def of_states(
    hidden: Tensor,
    head: torch.nn.Linear,
    targets: Tensor,
    temperature: float,
    *,
    entropies: bool,
) -> tuple[Tensor, Tensor]:
    """What the tokens after some states are worth.

    Args:
        hidden: (n, D).
        head: (V, D) weights, and a bias or none.
        targets: (n,) ids.
        temperature: that logits are divided by.
        entropies: whether they are asked for, too; then there is no gradient.

    Returns:
        (n,) log-probabilities and (n,) or no entropies, in nats.
    """
    if torch.is_grad_enabled() and len(targets) * len(head.weight) > KEPT_LOGITS:
        found = head_logprobs(hidden, head, targets, temperature, CHUNK)
        return found, found.new_empty(0)
    precision = torch.promote_types(hidden.dtype, torch.float32)
    logprobs, surprise = [hidden.new_empty(0, dtype=precision)], []
    for start in range(0, len(targets), CHUNK):
        logits, own = head(hidden[start : start + CHUNK]).to(precision), targets[start:][:CHUNK]
        if temperature != 1.0:
            logits = logits / temperature
        if entropies:
            one, other = logprobs_and_entropies(logits, own)
            logprobs.append(one)
            surprise.append(other)
        else:
            logprobs.append(token_logprobs(logits, own))
    return torch.cat(logprobs), torch.cat([*surprise, logprobs[0]])


class _Logprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:  # noqa: ANN401
        whole = torch.log_softmax(logits, -1)
        ctx.save_for_backward(whole, targets)
        return whole.gather(1, targets[:, None])[:, 0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        """Of log p(target) by the logits: [target] - p."""
        whole, targets = ctx.saved_tensors
        found = whole.exp().mul_(-gradient[:, None])
        found[torch.arange(len(targets), device=targets.device), targets] += gradient
        return found, None


def token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """(n,) nats, of (n,) targets under (n, V) logits."""
    found: Tensor = _Logprobs.apply(logits, targets)  # type: ignore[no-untyped-call]
    return found


def logprobs_and_entropies(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Both (n,) nats, of (n,) targets under (n, V) logits, without a gradient."""
    whole = torch.log_softmax(logits.detach(), dim=-1)
    return whole.gather(1, targets[:, None])[:, 0], -torch.linalg.vecdot(whole.exp(), whole)


class _HeadLogprobs(torch.autograd.Function):
    """Logits of `part` tokens at a time, in one place, and once more for the gradient."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        part: int,
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.temperature, ctx.part = temperature, part
        found = [
            whole.gather(1, targets[own, None])[:, 0]
            for own, whole in _in_parts(hidden, weight, bias, temperature, part)
        ]
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Of log p(target) by the state: (weight of the target - mean weight under p) / T."""
        hidden, weight, bias, targets = ctx.saved_tensors
        above = (gradient / ctx.temperature).to(weight.dtype)
        scaled = hidden * above[:, None]
        by_hidden = torch.empty_like(hidden)
        by_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        by_bias = torch.zeros_like(bias) if ctx.needs_input_grad[2] else None
        for own, whole in _in_parts(hidden, weight, bias, ctx.temperature, ctx.part):
            p = whole.exp_().to(weight.dtype)
            torch.mm(p, weight, out=by_hidden[own])
            if by_weight is not None:
                by_weight.addmm_(p.T, scaled[own], alpha=-1)
            if by_bias is not None:
                by_bias.addmv_(p.T, above[own], alpha=-1)
        by_hidden = (weight[targets] - by_hidden).mul_(above[:, None])
        if by_weight is not None:
            by_weight.index_add_(0, targets, scaled)
        if by_bias is not None:
            by_bias.index_add_(0, targets, above)
        return by_hidden, by_weight, by_bias, None, None, None


def _in_parts(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, part: int
) -> Iterator[tuple[slice, Tensor]]:
    """Which tokens, and the log-probabilities (n, V) of all that might follow; overwritten."""
    precision = torch.promote_types(weight.dtype, torch.float32)
    size = (min(part, len(hidden)), len(weight))
    logits, found = hidden.new_empty(size), hidden.new_empty(size, dtype=precision)
    for start in range(0, len(hidden), part):
        own = slice(start, min(start + part, len(hidden)))
        here = torch.mm(hidden[own], weight.T, out=logits[: own.stop - start])
        if bias is not None:
            here += bias
        if temperature != 1.0:
            here /= temperature
        whole = found[: own.stop - start]
        torch.log_softmax(here, 1, dtype=precision, out=whole)
        yield own, whole


def head_logprobs(
    hidden: Tensor, head: torch.nn.Linear, targets: Tensor, temperature: float, part: int
) -> Tensor:
    """Log-probabilities of many tokens, whose logits never exist all at once.

    Args:
        hidden: (n, D) states that predict them.
        head: (V, D) weights, and a bias or none.
        targets: (n,) ids.
        temperature: that logits are divided by.
        part: tokens whose logits exist at the same time.

    Returns:
        (n,) nats.
    """
    found: Tensor = _HeadLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, targets, temperature, part
    )
    return found


@contextmanager
def rounded_factors(enabled: bool) -> Iterator[None]:
    """Round the factors of float32 products to bfloat16 (TF32 on a GPU); sums stay in float32.

    For the head of a model in autocast: its weights are rounded like all others, but logits are
    not; a bfloat16 between 16 and 32 is off by up to 0.06.
    """
    if not enabled:
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
