"""Attention over rows laid out as a tree: every token looks at its path.

A row's own tokens stand side by side in the tree, and look at the row's whole path: queries of some
length, and keys that are longer, aligned at their ends. In 16 bits on an NVIDIA GPU one call of
FlashAttention takes all rows, by PyTorch's own variable-length attention; elsewhere each row is a
call of SDPA.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from inspect import signature
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

WIDEST = 192
"""Most numbers in a head whose gradient FlashAttention computes on every such GPU."""


class Bounds(NamedTuple):
    """Where rows begin and end, as FlashAttention reads it."""

    queries: Tensor
    """(rows + 1,) int32, of what rows add to the tree, one after the other."""
    keys: Tensor
    """(rows + 1,) int32, of their paths, one after the other."""
    most_queries: int
    most_keys: int


@dataclass(frozen=True, eq=False)
class Layout:
    """Who attends to whom in a tree of U tokens: see `learners.policy.batch`."""

    spans: tuple[tuple[int, int], ...]
    """Per row that adds tokens to the tree, in the order in which they stand there: how many it
    adds, and how long its path is, they included."""
    keys: Tensor
    """(sum of path lengths,) places of the tokens of every such path."""
    _masks: dict[tuple[torch.dtype, int], list[Tensor | None]] = field(default_factory=dict)
    _bounds: list[Bounds] = field(default_factory=list)

    def to(self, device: torch.device | str) -> Layout:
        """The same on a device."""
        return Layout(self.spans, self.keys.to(device))

    @property
    def shares(self) -> bool:
        """Whether any rows have tokens in common."""
        return any(own != length for own, length in self.spans)

    def masks(self, like: Tensor, groups: int) -> list[Tensor | None]:
        """Per row that adds tokens (groups x added, path) 0 where they look, else -inf; kept.

        None for a row that shares nothing: each token looks at those before it.
        """
        if (like.dtype, groups) not in self._masks:
            self._masks[like.dtype, groups] = [
                None
                if own == length
                else like.new_full((own, length), -torch.inf)
                .triu(length - own + 1)
                .repeat(groups, 1)
                for own, length in self.spans
            ]
        return self._masks[like.dtype, groups]

    def bounds(self) -> Bounds:
        """Of the rows, on the device of the keys; kept."""
        if not self._bounds:
            added, lengths = zip(*self.spans, strict=True)
            ends = (self._ends(added), self._ends(lengths))
            self._bounds.append(Bounds(*ends, max(added), max(lengths)))
        return self._bounds[0]

    def _ends(self, lengths: Sequence[int]) -> Tensor:
        ends = list(accumulate(lengths, initial=0))
        return torch.tensor(ends, dtype=torch.int32, device=self.keys.device)


def tree_attention(
    query: Tensor, key: Tensor, value: Tensor, tree: Layout, scaling: float | None
) -> Tensor:
    """Attention of every token of a tree to its path.

    Args:
        query: (H, U, D).
        key: (K, U, D).
        value: (K, U, D).
        tree: of the U tokens.
        scaling: of the products; None: 1 / sqrt(D).

    Returns:
        (H, U, D).
    """
    dtype = precision(query)
    attend = _all_rows if takes_flash(query, dtype) else _row_by_row
    return attend(query.to(dtype), key, value, tree, scaling)


def precision(query: Tensor) -> torch.dtype:
    """What attention is computed in.

    In autocast queries and keys come in float32, as rotary embeddings make them, and values do not.
    """
    kind = query.device.type
    rounds = torch.is_autocast_enabled(kind) and query.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if rounds else query.dtype


def takes_flash(query: Tensor, dtype: torch.dtype) -> bool:
    """Whether FlashAttention computes queries like these in `dtype`.

    It wants 16 bits, an NVIDIA GPU from Ampere on, heads of a size that it knows, and a PyTorch
    that has it; `torch.backends.cuda.enable_flash_sdp(False)` turns it off.
    """
    return (
        query.is_cuda
        and dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] <= WIDEST
        and query.shape[-1] % 8 == 0
        and torch.version.cuda is not None
        and torch.backends.cuda.flash_sdp_enabled()  # type: ignore[no-untyped-call]
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
        and _flash() is not None
    )


@cache
def _flash() -> Callable[..., Any] | None:
    """PyTorch's variable-length attention, if this one's takes what is needed of it."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = signature(varlen_attn).parameters
    enough = {"scale", "window_size", "enable_gqa"} <= known.keys()
    return varlen_attn if enough else None


def _of_paths(each: Tensor, tree: Layout, along: int, dtype: torch.dtype) -> Tensor:
    """Keys or values of all paths, one after the other.

    They are rounded when they are laid out, so that the gradients of shared keys, which come in
    float32, add up in it; values come rounded.
    """
    return (each.index_select(along, tree.keys) if tree.shares else each).to(dtype)


def _all_rows(
    query: Tensor, key: Tensor, value: Tensor, tree: Layout, scaling: float | None
) -> Tensor:
    """One call for all rows, in the queries' type."""
    flash = _flash()
    assert flash is not None  # see takes_flash
    found: Tensor = flash(
        query.transpose(0, 1).contiguous(),
        *(
            _of_paths(each.transpose(0, 1), tree, 0, query.dtype).contiguous()
            for each in (key, value)
        ),
        *tree.bounds(),
        scale=scaling,
        window_size=(-1, 0),  # causal, queries and keys aligned at their ends
        enable_gqa=True,
    )
    return found.transpose(0, 1)


def _row_by_row(
    query: Tensor, key: Tensor, value: Tensor, tree: Layout, scaling: float | None
) -> Tensor:
    """A call of SDPA a row, in the queries' type."""
    groups = query.shape[0] // key.shape[0]
    key, value = (_of_paths(each, tree, 1, query.dtype) for each in (key, value))
    found = []
    parts = zip(
        torch.split(query, [own for own, _ in tree.spans], 1),
        torch.split(key, [length for _, length in tree.spans], 1),
        torch.split(value, [length for _, length in tree.spans], 1),
        tree.masks(query, groups),
        strict=True,
    )
    for queries, keys, values, mask in parts:
        if mask is None:
            part = scaled_dot_product_attention(
                queries.reshape(-1, groups, *queries.shape[1:]),  # (K, H / K, own, D)
                keys[:, None].expand(-1, groups, -1, -1),
                values[:, None].expand(-1, groups, -1, -1),
                is_causal=True,
                scale=scaling,
            ).flatten(0, 1)
        else:  # the heads of a group stand beside each other on the query axis
            part = scaled_dot_product_attention(
                queries.reshape(1, len(keys), -1, queries.shape[2]),  # (1, K, H / K x own, D)
                keys[None],
                values[None],
                attn_mask=mask,
                scale=scaling,
            ).reshape(queries.shape)
        found.append(part)
    return torch.cat(found, 1)
