"""Rows laid in a rectangle: (B, T), prompt included; entry [i, t] speaks of token t of row i."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from learners.policy.tree_attention import Layout
from learners.tree import Row, Trajectory


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
    packing: Packing | None = None
    """The rows as a tree, where the model reads them so."""


def pack(
    rows: Sequence[Row],
    device: torch.device | str = "cpu",
    *,
    weights: Sequence[Tensor] | None = None,
    share: float = 1.0,
    everything: bool = False,
    packing: Packing | None = None,
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
            mask[index, begin:end] = trajectory.tensors.mask
        sampler[index, begin:end] = trajectory.tensors.sampler_logprobs
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


Packs = Literal["auto", "always", "never"]
"""Whether rows are laid out as trees; auto: where that is less work."""


ROW_COST = 8
"""Tokens whose computation takes as long as a row's own call of the attention, in a tiny model."""


TOKEN_COST = 1.2
"""What a token of a tree takes over one of padded rows, whose attention is a single call: from 1.02
(tiny, float32) to 1.37 (SmolLM2, bfloat16), by `tests.perf.update` where nothing is shared."""


@dataclass(frozen=True)
class Packing:
    """B rows of up to T tokens laid out as a tree of U tokens."""

    token_ids: Tensor
    """(U,)"""
    positions: Tensor
    """(U,) how many tokens come before it on its path."""
    previous: Tensor
    """(U,) place of the token before it on its path; a first token's is its own."""
    places: Tensor
    """(B, T) where the tokens of each row are in the tree; 0 on padding."""
    layout: Layout

    def to(self, device: torch.device | str) -> Packing:
        """The same on a device."""
        return Packing(
            self.token_ids.to(device),
            self.positions.to(device),
            self.previous.to(device),
            self.places.to(device),
            self.layout.to(device),
        )


class Part(NamedTuple):
    """Rows of one forward and backward pass."""

    rows: list[Row]
    packing: Packing | None
    """None: they are padded to the longest."""


class Work(NamedTuple):
    """How the rows of a pass were laid out."""

    parts: list[Part]
    row_tokens: int
    """Of the rows, prompts included, neither shared nor padded."""
    computed_tokens: int
    """That the passes read, padding included."""
    trees: bool


def laid_out(rows: Sequence[Row], tokens: int, packs: Packs) -> Work:
    """Rows in parts of at most so many computed tokens (one row at least).

    Args:
        rows: of a mini-batch, in any order.
        tokens: most of a part: those of its tree, or of its padded rows.
        packs: see Packs.
    """
    lengths = [_length(row) for row in rows]
    padded = list(microbatches(rows, tokens))
    cost = sum(len(group) * max(map(_length, group)) for group in padded)
    if packs != "never" and rows:
        groups = list(_tree_groups(rows, tokens))
        computed = sum(group.tokens for group in groups)
        if packs == "always" or TOKEN_COST * computed + ROW_COST * len(rows) < cost:
            trees = [Part(group.rows, packing_of(group.rows)) for group in groups]
            return Work(trees, sum(lengths), computed, trees=True)
    return Work([Part(group, None) for group in padded], sum(lengths), cost, trees=False)


def _length(row: Row) -> int:
    return len(row.trajectory.prompt_ids) + len(row.trajectory)


class _Group(NamedTuple):
    """Rows of one tree."""

    rows: list[Row]
    tokens: int
    """Of the tree."""


def _tree_groups(rows: Sequence[Row], tokens: int) -> Iterator[_Group]:
    """Rows that share the most side by side; a token that rows of a group share counts once."""
    group: list[Row] = []
    last: tuple[int, ...] = ()
    size = 0
    of = sorted(((token_ids(row.trajectory), row) for row in rows), key=lambda pair: pair[0])
    for ids, row in of:
        pairs = zip(last, ids, strict=False)
        own = len(ids) - sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if group and size + own > tokens:
            yield _Group(group, size)
            group, size, own = [], 0, len(ids)
        group.append(row)
        last, size = ids, size + own
    if group:
        yield _Group(group, size)


def token_ids(trajectory: Trajectory) -> tuple[int, ...]:
    """Prompt and response."""
    return (*trajectory.prompt_ids, *trajectory.response_ids)


def packing_of(rows: Sequence[Row]) -> Packing:
    """Lay rows out as a tree."""
    return packed([token_ids(row.trajectory) for row in rows])


def packed(rows: Sequence[tuple[int, ...]]) -> Packing:
    """Lay rows of token ids out as a tree.

    Args:
        rows: B of them, none empty, in any order; they may be equal, or begin alike.
    """
    ids, positions, previous, keys = [], [], [], []
    spans: list[tuple[int, int]] = []
    paths: dict[int, Tensor] = {}
    last = path = torch.empty(0, dtype=torch.long)
    size = 0
    for index in sorted(range(len(rows)), key=lambda index: rows[index]):
        row = torch.tensor(rows[index])
        shared = _shared(last, row)
        places = torch.arange(size, size + len(row) - shared)
        last, path = row, torch.cat([path[:shared], places])
        paths[index] = path
        if not len(places):
            continue
        ids.append(row[shared:])
        positions.append(torch.arange(shared, len(row)))
        previous.append(path[(positions[-1] - 1).clamp_min(0)])
        spans.append((len(places), len(row)))
        keys.append(path)
        size += len(places)
    return Packing(
        torch.cat(ids),
        torch.cat(positions),
        torch.cat(previous),
        pad_sequence([paths[index] for index in range(len(rows))], batch_first=True),
        Layout(tuple(spans), torch.cat(keys)),
    )


def _shared(one: Tensor, other: Tensor) -> int:
    """Leading tokens that two rows share."""
    length = min(len(one), len(other))
    differs = (one[:length] != other[:length]).nonzero()
    return int(differs[0, 0]) if len(differs) else length
