"""Draws tokens reproducibly: the inverse CDF at a number that request and position decide.

The number is a hash of both, not the state of a generator, so a draw does not depend on the rest of
its batch (up to float rounding, which matters only if the number is within 1e-4 of a boundary of
the distribution).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 256
"""Number of tokens in a block of `_invert_cdf`."""


def uniform(key: str, position: int) -> float:
    """Hash a key and a position to a number in [0, 1)."""
    digest = hashlib.blake2b(f"{key}#{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


class Draw(NamedTuple):
    """One sampled token for each row; all (R,)."""

    token_ids: list[int]
    logprobs: list[float]
    entropies: list[float]


def draw(logits: Tensor, uniforms: Sequence[float], temperatures: Sequence[float]) -> Draw:
    """Sample by inverse CDF; a temperature of 0 is greedy.

    Args:
        logits: (R, V).
        uniforms: (R,) in [0, 1).
        temperatures: (R,).

    Returns:
        Tokens with their log-probabilities and the entropies of the full distributions, in nats.
    """
    divisors = torch.tensor([t if t > 0 else 1.0 for t in temperatures], dtype=logits.dtype)
    logprobs = torch.log_softmax(logits / divisors[:, None].to(logits.device), dim=-1)  # (R, V)
    probabilities = logprobs.exp()
    token_ids = _invert_cdf(probabilities, uniforms)  # (R, 1)
    if min(temperatures) <= 0:
        greedy = torch.tensor([[t <= 0] for t in temperatures], device=logits.device)
        token_ids = torch.where(greedy, logits.argmax(-1, keepdim=True), token_ids)
    # Clamped: a token of probability 0 would contribute 0 * -inf, which is NaN.
    entropies = -torch.linalg.vecdot(probabilities, logprobs.clamp_min(-1e4))
    chosen = logprobs.gather(1, token_ids)
    return Draw(token_ids[:, 0].tolist(), chosen[:, 0].tolist(), entropies.tolist())


def _invert_cdf(probabilities: Tensor, uniforms: Sequence[float]) -> Tensor:
    """(R, 1) first tokens whose cumulative probability exceeds a share of the total.

    Searches for the block of tokens first, then for the token in it: a cumulative sum of 49,152
    numbers a row in float64 takes as long as a third of SmolLM2's forward pass.
    """
    rows, short = len(probabilities), -probabilities.shape[-1] % BLOCK
    padded = pad(probabilities, (0, short)) if short else probabilities
    blocks = padded.view(rows, -1, BLOCK)
    share = torch.tensor(uniforms, dtype=torch.float64, device=blocks.device)[:, None]
    masses = blocks.sum(-1).double().cumsum(-1)  # (R, V / BLOCK)
    # Shares of the total rather than of 1, which float32 probabilities do not quite add up to.
    block, rest = _search(masses, share * masses[:, -1:])
    inside = blocks[torch.arange(rows), block[:, 0]].double().cumsum(-1)  # (R, BLOCK)
    return block * BLOCK + _search(inside, rest)[0]


def _search(cumulative: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(R, 1) first indices where a sum exceeds a target, and the target less the sum before."""
    # Rounding can lift the target to the last sum, which no index exceeds.
    below = torch.nextafter(cumulative[:, -1:], torch.zeros_like(target))
    index = torch.searchsorted(cumulative, torch.minimum(target, below), right=True)
    before = cumulative.gather(1, (index - 1).clamp_min(0)) * (index > 0)
    return index, target - before
