"""Log-probabilities of tokens and entropies, from logits over the vocabulary.

The gradient of a log-probability is written in as few passes over the vocabulary as it takes:
autograd's own, of gather and logsumexp, fills and adds tensors as large as the logits three times.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class _Logprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:  # noqa: ANN401
        whole = logits.logsumexp(-1)
        ctx.save_for_backward(logits, whole, targets)
        return logits.gather(1, targets[:, None])[:, 0] - whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        """Of log p(target) by the logits: [target] - p."""
        logits, whole, targets = ctx.saved_tensors
        found = (logits - whole[:, None]).exp_().mul_(-gradient[:, None])
        found[torch.arange(len(targets), device=targets.device), targets] += gradient
        return found, None


def token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """(n,) nats, of (n,) targets under (n, V) logits."""
    found: Tensor = _Logprobs.apply(logits, targets)  # type: ignore[no-untyped-call]
    return found


def entropies(logits: Tensor) -> Tensor:
    """(n,) nats, of (n, V) logits."""
    logprobs = torch.log_softmax(logits, dim=-1)
    found: Tensor = -torch.linalg.vecdot(logprobs.exp(), logprobs)
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
