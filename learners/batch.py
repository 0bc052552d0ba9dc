"""Rows laid in a rectangle: (B, T), prompt included; entry [i, t] speaks of token t of row i."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from learners.tree import Row

if TYPE_CHECKING:
    from learners.packing import Packing


@dataclass(frozen=True)
class Batch:
    """Right-padded rows of a micro-batch."""

    token_ids: Tensor
    attention_mask: Tensor
    """1 on prompt and response, 0 on padding."""
    response_mask: Tensor
    """True where log-probabilities are wanted: where the policy sampled the token."""
    sampler_logprobs: Tensor
    """Nats, as the sampler reported them."""
    old_logprobs: Tensor
    """Nats, by the policy's own pass before the step's first update; the ratio is to these."""
    advantages: Tensor
    weights: Tensor
    """What each token's loss counts; sums over the micro-batches of an update."""
    share: float
    """Rows here over rows of the mini-batch."""
    reference_logprobs: Tensor | None = None
    """Nats, by the policy that stays as it is; None without a penalty for leaving it."""
    packing: "Packing | None" = None
    """The rows as a tree, where the model reads them so."""


def pack(
    rows: Sequence[Row],
    device: torch.device | str = "cpu",
    *,
    weights: Sequence[Tensor] | None = None,
    share: float = 1.0,
    everything: bool = False,
    packing: "Packing | None" = None,
) -> Batch:
    """Lay rows into one batch, padded to the longest.

    Args:
        rows: B of them, not empty.
        device: where the batch is used.
        weights: per row over the response (T,), or over prompt and response; None: zero.
        share: see Batch.
        everything: speak of prompt and observations too (all but the first token), as a cold start
            of new weights does.
        packing: of the same rows in the same order.
    """
    longest = max(len(r.trajectory.prompt_ids) + len(r.trajectory) for r in rows)
    precision = torch.float64 if rows[0].advantages.dtype == torch.float64 else torch.float32
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    attention, mask = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    sampler, old, advantages, counts = (
        torch.zeros((len(rows), longest), dtype=precision) for _ in range(4)
    )
    for index, (trajectory, advantage) in enumerate(rows):
        begin = len(trajectory.prompt_ids)
        end = begin + len(trajectory)
        ids[index, :end] = torch.tensor((*trajectory.prompt_ids, *trajectory.response_ids))
        attention[index, :end] = 1
        if everything:
            mask[index, 1:end] = True
        else:
            mask[index, begin:end] = torch.tensor(trajectory.response_mask, dtype=torch.bool)
        sampler[index, begin:end] = torch.tensor(trajectory.sampler_logprobs)
        if trajectory.old_logprobs is not None:
            old[index, begin:end] = trajectory.old_logprobs
        advantages[index, begin:end] = advantage
        if weights is not None:
            counts[index, end - len(weights[index]) : end] = weights[index]
    tensors = (ids, attention, mask, sampler, old, advantages, counts)
    return Batch(
        *[tensor.to(device) for tensor in tensors],  # type: ignore[misc, arg-type]
        share=share,
        reference_logprobs=_reference(rows, old, device),
        packing=None if packing is None else packing.to(device),
    )


def _reference(rows: Sequence[Row], like: Tensor, device: torch.device | str) -> Tensor | None:
    """(B, T) log-probabilities of the reference, or None where a row has none."""
    found = torch.zeros_like(like)
    for index, (trajectory, _) in enumerate(rows):
        if trajectory.reference_logprobs is None:
            return None
        begin = len(trajectory.prompt_ids)
        found[index, begin : begin + len(trajectory)] = trajectory.reference_logprobs
    return found.to(device)


def microbatches(rows: Sequence[Row], tokens: int) -> Iterator[list[Row]]:
    """Rows, longest first, in groups of at most `tokens` padded tokens (one row at least)."""

    def length(row: Row) -> int:
        return len(row.trajectory.prompt_ids) + len(row.trajectory)

    group: list[Row] = []
    for row in sorted(rows, key=length, reverse=True):
        if group and length(group[0]) * (len(group) + 1) > tokens:
            yield group
            group = []
        group.append(row)
    if group:
        yield group
