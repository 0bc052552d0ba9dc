"""How a token is drawn: the inverse of its distribution's CDF at a number that the place decides.

The number comes from a counter keyed by request and position, never from a generator's state, so a
draw depends on nothing else in its batch (up to float rounding, which only matters where it falls
within 1e-4 of a boundary of the distribution).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 256
"""Tokens whose probabilities are summed before any is looked at alone."""


def uniform(key: str, position: int) -> float:
    """A number in [0, 1), decided by key and position alone."""
    digest = hashlib.blake2b(f"{key}#{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


class Draw(NamedTuple):
    """One sampled token per row; all (R,)."""

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
    heat = torch.tensor([t if t > 0 else 1.0 for t in temperatures], dtype=logits.dtype)
    logprobs = torch.log_softmax(logits / heat[:, None].to(logits.device), dim=-1)  # (R, V)
    probabilities = logprobs.exp()
    token_ids = _invert(probabilities, uniforms)  # (R, 1)
    if min(temperatures) <= 0:
        greedy = torch.tensor([[t <= 0] for t in temperatures], device=logits.device)
        token_ids = torch.where(greedy, logits.argmax(-1, keepdim=True), token_ids)
    entropies = -torch.linalg.vecdot(probabilities, logprobs.clamp_min(-1e4))
    chosen = logprobs.gather(1, token_ids)
    return Draw(token_ids[:, 0].tolist(), chosen[:, 0].tolist(), entropies.tolist())


def _invert(probabilities: Tensor, uniforms: Sequence[float]) -> Tensor:
    """(R, 1) the first tokens whose cumulated probability exceeds a share of the whole.

    First the block of tokens is found, then the token in it: cumulating 49,152 numbers a row in
    float64 takes as long as a third of SmolLM2's forward pass.
    """
    rows, short = len(probabilities), -probabilities.shape[-1] % BLOCK
    padded = pad(probabilities, (0, short)) if short else probabilities
    blocks = padded.view(rows, -1, BLOCK)
    share = torch.tensor(uniforms, dtype=torch.float64, device=blocks.device)[:, None]
    masses = blocks.sum(-1).double().cumsum(-1)  # (R, V / BLOCK)
    block, rest = _exceeding(masses, share * masses[:, -1:])
    inside = blocks[torch.arange(rows), block[:, 0]].double().cumsum(-1)  # (R, BLOCK)
    return block * BLOCK + _exceeding(inside, rest)[0]


def _exceeding(cumulated: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(R, 1) the first places that exceed a target, and what of it the places before leave."""
    below = torch.nextafter(cumulated[:, -1:], torch.zeros_like(target))
    place = torch.searchsorted(cumulated, torch.minimum(target, below), right=True)
    before = cumulated.gather(1, (place - 1).clamp_min(0)) * (place > 0)
    return place, target - before
