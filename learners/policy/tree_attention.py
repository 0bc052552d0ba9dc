"""Attention over rows laid out as a prefix tree: every token attends to its path from the root.

The tokens that a row adds to the tree are contiguous and attend to the row's whole path: queries
and longer keys, aligned at their ends. In 16 bits on an NVIDIA GPU one call of FlashAttention, by
PyTorch's variable-length attention, computes all rows; elsewhere each row is a call of SDPA.
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

MAX_HEAD_SIZE = 192
"""The largest head size for which FlashAttention computes gradients on every such GPU."""


class Bounds(NamedTuple):
    """Offsets of rows, in the form that FlashAttention takes."""

    queries: Tensor
    """(rows + 1,) int32 offsets of the tokens that each row adds to the tree."""
    keys: Tensor
    """(rows + 1,) int32 offsets of the concatenated paths."""
    max_queries: int
    max_keys: int


@dataclass(frozen=True, eq=False)
class TreeLayout:
    """Which tokens attend to which in a tree of U tokens: see `learners.policy.batch`."""

    spans: tuple[tuple[int, int], ...]
    """For each row that adds tokens to the tree, in tree order: how many tokens it adds, and the
    length of its path, these tokens included."""
    keys: Tensor
    """(sum of path lengths,) tree indices of the tokens of all these paths, concatenated."""
    _masks: dict[tuple[torch.dtype, int], list[Tensor | None]] = field(default_factory=dict)
    _bounds: list[Bounds] = field(default_factory=list)

    def to(self, device: torch.device | str) -> TreeLayout:
        """Copy to a device."""
        return TreeLayout(self.spans, self.keys.to(device))

    @property
    def shares(self) -> bool:
        """True if any rows have tokens in common."""
        return any(added != length for added, length in self.spans)

    def masks(self, like: Tensor, groups: int) -> list[Tensor | None]:
        """For each row that adds tokens, its (groups x added, path) mask to add; cached.

        None for a row that shares nothing: plain causal attention needs no mask.
        """
        if (like.dtype, groups) not in self._masks:
            self._masks[like.dtype, groups] = [
                None
                if added == length
                else like.new_full((added, length), -torch.inf)
                .triu(length - added + 1)
                .repeat(groups, 1)
                for added, length in self.spans
            ]
        return self._masks[like.dtype, groups]

    def bounds(self) -> Bounds:
        """Bounds of the rows, on the device of the keys; cached."""
        if not self._bounds:
            added, lengths = zip(*self.spans, strict=True)
            ends = (self._ends(added), self._ends(lengths))
            self._bounds.append(Bounds(*ends, max(added), max(lengths)))
        return self._bounds[0]

    def _ends(self, lengths: Sequence[int]) -> Tensor:
        ends = list(accumulate(lengths, initial=0))
        return torch.tensor(ends, dtype=torch.int32, device=self.keys.device)


def tree_attention(
    query: Tensor, key: Tensor, value: Tensor, tree: TreeLayout, scaling: float | None
) -> Tensor:
    """Attention of every token of a tree to its path.

    Args:
        query: (H, U, D).
        key: (K, U, D).
        value: (K, U, D).
        tree: layout of the U tokens.
        scaling: factor of the scores; None: 1 / sqrt(D).

    Returns:
        (H, U, D).
    """
    dtype = attention_dtype(query)
    attend = _attend_all_rows if supports_flash(query, dtype) else _attend_row_by_row
    return attend(query.to(dtype), key, value, tree, scaling)


def attention_dtype(query: Tensor) -> torch.dtype:
    """Return the dtype that attention is computed in: autocast's, or else the queries'.

    Under autocast, rotary embeddings make queries and keys float32, while values have 16 bits.
    """
    kind = query.device.type
    autocast = torch.is_autocast_enabled(kind) and query.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if autocast else query.dtype


def supports_flash(query: Tensor, dtype: torch.dtype) -> bool:
    """True if FlashAttention can compute queries like these in `dtype`.

    It needs 16 bits, an NVIDIA GPU from Ampere on, a supported head size, and a PyTorch that has
    it; `torch.backends.cuda.enable_flash_sdp(False)` turns it off.
    """
    return (
        query.is_cuda
        and dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] <= MAX_HEAD_SIZE
        and query.shape[-1] % 8 == 0
        and torch.version.cuda is not None
        and torch.backends.cuda.flash_sdp_enabled()  # type: ignore[no-untyped-call]
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
        and _flash() is not None
    )


@cache
def _flash() -> Callable[..., Any] | None:
    """Return PyTorch's variable-length attention, or None if it lacks an option used here."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    options = signature(varlen_attn).parameters.keys()
    return varlen_attn if {"scale", "window_size", "enable_gqa"} <= options else None


def _gather_paths(each: Tensor, tree: TreeLayout, dim: int, dtype: torch.dtype) -> Tensor:
    """Concatenate the keys or values of all paths."""
    # Rounded after the gather, not before: the gradients of shared float32 keys then add up in
    # float32. Not by plain indexing: its gradient adds up in an order that threads decide.
    return (each.index_select(dim, tree.keys) if tree.shares else each).to(dtype)


def _attend_all_rows(
    query: Tensor, key: Tensor, value: Tensor, tree: TreeLayout, scaling: float | None
) -> Tensor:
    """Attend with one call for all rows, in the queries' dtype."""
    flash = _flash()
    assert flash is not None  # see supports_flash
    output: Tensor = flash(
        query.transpose(0, 1).contiguous(),
        *(
            _gather_paths(each.transpose(0, 1), tree, 0, query.dtype).contiguous()
            for each in (key, value)
        ),
        *tree.bounds(),
        scale=scaling,
        window_size=(-1, 0),  # causal, queries and keys aligned at their ends
        enable_gqa=True,
    )
    return output.transpose(0, 1)


def _attend_row_by_row(
    query: Tensor, key: Tensor, value: Tensor, tree: TreeLayout, scaling: float | None
) -> Tensor:
    """Attend with a call of SDPA for each row, in the queries' dtype."""
    groups = query.shape[0] // key.shape[0]
    key, value = (_gather_paths(each, tree, 1, query.dtype) for each in (key, value))
    outputs = []
    rows = zip(
        torch.split(query, [added for added, _ in tree.spans], 1),
        torch.split(key, [length for _, length in tree.spans], 1),
        torch.split(value, [length for _, length in tree.spans], 1),
        tree.masks(query, groups),
        strict=True,
    )
    for queries, keys, values, mask in rows:
        if mask is None:
            output = scaled_dot_product_attention(
                queries.reshape(-1, groups, *queries.shape[1:]),  # (K, H / K, added, D)
                keys[:, None].expand(-1, groups, -1, -1),
                values[:, None].expand(-1, groups, -1, -1),
                is_causal=True,
                scale=scaling,
            ).flatten(0, 1)
        else:  # the heads of a group lie next to each other on the query axis
            output = scaled_dot_product_attention(
                queries.reshape(1, len(keys), -1, queries.shape[2]),  # (1, K, H / K x added, D)
                keys[None],
                values[None],
                attn_mask=mask,
                scale=scaling,
            ).reshape(queries.shape)
        outputs.append(output)
    return torch.cat(outputs, 1)
