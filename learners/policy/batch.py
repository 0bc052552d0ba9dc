"""Micro-batches: rows as padded (B, T) tensors, or as prefix trees if that costs less.

Prompts are included: entry [i, t] of every tensor is about token t of row i.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from learners.policy.tree_attention import TreeLayout
from learners.tree import Row, Trajectory


@dataclass(frozen=True)
class Batch:
    """Rows of a micro-batch, padded on the right."""

    token_ids: Tensor
    attention_mask: Tensor
    """1 on prompt and response, 0 on padding."""
    response_mask: Tensor
    """True on tokens whose log-probabilities are computed: those that the policy sampled."""
    sampler_logprobs: Tensor
    """Nats, as reported by the sampler."""
    old_logprobs: Tensor
    """Nats, by the policy's own pass before the step's first update: the ratio's denominator."""
    advantages: Tensor
    weights: Tensor
    """Weight of each token's loss in the sum over the whole mini-batch."""
    share: float
    """Number of rows over that of the mini-batch."""
    reference_logprobs: Tensor | None = None
    """Nats, by the frozen reference policy; None without a KL penalty."""
    packing: Packing | None = None
    """The rows as a prefix tree, if the model reads them as one."""


def collate(
    rows: Sequence[Row],
    device: torch.device | str = "cpu",
    *,
    weights: Sequence[Tensor] | None = None,
    share: float = 1.0,
    everything: bool = False,
    packing: Packing | None = None,
) -> Batch:
    """Collate rows into one batch, padded to the longest.

    Args:
        rows: B rows, at least one.
        device: of the batch.
        weights: for each row, over the response (T,), or over prompt and response; None: zero.
        share: see Batch.
        everything: compute log-probabilities of prompt and observations too (all tokens but the
            first), to train new weights on whole texts.
        packing: the same rows in the same order.
    """
    longest = max(len(r.trajectory.prompt_ids) + len(r.trajectory) for r in rows)
    # As precise as the advantages, but float32 at least.
    precision = torch.float64 if rows[0].advantages.dtype == torch.float64 else torch.float32
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    attention, mask = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    sampler, old, advantages, token_weights = (
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
        if weights is not None:  # aligned at the end, whether or not they cover the prompt
            token_weights[index, end - len(weights[index]) : end] = weights[index]
    tensors = (ids, attention, mask, sampler, old, advantages, token_weights)
    return Batch(
        *[tensor.to(device) for tensor in tensors],  # type: ignore[misc, arg-type]
        share=share,
        reference_logprobs=_collate_reference_logprobs(rows, old, device),
        packing=None if packing is None else packing.to(device),
    )


def _collate_reference_logprobs(
    rows: Sequence[Row], like: Tensor, device: torch.device | str
) -> Tensor | None:
    """(B, T) log-probabilities of the reference, or None if a row has none."""
    logprobs = torch.zeros_like(like)
    for index, (trajectory, _) in enumerate(rows):
        if trajectory.reference_logprobs is None:
            return None
        begin = len(trajectory.prompt_ids)
        logprobs[index, begin : begin + len(trajectory)] = trajectory.reference_logprobs
    return logprobs.to(device)


Packs = Literal["auto", "always", "never"]
"""When to lay rows out as trees; auto: if that costs less than padding."""


ROW_COST = 8
"""Cost of a row's own attention call, in tokens, for a tiny model."""


TOKEN_COST = 1.2
"""Cost of a token in a tree relative to one in padded rows, whose attention is a single call: from
1.02 (tiny, float32) to 1.37 (SmolLM2, bfloat16), measured by `tests.perf.update` with nothing
shared."""


@dataclass(frozen=True)
class Packing:
    """B rows of up to T tokens laid out as a prefix tree of U tokens."""

    token_ids: Tensor
    """(U,)"""
    positions: Tensor
    """(U,) number of tokens before each one on its path."""
    previous: Tensor
    """(U,) tree index of the token before each one on its path; its own for a first token."""
    indices: Tensor
    """(B, T) tree index of each row's tokens; 0 on padding."""
    layout: TreeLayout

    def to(self, device: torch.device | str) -> Packing:
        """Copy to a device."""
        return Packing(
            self.token_ids.to(device),
            self.positions.to(device),
            self.previous.to(device),
            self.indices.to(device),
            self.layout.to(device),
        )


class Part(NamedTuple):
    """Rows of one forward and backward pass."""

    rows: list[Row]
    packing: Packing | None
    """None: the rows are padded to the longest."""


class Work(NamedTuple):
    """The passes over some rows, and what they compute."""

    parts: list[Part]
    row_tokens: int
    """Tokens of all rows, prompts included, neither shared nor padded."""
    computed_tokens: int
    """Tokens that the passes compute, padding included."""
    trees: bool
    """True if the rows are laid out as trees."""


def lay_out(rows: Sequence[Row], tokens: int, packs: Packs) -> Work:
    """Split rows into passes, as trees or padded.

    Args:
        rows: of a mini-batch, in any order.
        tokens: maximum number of computed tokens in a pass; a single row may exceed it.
        packs: see Packs.
    """
    lengths = [_length(row) for row in rows]
    padded = list(split_padded(rows, tokens))
    cost = sum(len(group) * max(map(_length, group)) for group in padded)
    if packs != "never" and rows:
        groups = list(_split_trees(rows, tokens))
        computed = sum(group.tokens for group in groups)
        if packs == "always" or TOKEN_COST * computed + ROW_COST * len(rows) < cost:
            trees = [Part(group.rows, pack_rows(group.rows)) for group in groups]
            return Work(trees, sum(lengths), computed, trees=True)
    return Work([Part(group, None) for group in padded], sum(lengths), cost, trees=False)


def _length(row: Row) -> int:
    return len(row.trajectory.prompt_ids) + len(row.trajectory)


def split_padded(rows: Sequence[Row], tokens: int) -> Iterator[list[Row]]:
    """Yield rows, longest first, in groups of at most `tokens` padded tokens (or a single row)."""
    group: list[Row] = []
    for row in sorted(rows, key=_length, reverse=True):
        if group and _length(group[0]) * (len(group) + 1) > tokens:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


class _Group(NamedTuple):
    """Rows of one tree."""

    rows: list[Row]
    tokens: int
    """Tokens of the tree."""


def _split_trees(rows: Sequence[Row], tokens: int) -> Iterator[_Group]:
    """Yield rows in groups whose trees have at most `tokens` tokens (or a single row)."""
    group: list[Row] = []
    last: tuple[int, ...] = ()
    size = 0
    # In sorted order a row shares its longest prefix with a neighbour.
    pairs = sorted(((token_ids(row.trajectory), row) for row in rows), key=lambda pair: pair[0])
    for ids, row in pairs:
        added = len(ids) - common_prefix_length(last, ids)
        if group and size + added > tokens:
            yield _Group(group, size)
            group, size, added = [], 0, len(ids)
        group.append(row)
        last, size = ids, size + added
    if group:
        yield _Group(group, size)


def token_ids(trajectory: Trajectory) -> tuple[int, ...]:
    """Return the token ids of prompt and response."""
    return (*trajectory.prompt_ids, *trajectory.response_ids)


def pack_rows(rows: Sequence[Row]) -> Packing:
    """Lay rows out as a prefix tree."""
    return pack_tree([token_ids(row.trajectory) for row in rows])


def pack_tree(rows: Sequence[tuple[int, ...]]) -> Packing:
    """Lay sequences of token ids out as a prefix tree.

    Args:
        rows: B sequences, none empty, in any order; they may be equal or share prefixes.
    """
    ids, positions, previous, keys = [], [], [], []
    spans: list[tuple[int, int]] = []
    paths: dict[int, Tensor] = {}
    last: tuple[int, ...] = ()
    path = torch.empty(0, dtype=torch.long)
    size = 0
    for index in sorted(range(len(rows)), key=lambda index: rows[index]):
        row = rows[index]
        shared = common_prefix_length(last, row)
        added = torch.arange(size, size + len(row) - shared)
        last, path = row, torch.cat([path[:shared], added])
        paths[index] = path
        if not len(added):
            continue
        ids.append(torch.tensor(row[shared:]))
        positions.append(torch.arange(shared, len(row)))
        previous.append(path[(positions[-1] - 1).clamp_min(0)])
        spans.append((len(added), len(row)))
        keys.append(path)
        size += len(added)
    return Packing(
        torch.cat(ids),
        torch.cat(positions),
        torch.cat(previous),
        pad_sequence([paths[index] for index in range(len(rows))], batch_first=True),
        TreeLayout(tuple(spans), torch.cat(keys)),
    )


def common_prefix_length(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Count the leading tokens that two sequences share."""
    # Bisection: comparing slices is much faster than comparing tokens in a loop.
    shared, limit = 0, min(len(one), len(other))
    while shared < limit:
        middle = (shared + limit + 1) // 2
        if one[shared:middle] == other[shared:middle]:
            shared = middle
        else:
            limit = middle - 1
    return shared
