"""The attention that models are given: over grouped keys that are never repeated.

Grouped-query models share one key head among several query heads. transformers' SDPA path copies
every key and value once per query head as soon as there is a mask; sampling then spends its time
copying. Here the query heads of a group stand beside each other on the query axis instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.weak import WeakIdKeyDictionary

from learners.policy.activations import Recorder
from learners.policy.batch import Packing
from learners.policy.tree_attention import Layout, precision, tree_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel


NAME = "grouped_sdpa"
"""What `attn_implementation` is given."""


FULL, SLIDING = "full_attention", "sliding_attention"
"""Kinds of layers, by transformers' names."""


@dataclass(frozen=True, eq=False)
class Rectangle:
    """Rows of a sampling pass that stand one after the other and read about equally many tokens."""

    rows: slice
    """Which: J of them."""
    places: Tensor
    """(J, Q) of their tokens; any place where a row has fewer than Q."""
    mask: Tensor
    """(J, 1, Q, T) 0 where they look and -inf elsewhere."""
    filled: Tensor
    """(J, Q) False where a row has fewer."""


@dataclass(frozen=True, eq=False)
class Step:
    """Rows of a sampling pass whose tokens stand side by side, in one row of U tokens.

    Keys and values are (lines, K, span, D) then, a line per row.
    """

    single: int
    """Rows that read one token each: the first ones."""
    single_mask: Tensor
    """(single, 1, 1, T) 0 where they look and -inf elsewhere."""
    others: tuple[Rectangle, ...]
    """All other rows, in their order."""


def register() -> str:
    """Make the attention known to transformers; returns its name."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def takes_trees(model: PreTrainedModel) -> bool:
    """Whether a model's layers attend by `grouped_attention`, each to all that comes before."""
    named = getattr(model.config, "_attn_implementation", "") == NAME
    return named and windows(model) == {FULL: None}


def windows(model: PreTrainedModel) -> dict[str, int | None]:
    """How far back each kind of layer looks, in positions and itself included; None: to the first.

    The kind of a layer that is neither full nor sliding attention is there with 0.
    """
    config = model.config
    width: int | None = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [FULL if width is None else SLIDING])
    if getattr(config, "attention_chunk_size", None):
        kinds.add("chunked_attention")
    return {kind: {FULL: None, SLIDING: width}.get(kind, 0) for kind in kinds}


def forward_tree(
    model: PreTrainedModel, packing: Packing, recorder: Recorder | None = None
) -> Tensor:
    """Read the tokens of a tree in one pass, each after its own path.

    Args:
        model: one that `takes_trees`.
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
    tree: Layout | None = None,
    step: Step | None = None,
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
        scaling: of the products; None: 1 / sqrt(D).
        dropout: probability of leaving a position out.
        tree: of the tokens of the only row; then the mask is not looked at.
        step: the same of a sampling pass.
        options: passed on where there is no mask.

    Returns:
        (B, Q, H, D), and None where transformers expects weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if tree is not None:
        found = tree_attention(query[0], key[0], value[0], tree, scaling)
        return found.transpose(0, 1)[None].contiguous(), None
    if step is not None:
        return step_attention(query[0].transpose(0, 1), key, value, step, scaling)[None], None
    if attention_mask is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, None, dropout=dropout, scaling=scaling, **options
        )
        return plain
    groups = query.shape[1] // key.shape[1]
    wide = _wide(attention_mask, groups, precision(query))
    found = _grouped(query, key, value, wide, scaling, dropout)
    return found.transpose(1, 2).contiguous(), None


def _grouped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float | None,
    dropout: float = 0.0,
) -> Tensor:
    """(B, H, Q, D); heads of a group stand beside each other on the query axis, as in the mask."""
    batch, heads, length, _ = query.shape
    groups = heads // key.shape[1]
    found = scaled_dot_product_attention(
        query.reshape(batch, heads // groups, groups * length, -1),
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        scale=scaling,
    )
    return found.reshape(batch, heads, length, -1)


_WIDE: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""What masks became, as long as they are there: all layers of a pass are given the same one."""


def _wide(mask: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """(B, 1, groups x Q, T) to add, in the type attention is computed in.

    SDPA keeps its mask for the gradient: made anew, every layer would keep one.
    """
    known: dict[tuple[int, torch.dtype], Tensor] = _WIDE.setdefault(mask, {})  # type: ignore[no-untyped-call]
    if (groups, dtype) not in known:
        added = mask
        if mask.dtype == torch.bool:
            added = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)
        known[groups, dtype] = added.to(dtype).repeat(1, 1, groups, 1)
    return known[groups, dtype]


def step_attention(
    query: Tensor, key: Tensor, value: Tensor, step: Step, scaling: float | None
) -> Tensor:
    """Attention of every row of a sampling pass to its own line.

    Args:
        query: (U, H, D).
        key: (lines, K, span, D).
        value: (lines, K, span, D).
        step: of the U tokens.
        scaling: of the products; None: 1 / sqrt(D).

    Returns:
        (U, H, D).
    """
    found = []
    groups = query.shape[1] // key.shape[1]
    if step.single:
        mask = step.single_mask
        own = (slice(0, step.single), slice(None), slice(0, mask.shape[-1]))
        single = query[: step.single, :, None]  # (rows, H, 1, D)
        seen = mask.expand(-1, -1, groups, -1)
        found.append(_grouped(single, key[own], value[own], seen, scaling)[:, :, 0])
    for part in step.others:
        own = (part.rows, slice(None), slice(0, part.mask.shape[-1]))
        several = query[part.places].transpose(1, 2)  # (J, H, Q, D)
        seen = _wide(part.mask, groups, precision(query))
        said = _grouped(several, key[own], value[own], seen, scaling)
        found.append(said.transpose(1, 2)[part.filled])
    return torch.cat(found)
