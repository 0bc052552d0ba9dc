"""A sampler in bfloat16 on a CPU computes with weights packed once per update."""

import copy

import pytest
import torch
from torch import nn

from learners.policy.loading import load_model
from learners.policy.lora import add_adapters
from learners.sampling.packed_weights import FusedProduct, can_pack, pack_linears, refresh
from learners.sampling.sampler import Request
from learners.sampling.transformers_sampler import TransformersSampler
from tests import needs


@pytest.fixture
def rounded():
    model = load_model("tiny", dtype=torch.bfloat16).model
    if not can_pack(model):
        needs.lacking(*needs.BFLOAT16)
    return model


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("outs", [(40,), (40, 16, 24)])
def test_products_are_those_of_the_plain_layers(rounded, bias, outs):
    plain = [nn.Linear(96, out, bias=bias, dtype=torch.bfloat16) for out in outs]
    product = FusedProduct(["name"] * len(outs))
    product.load(plain)
    for shape in ((1, 96), (33, 96), (2, 150, 96)):
        rows = torch.randn(shape).bfloat16()
        with torch.no_grad():
            for index, layer in enumerate(plain):
                torch.testing.assert_close(product.output(index, rows), layer(rows))
    assert product.nbytes == 96 * sum(outs) * 2


def test_an_output_belongs_to_the_rows_of_its_call(rounded):
    """In any order, called twice, or with other rows while outputs of the last ones wait."""
    product = FusedProduct(["one", "other"])
    plain = [nn.Linear(32, 8, dtype=torch.bfloat16) for _ in range(2)]
    product.load(plain)
    first, second = torch.randn(2, 4, 32).bfloat16()
    for index, rows in [(0, first), (0, second), (1, second), (1, first), (1, first), (0, first)]:
        with torch.no_grad():
            torch.testing.assert_close(product.output(index, rows), plain[index](rows))


def test_every_layer_is_packed_and_follows_its_source(rounded):
    source = load_model("tiny", seed=5).model
    packed = pack_linears(rounded, source)
    assert len(packed) == 3 * 4 + 1, "queries with keys and values, gates with ups, and the head"
    assert not any(type(module) is nn.Linear for module in rounded.modules())
    ids = torch.tensor([[70, 71, 72]])
    with torch.no_grad():
        source.lm_head.weight.mul_(3)
        old = rounded(ids).logits
        refresh(packed, source)
        torch.testing.assert_close(rounded(ids).logits, 3 * old, rtol=0.02, atol=0.02)


def test_adapters_are_left_as_they_are(rounded):
    """A sampler of a model with adapters samples the tokens of the rounded model."""
    needs.packages("peft")
    loaded = load_model("tiny", seed=2)
    add_adapters(loaded.model, 4, None, seed=0)
    with torch.no_grad():
        for name, weights in loaded.model.named_parameters():
            if ".lora_B." in name:
                weights.normal_()
    plain = copy.deepcopy(loaded.model).to(torch.bfloat16)
    said = []
    for model, dtype in ((loaded.model, torch.bfloat16), (plain, None), (plain, torch.bfloat16)):
        sampler = TransformersSampler(model, loaded.tokenizer, (), rows=4, dtype=dtype)
        sampler.submit(Request((70, 71, 72), (), 8, "one", 0, 0.0))
        said += [completion.token_ids for _, completion in sampler.completed()]
    assert said[0] == said[1] == said[2]
