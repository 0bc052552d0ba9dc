"""Log-probabilities of tokens and entropies, from hidden states and the output head.

Logits are computed in chunks of tokens, and the gradient is written by hand, in as few passes over
the vocabulary as possible: autograd's, of gather and logsumexp, fills and adds tensors as large as
the logits three times, and logsumexp alone takes several times as long as log_softmax.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

CHUNK = 512
"""Number of tokens whose logits exist at the same time."""


MAX_SAVED = 1 << 27
"""Maximum number of values over the vocabulary that a pass saves for its backward pass (512 MiB of
float32); for tokens beyond it they are recomputed."""


def compute_logprobs(
    hidden: Tensor,
    head: torch.nn.Linear,
    targets: Tensor,
    temperature: float,
    *,
    entropies: bool,
) -> tuple[Tensor, Tensor]:
    """Compute the log-probabilities of tokens, and on request the entropies of their choice.

    Args:
        hidden: (n, D) states that predict the tokens.
        head: (V, D) weights, with or without a bias.
        targets: (n,) ids.
        temperature: divides the logits.
        entropies: compute entropies too, and no gradient.

    Returns:
        (n,) log-probabilities; (n,) entropies, or (0,) if not requested; in nats.
    """
    if not entropies:
        logprobs = head_logprobs(hidden, head, targets, temperature, CHUNK, MAX_SAVED)
        return logprobs, logprobs.new_empty(0)
    with torch.no_grad():
        vocabulary = _Vocabulary(hidden, head.weight, head.bias, temperature, CHUNK)
        chosen = [targets.new_empty(0, dtype=vocabulary.precision)]
        surprises = list(chosen)
        for tokens in vocabulary.chunks():
            every = vocabulary.logprobs(tokens, save=False)
            chosen.append(every.gather(1, targets[tokens, None])[:, 0])
            surprises.append(-torch.linalg.vecdot(every.exp(), every))
    return torch.cat(chosen), torch.cat(surprises)


class _HeadLogprobs(torch.autograd.Function):
    """See `head_logprobs`; saves the first `saved_chunks` chunks for the gradient."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk: int,
        saved_chunks: int,
    ) -> Tensor:
        ctx.temperature, ctx.chunk = temperature, chunk
        vocabulary = _Vocabulary(hidden, weight, bias, temperature, chunk)
        saved: list[Tensor] = []
        chosen = [targets.new_empty(0, dtype=vocabulary.precision)]
        for tokens in vocabulary.chunks():
            save = len(saved) < saved_chunks and any(ctx.needs_input_grad)
            every = vocabulary.logprobs(tokens, save=save)
            chosen.append(every.gather(1, targets[tokens, None])[:, 0])
            if save:
                saved.append(every)
        ctx.save_for_backward(hidden, weight, bias, targets, *saved)
        return torch.cat(chosen)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """D log p(target) / d state = (weight of the target - mean weight under p) / T."""
        hidden, weight, bias, targets, *saved = ctx.saved_tensors
        above = (gradient / ctx.temperature).to(weight.dtype)
        scaled = hidden * above[:, None]
        by_hidden = torch.empty_like(hidden)
        by_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        by_bias = torch.zeros_like(bias) if ctx.needs_input_grad[2] else None
        vocabulary = _Vocabulary(hidden, weight, bias, ctx.temperature, ctx.chunk)
        for tokens in vocabulary.chunks():
            p = vocabulary.probabilities(tokens, saved.pop(0) if saved else None)
            torch.mm(p, weight, out=by_hidden[tokens])
            if by_weight is not None:
                by_weight.addmm_(p.T, scaled[tokens], alpha=-1)
            if by_bias is not None:
                by_bias.addmv_(p.T, above[tokens], alpha=-1)
        by_hidden = (weight[targets] - by_hidden).mul_(above[:, None])
        if by_weight is not None:
            by_weight.index_add_(0, targets, scaled)
        if by_bias is not None:
            by_bias.index_add_(0, targets, above)
        return by_hidden, by_weight, by_bias, None, None, None, None


class _Vocabulary:
    """Distributions over the vocabulary after (n, D) states, a chunk of states at a time.

    Mutates its buffers only. Every call reuses them, so a result is valid until the next call.
    """

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, chunk: int
    ) -> None:
        self._hidden, self._weight, self._bias = hidden, weight, bias
        self._temperature, self._chunk = temperature, chunk
        self.precision = torch.promote_types(weight.dtype, torch.float32)
        self._size = (min(chunk, len(hidden)), len(weight))
        self._logits = hidden.new_empty(self._size)
        self._outputs: Tensor | None = None

    def chunks(self) -> Iterator[slice]:
        """Yield the tokens of each chunk."""
        for start in range(0, len(self._hidden), self._chunk):
            yield slice(start, min(start + self._chunk, len(self._hidden)))

    def logprobs(self, tokens: slice, *, save: bool) -> Tensor:
        """(chunk, V) log-probabilities; the next call overwrites them unless `save` is set."""
        logits = torch.mm(
            self._hidden[tokens], self._weight.T, out=self._logits[: tokens.stop - tokens.start]
        )
        if self._bias is not None:
            logits += self._bias
        if self._temperature != 1.0:
            logits /= self._temperature
        if save:
            return torch.log_softmax(logits, 1, dtype=self.precision)
        output = self._output_buffer()[: len(logits)]
        torch.log_softmax(logits, 1, dtype=self.precision, out=output)
        return output

    def probabilities(self, tokens: slice, logprobs: Tensor | None) -> Tensor:
        """(chunk, V) probabilities in the weights' dtype; the next call overwrites them."""
        every = self.logprobs(tokens, save=False) if logprobs is None else logprobs
        output = torch.exp(every, out=self._output_buffer()[: len(every)])
        return output.to(self._weight.dtype)

    def _output_buffer(self) -> Tensor:
        if self._outputs is None:
            self._outputs = self._logits.new_empty(self._size, dtype=self.precision)
        return self._outputs


def head_logprobs(
    hidden: Tensor,
    head: torch.nn.Linear,
    targets: Tensor,
    temperature: float,
    chunk: int,
    max_saved: int,
) -> Tensor:
    """Compute the log-probabilities of tokens, with a gradient, in chunks.

    Args:
        hidden: (n, D) states that predict the tokens.
        head: (V, D) weights, with or without a bias.
        targets: (n,) ids.
        temperature: divides the logits.
        chunk: number of tokens whose logits exist at the same time.
        max_saved: maximum number of values over the vocabulary saved for the backward pass.

    Returns:
        (n,) nats.
    """
    logprobs: Tensor = _HeadLogprobs.apply(  # type: ignore[no-untyped-call]
        *(hidden, head.weight, head.bias, targets, temperature, chunk),
        max_saved // (chunk * len(head.weight)),
    )
    return logprobs


@contextmanager
def reduced_matmul_precision(enabled: bool) -> Iterator[None]:
    """Round the factors of float32 products, to bfloat16 with AMX or TF32 on a GPU; not the sums.

    Meant for the head of a model under autocast: its weights may be rounded like all others, but
    logits may not. A bfloat16 between 16 and 32 is off by up to 0.06.
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
