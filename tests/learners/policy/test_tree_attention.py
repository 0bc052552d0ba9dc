"""One call for all rows of a tree gives the numbers of a call per row.

These tests need no GPU: the wiring is tested with a stand-in that follows FlashAttention's
definition, and against the signature and shapes of PyTorch's operator. The kernel's numbers, and
the inputs that it refuses, are not tested.
"""

import sys

import pytest
import torch

from learners.policy import tree_attention
from learners.policy.batch import pack_tree
from learners.policy.loading import load_model
from learners.policy.policy import Policy
from tests.learner_fakes import likelihood
from tests.learners.policy.test_packing import rows_of

BRANCHED = pack_tree([(5, 6, 7, 8), (5, 6, 7, 9, 4), (3, 1), (5, 6, 2)]).layout
APART = pack_tree([(5, 6, 7, 8), (6, 7), (3,)]).layout


def fake_flash(query, key, value, starts, paths, most, longest, *, scale, window_size, enable_gqa):
    """Attend row by row: the last query to all keys of its row, the one before to all but one."""
    assert (window_size, enable_gqa) == ((-1, 0), True)
    assert (starts.dtype, paths.dtype) == (torch.int32, torch.int32)
    assert (most, longest) == (int(starts.diff().max()), int(paths.diff().max()))
    assert all(each.stride(-1) == 1 for each in (query, key, value))
    assert query.dtype == key.dtype == value.dtype
    groups = query.shape[1] // key.shape[1]
    found = []
    for row in range(len(starts) - 1):
        begin, end = paths[row : row + 2].tolist()
        own = range(*starts[row : row + 2].tolist())
        for place in own:
            seen = slice(begin, end - (own.stop - 1 - place))
            keys, values = (each[seen].repeat_interleave(groups, 1) for each in (key, value))
            weights = (torch.einsum("hd,thd->ht", query[place], keys) * scale).softmax(-1)
            found.append(torch.einsum("ht,thd->hd", weights, values))
    return torch.stack(found)


@pytest.fixture
def flash(monkeypatch):
    monkeypatch.setattr(tree_attention, "_flash", lambda: fake_flash)


def tensors(layout, heads, key_heads, **options):
    tokens = sum(own for own, _ in layout.spans)
    sizes = ((heads, tokens, 8), (key_heads, tokens, 8), (key_heads, tokens, 8))
    return [torch.randn(size, requires_grad=True, **options) for size in sizes]


def said(made, layout, monkeypatch, *, together):
    """Return the attention, and the gradients of a sum that tells positions apart."""
    monkeypatch.setattr(tree_attention, "supports_flash", lambda *_: together)
    found = tree_attention.tree_attention(*made, layout, 0.3)
    weights = torch.linspace(-1, 2, found.numel(), dtype=found.dtype).reshape(found.shape)
    return [found.detach(), *torch.autograd.grad((found * weights).sum(), made)]


@pytest.mark.parametrize("layout", [BRANCHED, APART])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2), (3, 1)])
def test_all_rows_at_once_equal_row_by_row(layout, heads, key_heads, flash, monkeypatch):
    torch.manual_seed(0)
    made = tensors(layout, heads, key_heads, dtype=torch.float64)
    expected = said(made, layout, monkeypatch, together=False)
    for one, other in zip(said(made, layout, monkeypatch, together=True), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_under_autocast_all_inputs_of_flash_attention_have_16_bits(flash, monkeypatch):
    """Rotary embeddings make queries and keys float32 there; the policy's update, either way."""
    rows = rows_of((1, 2, 3, 4), (1, 2, 5, 6), (1, 2, 3, 7))
    loaded, seen, found = load_model("tiny"), set(), []
    for together in (False, True):

        def supports_flash(query, dtype, together=together):
            seen.add((query.dtype, dtype))
            return together

        monkeypatch.setattr(tree_attention, "supports_flash", supports_flash)
        policy = Policy(loaded, learning_rate=0.0, autocast=True, packs="always")
        found.append(policy.gradient(rows, [torch.ones(3)] * 3, likelihood))
    assert seen == {(torch.float32, torch.bfloat16)}
    apart = (found[0] - found[1]).norm() / found[0].norm()
    assert apart < 0.02


def test_pytorchs_own_operator_has_this_signature_and_these_shapes():
    """Forward and backward on tensors without numbers."""
    layout = BRANCHED.to("meta")
    made = tensors(layout, 6, 2, dtype=torch.bfloat16, device="meta")
    found = tree_attention._attend_all_rows(*made, layout, 0.3)
    assert found.shape == made[0].shape
    gradients = torch.autograd.grad(found.sum(), made)
    assert [each.shape for each in gradients] == [each.shape for each in made]


def test_offsets_of_rows_follow_the_layout():
    """3 1, then 5 6 2, 7 8 after 5 6, 9 4 after 5 6 7: paths of 2, 3, 4 and 5."""
    bounds = BRANCHED.bounds()
    assert BRANCHED.spans == ((2, 2), (3, 3), (2, 4), (2, 5))
    assert bounds.queries.tolist() == [0, 2, 5, 7, 9]
    assert bounds.keys.tolist() == [0, 2, 5, 9, 14]
    assert bounds[2:] == (3, 5)


def test_a_cpu_takes_sdpa():
    assert not tree_attention.supports_flash(torch.zeros(1, 1, 8), torch.bfloat16)


@pytest.fixture
def fresh_lookup():
    """Clear the cached look-up of the operator before and after the test."""
    tree_attention._flash.cache_clear()
    yield
    tree_attention._flash.cache_clear()


def test_this_pytorch_has_it(fresh_lookup):
    from torch.nn.attention import varlen

    assert tree_attention._flash() is varlen.varlen_attn


def test_a_pytorch_without_it_has_none(fresh_lookup, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    assert tree_attention._flash() is None


def test_an_operator_with_fewer_options_is_not_used(fresh_lookup, monkeypatch):
    from torch.nn.attention import varlen

    def older(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False): ...

    monkeypatch.setattr(varlen, "varlen_attn", older)
    assert tree_attention._flash() is None
