"""Log-probabilities of tokens and entropies, from logits over the vocabulary.

Logits of many tokens never exist all at once, and the gradient is written in as few passes over the
vocabulary as it takes: autograd's own, of gather and logsumexp, fills and adds tensors as large as
the logits three times, and logsumexp alone takes several times as long as log_softmax.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

CHUNK = 512
"""Tokens whose logits exist at the same time."""


KEPT = 1 << 27
"""Most numbers over the vocabulary that a pass keeps for its backward pass (512 MiB of float32); of
tokens beyond it they are computed again."""


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
    if not entropies:
        found = head_logprobs(hidden, head, targets, temperature, CHUNK, KEPT)
        return found, found.new_empty(0)
    with torch.no_grad():
        made = _Vocabulary(hidden, head.weight, head.bias, temperature, CHUNK)
        logprobs = [targets.new_empty(0, dtype=made.precision)]
        surprise = list(logprobs)
        for own in made.parts():
            whole = made.logprobs(own, keeps=False)
            logprobs.append(whole.gather(1, targets[own, None])[:, 0])
            surprise.append(-torch.linalg.vecdot(whole.exp(), whole))
    return torch.cat(logprobs), torch.cat(surprise)


class _HeadLogprobs(torch.autograd.Function):
    """Logits of `part` tokens at a time; those of the first `parts` are kept for the gradient."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        part: int,
        parts: int,
    ) -> Tensor:
        ctx.temperature, ctx.part = temperature, part
        made = _Vocabulary(hidden, weight, bias, temperature, part)
        kept: list[Tensor] = []
        found = [targets.new_empty(0, dtype=made.precision)]
        for own in made.parts():
            keeps = len(kept) < parts and any(ctx.needs_input_grad)
            whole = made.logprobs(own, keeps=keeps)
            found.append(whole.gather(1, targets[own, None])[:, 0])
            if keeps:
                kept.append(whole)
        ctx.save_for_backward(hidden, weight, bias, targets, *kept)
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Of log p(target) by the state: (weight of the target - mean weight under p) / T."""
        hidden, weight, bias, targets, *kept = ctx.saved_tensors
        above = (gradient / ctx.temperature).to(weight.dtype)
        scaled = hidden * above[:, None]
        by_hidden = torch.empty_like(hidden)
        by_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        by_bias = torch.zeros_like(bias) if ctx.needs_input_grad[2] else None
        made = _Vocabulary(hidden, weight, bias, ctx.temperature, ctx.part)
        for own in made.parts():
            p = made.probabilities(own, kept.pop(0) if kept else None)
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
        return by_hidden, by_weight, by_bias, None, None, None, None


class _Vocabulary:
    """What might follow (n, D) states, a part at a time. Mutates its own room only."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, part: int
    ) -> None:
        self._hidden, self._weight, self._bias = hidden, weight, bias
        self._temperature, self._part = temperature, part
        self.precision = torch.promote_types(weight.dtype, torch.float32)
        self._size = (min(part, len(hidden)), len(weight))
        self._logits = hidden.new_empty(self._size)
        self._room: Tensor | None = None

    def parts(self) -> Iterator[slice]:
        """Which tokens stand together."""
        for start in range(0, len(self._hidden), self._part):
            yield slice(start, min(start + self._part, len(self._hidden)))

    def logprobs(self, own: slice, *, keeps: bool) -> Tensor:
        """(part, V) of a part's tokens; unless it `keeps` them, the next part overwrites them."""
        here = torch.mm(self._hidden[own], self._weight.T, out=self._logits[: own.stop - own.start])
        if self._bias is not None:
            here += self._bias
        if self._temperature != 1.0:
            here /= self._temperature
        if keeps:
            return torch.log_softmax(here, 1, dtype=self.precision)
        found = self._own_room()[: len(here)]
        torch.log_softmax(here, 1, dtype=self.precision, out=found)
        return found

    def probabilities(self, own: slice, logprobs: Tensor | None) -> Tensor:
        """(part, V) in the weights' type; the next part overwrites them."""
        whole = self.logprobs(own, keeps=False) if logprobs is None else logprobs
        found = torch.exp(whole, out=self._own_room()[: len(whole)])
        return found.to(self._weight.dtype)

    def _own_room(self) -> Tensor:
        if self._room is None:
            self._room = self._logits.new_empty(self._size, dtype=self.precision)
        return self._room


def head_logprobs(
    hidden: Tensor,
    head: torch.nn.Linear,
    targets: Tensor,
    temperature: float,
    part: int,
    kept: int,
) -> Tensor:
    """Log-probabilities of many tokens, whose logits never exist all at once.

    Args:
        hidden: (n, D) states that predict them.
        head: (V, D) weights, and a bias or none.
        targets: (n,) ids.
        temperature: that logits are divided by.
        part: tokens whose logits exist at the same time.
        kept: most numbers over the vocabulary that wait for the backward pass.

    Returns:
        (n,) nats.
    """
    found: Tensor = _HeadLogprobs.apply(  # type: ignore[no-untyped-call]
        *(hidden, head.weight, head.bias, targets, temperature, part),
        kept // (part * len(head.weight)),
    )
    return found


@contextmanager
def rounded_factors(enabled: bool) -> Iterator[None]:
    """Let factors of float32 products be rounded, to bfloat16 by AMX and TF32 on a GPU; not sums.

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
