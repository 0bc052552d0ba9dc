"""Attention over grouped keys equals transformers' own, forward and backward."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from learners.policy.attention import register


def _model(attention: str, key_heads: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=key_heads,
        intermediate_size=64,
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config).double().eval()


@pytest.mark.parametrize("key_heads", [1, 2, 3, 6])
@pytest.mark.parametrize("padded", [False, True])
def test_equals_the_attention_that_repeats_its_keys(key_heads: int, padded: bool) -> None:
    ids = torch.randint(0, 50, (3, 11), generator=torch.Generator().manual_seed(1))
    seen = torch.ones_like(ids)
    if padded:
        seen[1, 7:] = 0
    found = []
    for attention in ("sdpa", register()):
        model = _model(attention, key_heads)
        logits = model(input_ids=ids, attention_mask=seen).logits[seen.bool()]
        logits.square().sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        found.append((logits.detach(), gradient))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-12)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-9, atol=1e-12)


def test_one_token_after_many() -> None:
    """The shape of a decoding step: one query, and keys of which some are masked."""
    from learners.policy.attention import grouped_attention

    draw = torch.Generator().manual_seed(2)
    query = torch.randn(2, 6, 1, 8, generator=draw, dtype=torch.float64)
    key, value = torch.randn(2, 2, 2, 9, 8, generator=draw, dtype=torch.float64)
    seen = torch.arange(9) < torch.tensor([[9], [4]])
    found, _ = grouped_attention(torch.nn.Module(), query, key, value, seen[:, None, None])
    for row, length in enumerate((9, 4)):
        for head in range(6):
            scores = key[row, head // 3, :length] @ query[row, head, 0] / 8**0.5
            expected = scores.softmax(0) @ value[row, head // 3, :length]
            assert torch.allclose(found[row, 0, head], expected, atol=1e-12)


def test_all_layers_of_a_pass_keep_one_mask_for_the_gradient() -> None:
    """A mask of (2, 1, 3 x 11, 11), which every layer would save a copy of otherwise."""
    ids = torch.randint(0, 50, (2, 11), generator=torch.Generator().manual_seed(1))
    seen = torch.ones_like(ids)
    seen[1, 7:] = 0
    kept = []

    def keep(saved: torch.Tensor) -> torch.Tensor:
        if saved.shape == (2, 1, 33, 11):
            kept.append(saved)
        return saved

    model = _model(register(), 2)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        model(input_ids=ids, attention_mask=seen)
    assert len(kept) == 2
    assert len({saved.data_ptr() for saved in kept}) == 1


def test_the_cache_of_masks_forgets_those_that_are_gone() -> None:
    from learners.policy.attention import _WIDENED, _widen_mask

    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    before = len(_WIDENED)
    assert _widen_mask(mask, 2, torch.float32) is _widen_mask(mask, 2, torch.float32)
    assert _widen_mask(mask, 2, torch.float32).shape == (1, 1, 8, 4)
    assert len(_WIDENED) == before + 1
    del mask
    assert len(_WIDENED) == before
