"""Rows as a tree of tokens: what rows share is read once, forward and backward, without padding.

Rows are sorted, so that each shares the most with the one before it; a row adds to the tree only
what it does not share. Its own tokens stand side by side there and attend to the row's whole path.
Rows that share nothing are a forest of single paths: packing without padding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from learners.batch import microbatches
from learners.tree import Row, Trajectory
from learners.tree_attention import Layout

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

    def to(self, device: torch.device | str) -> "Packing":
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
