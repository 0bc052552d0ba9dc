"""Requests that join together: shared prefixes are read once, and no completion changes."""

import random

import pytest
import torch

from learners.sampling.forward import prefill_shared
from tests.learner_fakes import Parrot
from tests.learners.policy.test_packing import model_of
from tests.learners.sampling.test_transformers_sampler import request, sampler_of, serve


@pytest.fixture(scope="module", params=["tiny", "grouped"])
def loaded(request):
    torch.set_num_threads(1)
    return model_of(request.param)


def ids(count, seed=0):
    draw = random.Random(seed)
    return tuple(draw.randrange(50) for _ in range(count))


def branches(trunk, *lengths):
    """Prefixes of a trunk, of these lengths."""
    return [trunk[:length] for length in lengths]


def test_keys_and_values_equal_those_of_each_prefix_alone(loaded):
    trunk = ids(40)
    prefixes = [*branches(trunk, 12, 40, 31), (*trunk[:30], 7, 8), (9, 10, 11)]
    with torch.inference_mode():
        read = prefill_shared(loaded.model, prefixes)
        for prefix, kept in zip(prefixes, read.layers, strict=True):
            alone = loaded.model(torch.tensor([prefix]), use_cache=True).past_key_values
            for layer, pair in zip(alone.layers, kept, strict=True):
                for found, expected in zip(pair, (layer.keys[0], layer.values[0]), strict=True):
                    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert read.tokens == 40 + 2 + 3


def test_prefixes_that_share_little_are_not_read_together(loaded):
    assert prefill_shared(loaded.model, [ids(20, 1), ids(20, 2)]) is None
    assert prefill_shared(loaded.model, [ids(40)]) is None
    assert prefill_shared(loaded.model, []) is None


def test_a_model_with_another_attention_reads_each_prefix_alone():
    assert prefill_shared(Parrot([1, 2, 3], 50), [ids(40)] * 4) is None


def alone_and_together(loaded, requests, monkeypatch):
    """Return completions and prefilled tokens, without and with shared prefilling."""
    found = []
    for own in (True, False):
        with monkeypatch.context() as changed:
            if own:
                changed.setattr(
                    "learners.sampling.transformers_sampler.prefill_shared", lambda *_: None
                )
            sampler = sampler_of(loaded)
            found.append((serve(sampler, *requests), sampler.stats().prefilled_tokens))
    return found


def test_the_prompt_of_several_roots_is_read_once(loaded, monkeypatch):
    """Eight roots of a prompt of 40: 39 tokens once and the last of each, not 8 times 40."""
    requests = [request(ids(40), key=f"root {number}") for number in range(8)]
    (alone, much), (together, little) = alone_and_together(loaded, requests, monkeypatch)
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-10)
    assert (much, little) == (320, 47)


def test_branches_of_a_trunk_whose_keys_are_stale_read_it_once(loaded, monkeypatch):
    """The deepest branch has 90 tokens: 89 once, and the last of each of the four."""
    trunk = ids(100)
    places = (20, 90, 55, 70)
    requests = [request(trunk[:place], key=f"at {place}") for place in places]
    (alone, much), (together, little) = alone_and_together(loaded, requests, monkeypatch)
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    assert (much, little) == (235, 93)


def test_cached_prefixes_are_not_read_together(loaded, monkeypatch):
    sampler = sampler_of(loaded)
    serve(sampler, request(ids(60), key="trunk", max_tokens=1))
    read, seen = sampler.stats().prefilled_tokens, []
    monkeypatch.setattr(
        "learners.sampling.transformers_sampler.prefill_shared",
        lambda _, prefixes: seen.append(prefixes),
    )
    serve(sampler, *[request(ids(60)[:n], key=f"at {n}", max_tokens=1) for n in (20, 40)])
    assert sampler.stats().prefilled_tokens - read == 2
    assert seen == [[]]


def test_rows_that_join_while_others_are_sampled_read_together_too(loaded):
    """Three rows for six requests: each gets the completion that it gets alone."""
    requests = [request(ids(40), key=f"root {n}", max_tokens=2 + n) for n in range(6)]
    alone = [serve(sampler_of(loaded), one)[0] for one in requests]
    together = serve(sampler_of(loaded, rows=3), *requests)
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
