"""Models: the tiny one's tokenizer is lossless, and SmolLM2 ends turns at tags."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

from envs.tags import stop_tags
from learners.errors import ModelNotFound
from learners.policy.loading import LoadedModel, load_model, save_model, tiny_tokenizer
from learners.sampling.sampler import Request
from learners.sampling.transformers_sampler import TransformersSampler
from tests.learner_fakes import Parrot

TOKENIZER = tiny_tokenizer()


@settings(max_examples=60)
@given(st.text())
def test_the_tiny_tokenizer_loses_no_character(text):
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    specials = ("<|pad|>", "<|user|>", "<|assistant|>", "<|end|>")
    if not any(mark in text for mark in specials):
        assert TOKENIZER.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("tag", stop_tags(("search", "python", "calculator")))
def test_a_tag_is_one_token_of_the_tiny_tokenizer(tag):
    assert len(TOKENIZER.encode(tag, add_special_tokens=False)) == 1


def test_new_weights_are_decided_by_the_seed():
    first, again, other = (load_model("tiny", seed=s).model.state_dict() for s in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_making_a_model_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    load_model("tiny")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_saved_model_is_the_same_again(tmp_path):
    loaded = load_model("tiny", seed=3)
    save_model(loaded, tmp_path)
    again = load_model(str(tmp_path))
    ours, theirs = loaded.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    text = "<think> 🦊 Milo Arndt</think><search> 1</search>"
    assert again.tokenizer.encode(text) == loaded.tokenizer.encode(text)
    messages = [{"role": "user", "content": "What?"}]
    prompts = [
        one.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        for one in (loaded, again)
    ]
    assert prompts[0] == prompts[1]


SMALL = {"vocab_size": 664, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
CHANGED = {
    "scaled": (GraniteForCausalLM, GraniteConfig, {"logits_scaling": 8.0}),
    "capped": (Gemma2ForCausalLM, Gemma2Config, {"final_logit_softcapping": 2.0}),
}


@pytest.mark.parametrize(("model_class", "config_class", "more"), CHANGED.values(), ids=CHANGED)
def test_a_model_that_scales_or_caps_its_heads_logits_is_refused(
    tmp_path, model_class, config_class, more
):
    """Its log-probabilities would belong to another distribution than its own."""
    torch.manual_seed(0)
    plain = {name: None if "cap" in name else 1.0 for name in more}
    for options in (plain, more):
        config = config_class(**SMALL, **HEADS, initializer_range=1.0, **options)
        save_model(LoadedModel(model_class(config), TOKENIZER), tmp_path)
        if options is plain:
            load_model(str(tmp_path))
    with pytest.raises(ModelNotFound, match="scales or caps the logits of its head"):
        load_model(str(tmp_path))


@pytest.mark.slow
def test_smollm2_loads_and_its_three_token_tag_is_found_across_a_prefill():
    """It has a chat template, says something, and ends a turn wherever the tag was cut."""
    torch.set_num_threads(1)
    loaded = load_model("smollm2")
    tokenizer = loaded.tokenizer
    assert loaded.model.num_parameters() == 134_515_008
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Say hello."}], add_generation_prompt=True, return_dict=False
    )
    assert tokenizer.decode(prompt).endswith("<|im_start|>assistant\n")
    sampler = TransformersSampler(loaded.model, tokenizer, ("</python>",))
    sampler.submit(Request(tuple(prompt), (), 8, "key", 0, temperature=0.0))
    ((_, said),) = list(sampler.completed())
    assert "hello" in tokenizer.decode(said.token_ids).lower()

    assert len(tokenizer.encode("</python>", add_special_tokens=False)) == 3
    turn = "<think> 🦊 </think><python> 1 + 1</python>"
    ids = tokenizer.encode(turn, add_special_tokens=False)
    assert tokenizer.decode(ids) == turn
    script = [*prompt, *ids, *tokenizer.encode(" and more </python>", add_special_tokens=False)]
    for cut in range(len(ids)):
        parrot = Parrot(script, len(tokenizer))
        sampler = TransformersSampler(parrot, tokenizer, ("</python>",))
        sampler.submit(Request(tuple(prompt), tuple(ids[:cut]), 60, "key", cut))
        ((_, rest),) = list(sampler.completed())
        assert ([*ids[:cut], *rest.token_ids], rest.stop) == (ids, "tag"), f"cut at {cut}"


@pytest.mark.slow
def test_smollm2_is_saved_and_loaded_as_plain_weights(tmp_path):
    loaded = load_model("smollm2")
    save_model(loaded, tmp_path)
    again = load_model(str(tmp_path))
    ids = torch.tensor([loaded.tokenizer.encode("Two and two")])
    with torch.inference_mode():
        assert torch.equal(loaded.model(ids).logits, again.model(ids).logits)
    assert again.tokenizer.chat_template == loaded.tokenizer.chat_template
    assert "quantization_config" not in (tmp_path / "config.json").read_text()
