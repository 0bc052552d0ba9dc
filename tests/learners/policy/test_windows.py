"""Models with sliding-window layers: sampled from the distributions of the model itself."""

import random

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Lfm2Config,
    Lfm2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from learners.errors import UsageError
from learners.policy import attention
from learners.policy.attention import attention_windows, supports_trees
from learners.policy.loading import LoadedModel, load_model, tiny_tokenizer
from learners.sampling.sampler import Request
from learners.sampling.transformers_sampler import TransformersSampler

SMALL = {
    "vocab_size": 50,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
MADE = {
    "every layer": (MistralForCausalLM, MistralConfig, {"sliding_window": 8}),
    "some layers": (Qwen3ForCausalLM, Qwen3Config, MIXED | {"use_sliding_window": True}),
    "some layers, other positions": (Gemma3ForCausalLM, Gemma3TextConfig, MIXED),
}


def made(kind):
    """Make a model in float64, with our attention."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model_class, config_class, more = MADE[kind]
    model = model_class(config_class(**SMALL, **more)).double().eval()
    model.set_attn_implementation(attention.register())
    return LoadedModel(model, tiny_tokenizer())


def request(ids, key, max_tokens=6):
    return Request(tuple(ids), (), max_tokens, key, len(ids))


@pytest.mark.parametrize("kind", MADE)
def test_log_probabilities_beyond_a_window_are_the_models_own(kind):
    """Prompts of 30, 5 and 31 tokens, then a turn that goes on and a branch; windows of 8."""
    loaded = made(kind)
    assert not supports_trees(loaded.model)
    draw = random.Random(1)
    long, short, other = ([draw.randrange(3, 50) for _ in range(n)] for n in (30, 5, 31))
    sampler = TransformersSampler(*loaded, ())
    first = [request(ids, str(len(ids))) for ids in (long, short, other)]
    said = {}
    for requests in (first, [request([*long, 7, 9], "on"), request(other[:20], "branch")]):
        for one in requests:
            sampler.submit(one)
        said |= {one.key: (one, completion) for one, completion in sampler.completed()}
    assert len(said) == 5
    assert sampler.stats().prefilled_tokens == 30 + 5 + 31 + 2 + 1
    for one, completion in said.values():
        ids = torch.tensor([[*one.prefix_ids, *completion.token_ids]])
        with torch.inference_mode():
            own = loaded.model(ids, use_cache=False).logits[0].log_softmax(-1)
        before = len(one.prefix_ids) - 1
        expected = [own[before + n, token].item() for n, token in enumerate(completion.token_ids)]
        assert completion.logprobs == pytest.approx(expected, abs=1e-5)


def test_windows_are_read_from_the_config():
    assert attention_windows(made("every layer").model) == {"sliding_attention": 8}
    mixed = {"sliding_attention": 8, "full_attention": None}
    assert attention_windows(made("some layers").model) == mixed
    assert attention_windows(load_model("tiny").model) == {"full_attention": None}


def test_a_model_whose_state_is_not_keys_and_values_is_refused():
    """Convolutions of Lfm2 keep their last inputs, from which no earlier state can be restored."""
    torch.manual_seed(0)
    types = ["conv", "full_attention"]
    model = Lfm2ForCausalLM(Lfm2Config(**SMALL, layer_types=types))
    with pytest.raises(UsageError, match=r"cannot go back in layers of conv.*give --sampler vllm"):
        TransformersSampler(model, tiny_tokenizer(), ())
