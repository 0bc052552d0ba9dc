"""Grouped-query attention without repeated keys: over padded rows, prefix trees and ragged batches.

Grouped-query models share one key head among several query heads. transformers' SDPA path copies
every key and value once per query head as soon as there is a mask, and sampling then spends its
time copying. Here the query heads of a group lie next to each other on the query axis instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.weak import WeakIdKeyDictionary

from learners.policy.activations import KVRecorder
from learners.policy.batch import Packing
from learners.policy.tree_attention import TreeLayout, attention_dtype, tree_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel


NAME = "grouped_sdpa"
"""The value of transformers' `attn_implementation`."""


FULL, SLIDING = "full_attention", "sliding_attention"
"""Kinds of layers, by transformers' names."""


@dataclass(frozen=True, eq=False)
class Rectangle:
    """J consecutive rows of a ragged batch, of similar length, padded to a rectangle of (J, Q)."""

    rows: slice
    """The rows' slots in the KV cache."""
    indices: Tensor
    """(J, Q) index of each token in the batch; any valid index on padding."""
    mask: Tensor
    """(J, 1, Q, T) to add: 0 on attended positions, -inf elsewhere."""
    filled: Tensor
    """(J, Q) True on tokens, False on padding."""


@dataclass(frozen=True, eq=False)
class RaggedLayout:
    """Rows of a sampling pass, concatenated without padding into one row of U tokens.

    Queries are (1, H, U, D) then, but keys and values are (slots, K, span, D), a slot per row.
    """

    decodes: int
    """The number of rows that read one token each; they come first."""
    decode_mask: Tensor
    """(decodes, 1, 1, T) to add: 0 on attended positions, -inf elsewhere."""
    prefills: tuple[Rectangle, ...]
    """All other rows, in order."""


def register() -> str:
    """Register the attention with transformers and return its name."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def supports_trees(model: PreTrainedModel) -> bool:
    """True if a model uses `grouped_attention`, and every layer attends to all earlier tokens."""
    ours = getattr(model.config, "_attn_implementation", "") == NAME
    return ours and attention_windows(model) == {FULL: None}


def attention_windows(model: PreTrainedModel) -> dict[str, int | None]:
    """Width of each kind of layer's attention window, in positions, the token itself included.

    None: no limit. 0: a kind that is neither full nor sliding attention.
    """
    config = model.config
    width: int | None = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [FULL if width is None else SLIDING])
    if getattr(config, "attention_chunk_size", None):
        kinds.add("chunked_attention")
    return {kind: {FULL: None, SLIDING: width}.get(kind, 0) for kind in kinds}


def forward_tree(
    model: PreTrainedModel, packing: Packing, recorder: KVRecorder | None = None
) -> Tensor:
    """Read the tokens of a tree in one pass, each after its own path.

    Args:
        model: one that `supports_trees`.
        packing: U tokens, on the model's device.
        recorder: takes the keys and values of every layer.

    Returns:
        (U, D) last hidden states.
    """
    hidden: Tensor = model.base_model(
        input_ids=packing.token_ids[None],
        position_ids=packing.positions[None],
        attention_mask=unused_mask(packing.positions),
        past_key_values=recorder,
        use_cache=recorder is not None,
        tree=packing.layout,
    ).last_hidden_state
    return hidden[0]


def unused_mask(positions: Tensor) -> Tensor:
    """A mask of size zero, for a pass whose attention ignores masks.

    Given no mask at all, transformers would build a causal one over all tokens of the pass.
    """
    return positions.new_zeros((1, 1, 1, 0))


def grouped_attention(
    module: Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    tree: TreeLayout | None = None,
    ragged: RaggedLayout | None = None,
    **options: object,
) -> tuple[Tensor, None]:
    """Softmax attention of H query heads over K key heads, H a multiple of K.

    Args:
        module: the attention layer, for what transformers does without a mask.
        query: (B, H, Q, D).
        key: (B, K, T, D).
        value: (B, K, T, D).
        attention_mask: (B, 1, Q, T), True (or 0, not -inf) where attended; None: causal over all
            of `key`.
        scaling: factor of the scores; None: 1 / sqrt(D).
        dropout: probability of dropping a position.
        tree: layout of the only row as a prefix tree; the mask is ignored then.
        ragged: layout of the only row as a ragged batch; the mask is ignored then.
        options: passed on to transformers if there is no mask.

    Returns:
        (B, Q, H, D), and None in place of the attention weights that transformers expects.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if tree is not None:
        output = tree_attention(query[0], key[0], value[0], tree, scaling)
        return output.transpose(0, 1)[None].contiguous(), None
    if ragged is not None:
        return ragged_attention(query[0].transpose(0, 1), key, value, ragged, scaling)[None], None
    if attention_mask is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, None, dropout=dropout, scaling=scaling, **options
        )
        return plain
    groups = query.shape[1] // key.shape[1]
    mask = _widen_mask(attention_mask, groups, attention_dtype(query))
    output = _attend(query, key, value, mask, scaling, dropout)
    return output.transpose(1, 2).contiguous(), None


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float | None,
    dropout: float = 0.0,
) -> Tensor:
    """(B, H, Q, D) of a mask from `_widen_mask`; a group's heads share the query axis."""
    batch, heads, length, _ = query.shape
    groups = heads // key.shape[1]
    output = scaled_dot_product_attention(
        query.reshape(batch, heads // groups, groups * length, -1),
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        scale=scaling,
    )
    return output.reshape(batch, heads, length, -1)


_WIDENED: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""Widened copies of masks, as long as the masks exist: all layers of a pass get the same one."""


def _widen_mask(mask: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """(B, 1, groups x Q, T) to add, in the dtype attention is computed in; cached."""
    # SDPA saves its mask for the gradient. Without the cache every layer would save a copy.
    copies: dict[tuple[int, torch.dtype], Tensor] = _WIDENED.setdefault(mask, {})  # type: ignore[no-untyped-call]
    if (groups, dtype) not in copies:
        added = mask
        if mask.dtype == torch.bool:
            added = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)
        copies[groups, dtype] = added.to(dtype).repeat(1, 1, groups, 1)
    return copies[groups, dtype]


def ragged_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: RaggedLayout, scaling: float | None
) -> Tensor:
    """Attention of every row of a ragged batch to its own slot of the KV cache.

    Args:
        query: (U, H, D).
        key: (slots, K, span, D).
        value: (slots, K, span, D).
        layout: of the U tokens.
        scaling: factor of the scores; None: 1 / sqrt(D).

    Returns:
        (U, H, D).
    """
    outputs = []
    groups = query.shape[1] // key.shape[1]
    if layout.decodes:
        mask = layout.decode_mask
        slots = (slice(0, layout.decodes), slice(None), slice(0, mask.shape[-1]))
        queries = query[: layout.decodes, :, None]  # (decodes, H, 1, D)
        mask = mask.expand(-1, -1, groups, -1)
        outputs.append(_attend(queries, key[slots], value[slots], mask, scaling)[:, :, 0])
    for part in layout.prefills:
        slots = (part.rows, slice(None), slice(0, part.mask.shape[-1]))
        queries = query[part.indices].transpose(1, 2)  # (J, H, Q, D)
        mask = _widen_mask(part.mask, groups, attention_dtype(query))
        padded = _attend(queries, key[slots], value[slots], mask, scaling)
        outputs.append(padded.transpose(1, 2)[part.filled])
    return torch.cat(outputs)
