"""Attention over grouped keys that never repeats them.

Grouped-query models share one key head among several query heads. transformers' SDPA path copies
every key and value once per query head as soon as there is a mask; sampling then spends its time
copying. Here the query heads of a group stand beside each other on the query axis instead.
"""

from torch import Tensor
from torch.nn import Module
from torch.nn.functional import scaled_dot_product_attention

NAME = "grouped_sdpa"
"""What `attn_implementation` is given."""


def register() -> str:
    """Make the attention known to transformers; returns its name."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def grouped_attention(
    module: Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: object,
) -> tuple[Tensor, None]:
    """Softmax attention of H query heads over K key heads, H a multiple of K.

    Args:
        module: the attention layer, for what transformers does without a mask.
        query: (B, H, Q, D).
        key: (B, K, T, D).
        value: (B, K, T, D).
        attention_mask: (B, 1, Q, T), True where attended; None: causal over all of `key`.
        scaling: of the products; None: 1 / sqrt(D).
        dropout: probability of leaving a position out.
        options: passed on where there is no mask.

    Returns:
        (B, Q, H, D), and None where transformers expects weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if attention_mask is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, None, dropout=dropout, scaling=scaling, **options
        )
        return plain
    batch, heads, length, width = query.shape
    groups = heads // key.shape[1]
    stacked = query.reshape(batch, key.shape[1], groups * length, width)
    found = scaled_dot_product_attention(
        stacked,
        key,
        value,
        attn_mask=attention_mask.repeat(1, 1, groups, 1),
        dropout_p=dropout,
        scale=scaling,
    )
    return found.reshape(batch, heads, length, width).transpose(1, 2).contiguous(), None
