"""vLLM's real engine on SmolLM2: ids equal to transformers', updated weights, restarts.

`make test-vllm` runs this file in an environment that has vLLM; elsewhere it skips and says so.
"""

import copy
import importlib.util
import os
import signal
from itertools import combinations, zip_longest

import pytest
import torch

from learners.config import RunConfig
from learners.policy.loading import load_model
from learners.policy.policy import Policy
from learners.rollouts.rollout import Rollouts
from learners.sampling.opening import open_sampler
from learners.sampling.sampler import Request
from learners.sampling.transformers_sampler import TransformersSampler
from learners.tree import RolloutTree, Turn
from tests import needs
from tests.fakes import EchoTool, toy_env, toy_load

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore"),  # vLLM's imports warn
    needs.unless(
        importlib.util.find_spec("vllm") is not None,
        *("vLLM", "make test-vllm", "in the environment that this makes, CI included"),
    ),
]
TAGS = ("</search>", "</python>", "</answer>")
QUESTIONS = [f"What is {n} plus {3 * n}? Then name {n} fruits." for n in range(1, 51)]


@pytest.fixture(scope="module")
def smollm2():
    torch.set_num_threads(1)
    return load_model("smollm2")


@pytest.fixture(scope="module")
def prompts(smollm2):
    """Fifty prompts of 36 tokens and more."""
    return [
        tuple(
            smollm2.tokenizer.apply_chat_template(
                [{"role": "user", "content": question}],
                add_generation_prompt=True,
                return_dict=False,
            )
        )
        for question in QUESTIONS
    ]


@pytest.fixture(scope="module")
def in_process(smollm2):
    """One engine for all tests: starting it takes most of their time."""
    return open_sampler(RunConfig.of(sampler="vllm"), smollm2, TAGS)


def greedy(prompts, most=24):
    return [Request(p, (), most, str(n), 0, 0.0) for n, p in enumerate(prompts)]


def serve(sampler, requests):
    for request in requests:
        sampler.submit(request)
    found = {request.key: said for request, said in sampler.completed()}
    return [found[request.key] for request in requests]


def short_of_the_best(model, prefix, tokens, *tried):
    """Nats by which each of some tokens is below the likeliest one after a continuation."""
    with torch.inference_mode():
        logprobs = model(torch.tensor([[*prefix, *tokens]])).logits[0, -1].log_softmax(-1)
    return [float(logprobs.max() - logprobs[token]) for token in tried]


def first_difference(one, other):
    """Index at which two completions differ first; None if they are equal."""
    pairs = zip_longest(one.token_ids, other.token_ids)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), None)


def parting(model, prompt, one, other):
    """Nats by which the first differing tokens are below the likeliest one in float32."""
    place = first_difference(one, other)
    assert place < min(len(one.token_ids), len(other.token_ids)), "one ends where the other goes on"
    tried = one.token_ids[place], other.token_ids[place]
    return short_of_the_best(model, prompt, one.token_ids[:place], *tried)


def test_greedy_ids_are_those_of_transformers(smollm2, prompts, in_process):
    """Float32, fifty prompts: if ids differ, the two likeliest tokens were equal up to rounding."""
    ours = serve(TransformersSampler(*smollm2, TAGS), greedy(prompts))
    theirs = serve(in_process, greedy(prompts))
    apart = 0
    for prompt, one, other in zip(prompts, ours, theirs, strict=True):
        if one.token_ids == other.token_ids:
            assert other.logprobs == pytest.approx(one.logprobs, abs=1e-3)
            continue
        apart += 1
        assert max(parting(smollm2.model, prompt, one, other)) < 1e-3
    print(f"\nfloat32: {len(prompts) - apart} of {len(prompts)} completions have equal ids")
    assert apart <= 2


def test_what_bfloat16_changes_is_rounding(smollm2, prompts):
    """Fifty prompts: most completions are equal; if two differ, float32 has both tokens within 0.3
    nats of its likeliest. Logits lie between 16 and 32, where bfloat16 numbers are 0.125 apart.
    """
    config = RunConfig.of(sampler="vllm-server", threads=1, autocast=True)
    server = open_sampler(config, smollm2, TAGS)
    try:
        said = {"vLLM": serve(server, greedy(prompts))}
    finally:
        server.close()
    transformers = open_sampler(config.override(sampler="transformers"), smollm2, TAGS)
    said["transformers"] = serve(transformers, greedy(prompts))
    said["float32"] = serve(TransformersSampler(*smollm2, TAGS), greedy(prompts))
    for one, other in combinations(said, 2):
        gaps, equal = [0.0], 0
        for prompt, *both in zip(prompts, said[one], said[other], strict=True):
            if first_difference(*both) is None:
                equal += 1
            else:
                gaps += parting(smollm2.model, prompt, *both)
        print(f"\nbfloat16: {one} and {other} agree on {equal} of 50, part within {max(gaps):.3f}")
        assert equal >= 25
        assert max(gaps) < 0.3


def test_logprobs_are_the_policys_own_at_the_temperature(smollm2, prompts, in_process):
    """The entropies of the twenty likeliest tokens are a little below the exact ones."""
    requests = [Request(p, (), 24, f"t{n}", 0, 0.7) for n, p in enumerate(prompts[:6])]
    policy = Policy(smollm2, learning_rate=0.0, temperature=0.7)
    for request, said in zip(requests, serve(in_process, requests), strict=True):
        env = toy_env(EchoTool("search"))
        env.reset()
        tree = RolloutTree(toy_load("train")[0], request.prefix_ids, env.snapshot())
        root = tree.root()
        root.turns = [Turn(tree.start, said, ())]
        (stats,) = policy.token_stats([root])
        assert said.logprobs == pytest.approx(stats.logprobs.tolist(), abs=1e-3)
        for known, exact in zip(said.entropies, stats.entropies.tolist(), strict=True):
            assert exact - 1.5 < known < exact + 1e-3


def test_a_seed_repeats_and_another_draws_anew(prompts, in_process):
    one = Request(prompts[0], (), 24, "seed a", 0)
    first, again, other = (
        serve(in_process, [r])[0].token_ids for r in (one, one, one._replace(key="seed b"))
    )
    assert first == again
    assert first != other


def test_a_tag_that_began_in_the_prefill_ends_the_turn(smollm2, prompts, in_process):
    """Asked to repeat a call, its last tag cut after `</`: the engine alone would go on."""
    tokenizer = smollm2.tokenizer
    tag = tokenizer.encode("</python>", add_special_tokens=False)
    example = "<python> 1 + 1 </python> <python> 2 + 2 </python> <python> 3 + 3 "
    prefill = tuple(tokenizer.encode(example, add_special_tokens=False)) + tuple(tag[:1])
    prefix = prompts[0]
    ours = TransformersSampler(*smollm2, ("</python>",))
    request = Request(prefix, prefill, 24, "tag", 0, 0.0)
    (said,) = serve(in_process, [request])
    (expected,) = serve(ours, [request])
    assert expected.stop == "tag"
    assert (said.token_ids, said.stop) == (expected.token_ids, expected.stop)


def test_every_request_has_its_own_limit(prompts, in_process):
    requests = [Request(prompts[n], (), n + 1, f"limit {n}", 0, 0.0) for n in range(4)]
    assert [len(said.token_ids) for said in serve(in_process, requests)] == [1, 2, 3, 4]


def test_pushed_weights_are_used_and_cached_prefixes_are_dropped(smollm2, prompts, in_process):
    """All parameters change, the tied head too: ids equal those of transformers again."""
    kept = copy.deepcopy(smollm2.model.state_dict())
    requests = greedy(prompts[:6])
    before = serve(in_process, requests)
    try:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in smollm2.model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise * parameter.std() * 0.1)
        assert serve(in_process, requests) == before  # not synced yet
        in_process.sync()
        after = serve(in_process, requests)
        expected = serve(TransformersSampler(*smollm2, TAGS), requests)
    finally:
        smollm2.model.load_state_dict(kept)
        in_process.sync()
    assert [said.token_ids for said in after] == [said.token_ids for said in expected]
    for said, wanted in zip(after, expected, strict=True):
        assert said.logprobs == pytest.approx(wanted.logprobs, abs=1e-3)
    assert [said.token_ids for said in after] != [said.token_ids for said in before]


def test_a_rollout_with_tools_is_played_by_it(smollm2, in_process):
    """Whatever an untrained model writes, every trajectory ends, with tokens of its own."""
    env = toy_env(EchoTool("search"), EchoTool("python"), split="train")
    rollouts = Rollouts(env, in_process, smollm2.tokenizer, 48, turns="overlap")
    tree = rollouts.tree(toy_load("train")[0])
    for _ in range(4):
        tree.root()
    rollouts.run([tree], "0")
    assert all(t.done and 0 < len(t) <= 48 for t in tree.roots)
    assert all(len(t.sampler_logprobs) == len(t) for t in tree.roots)
    assert len({t.response_ids for t in tree.roots}) == 4


def test_a_server_that_is_killed_is_started_again_and_nothing_is_lost(smollm2, prompts):
    """Killed after the first of eight completions: all eight arrive; then new weights are used."""
    server = open_sampler(RunConfig.of(sampler="vllm-server", threads=1), smollm2, TAGS)
    requests = [r._replace(max_tokens=4 + 10 * n) for n, r in enumerate(greedy(prompts[:8]))]
    ours = TransformersSampler(*smollm2, TAGS)
    expected = [said.token_ids for said in serve(ours, requests)]
    kept = copy.deepcopy(smollm2.model.state_dict())
    try:
        for request in requests:
            server.submit(request)
        found = {}
        for request, said in server.completed():
            if not found:
                os.kill(server.process_id, signal.SIGKILL)
            found[request.key] = said.token_ids
        assert server.restarts == 1
        assert [found[request.key] for request in requests] == expected
        process = server.process_id
        server.rest()
        with torch.no_grad():
            smollm2.model.model.embed_tokens.weight.mul_(-1)
        server.sync()
        (after,) = serve(server, requests[-1:])
        ours.sync()
        (wanted,) = serve(ours, requests[-1:])
        assert (after.token_ids, server.process_id) == (wanted.token_ids, process)
        assert after.token_ids != expected[-1]
    finally:
        smollm2.model.load_state_dict(kept)
        server.close()
