"""The built-in sampler: tokens do not depend on the batch, and turns end at tags."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from envs import EnvState
from learners.config import RunConfig
from learners.ledger import Ledger
from learners.policy.loading import load_model
from learners.policy.policy import Policy
from learners.runs.recorder import Recorder
from learners.runs.trainer import PolicyTrainer
from learners.sampling.draw import draw, uniform
from learners.sampling.forward import split_rectangles
from learners.sampling.sampler import Request
from learners.sampling.transformers_sampler import TransformersSampler
from learners.tree import BranchPoint, RolloutTree, Row, Turn
from tests.fakes import toy_load
from tests.learner_fakes import Parrot, likelihood
from tests.learners.policy.test_packing import model_of

TAGS = ("</search>", "</python>", "</answer>")


@pytest.fixture(scope="module")
def tiny():
    torch.set_num_threads(1)
    return load_model("tiny", dtype=torch.float64)


def sampler_of(loaded, **options):
    return TransformersSampler(loaded.model, loaded.tokenizer, TAGS, **options)


def request(prefix, *, prefill=(), max_tokens=8, key="k", temperature=1.0):
    return Request(tuple(prefix), tuple(prefill), max_tokens, key, len(prefix), temperature)


def serve(sampler, *requests):
    """Return completions in the order of the requests."""
    for one in requests:
        sampler.submit(one)
    found = {r.key: c for r, c in sampler.completed()}
    return [found[r.key] for r in requests]


def prefilled(sampler):
    return sampler.stats().prefilled_tokens


def mixed_requests():
    """Six requests of different lengths; two share a prefix, two have a prefill, one is short."""
    ids = random.Random(0)
    shared = [ids.randrange(256) for _ in range(20)]
    return [
        request(shared, key="a"),
        request([*shared, 100, 101], key="b", prefill=(102,)),
        request([ids.randrange(256) for _ in range(3)], key="c", max_tokens=2),
        request([ids.randrange(256) for _ in range(40)], key="d", temperature=0.5),
        request([61], key="e", prefill=(70, 71), max_tokens=12),
        request([ids.randrange(256) for _ in range(9)], key="f", temperature=0.0),
    ]


def fresh_logits(loaded, ids):
    """Compute (T, V) logits in one pass without a cache."""
    with torch.inference_mode():
        return loaded.model(torch.tensor([ids]), use_cache=False).logits[0]


@pytest.mark.parametrize("rows", [1, 2, 3, 64])
@pytest.mark.parametrize("order", ["as given", "reversed"])
def test_ids_are_the_same_whatever_the_batch(tiny, rows, order):
    alone = [serve(sampler_of(tiny), one)[0] for one in mixed_requests()]
    requests = mixed_requests() if order == "as given" else mixed_requests()[::-1]
    together = serve(sampler_of(tiny, rows=rows), *requests)
    if order == "reversed":
        together.reverse()
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-12)
        assert one.entropies == pytest.approx(other.entropies, abs=1e-12)


def test_ids_are_the_same_with_and_without_cached_prefixes(tiny):
    sampler = sampler_of(tiny)
    cold = serve(sampler, *mixed_requests())
    read = prefilled(sampler)
    warm = serve(sampler, *mixed_requests())
    assert [c.token_ids for c in warm] == [c.token_ids for c in cold]
    assert prefilled(sampler) - read == 6  # the last token of each prefix: it predicts


@pytest.mark.parametrize("rows", [1, 64])
def test_in_float32_a_draw_is_off_by_less_than_a_ten_thousandth(tiny, rows):
    """40 requests, 640 numbers, each within 1e-4 of its token's share of the exact distribution.

    So whatever else is in the batch, another token is drawn only within 1e-4 of a boundary.
    """
    ids = random.Random(4)
    requests = [
        request([ids.randrange(256) for _ in range(1 + n)], key=f"r{n}", max_tokens=16)
        for n in range(40)
    ]
    said = serve(sampler_of(load_model("tiny"), rows=rows), *requests)
    for one, completion in zip(requests, said, strict=True):
        exact = fresh_logits(tiny, [*one.prefix_ids, *completion.token_ids]).softmax(-1)
        above = exact[len(one.prefix_ids) - 1 :].cumsum(-1)
        for n, token in enumerate(completion.token_ids):
            number, share = uniform(one.key, one.position + n), above[n]
            assert share[token] - exact[len(one.prefix_ids) - 1 + n, token] - 1e-4 < number
            assert number < share[token] + 1e-4


def logits_of(loaded, sampler, one):
    """Return the (tokens, V) logits that the sampler drew from, and its completion."""
    seen = []
    head = loaded.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _module, _input, output: seen.append(output))
    try:
        (completion,) = serve(sampler, one)
    finally:
        handle.remove()
    return torch.cat(seen), completion


def test_logits_of_a_continued_row_equal_a_fresh_pass(tiny):
    """A turn, an observation of three tokens, and the next turn; nothing is read twice."""
    sampler = sampler_of(tiny)
    prompt = (61, 100, 101, 102)
    (first,) = serve(sampler, request(prompt, key="turn 1"))
    observed = (*prompt, *first.token_ids, 110, 111, 112)
    read = prefilled(sampler)
    logits, second = logits_of(tiny, sampler, request(observed, key="turn 2"))
    assert prefilled(sampler) - read == 4  # the turn's last token was drawn, never read
    fresh = fresh_logits(tiny, [*observed, *second.token_ids])
    expected = fresh[len(observed) - 1 : -1]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scored", [False, True])
def test_a_branch_after_an_update_never_reads_a_stale_cache(scored):
    """The branch's logits equal a fresh pass with the updated weights, not one with the old ones.

    If the updated policy has scored the root, only the branch's last shared token is read again.
    """
    loaded = load_model("tiny", dtype=torch.float64)
    policy = Policy(loaded, learning_rate=1e-2)
    sampler = sampler_of(loaded)
    trainer = PolicyTrainer(RunConfig(), policy, sampler, Ledger(), Recorder())
    prompt = (61, 100, 101, 102, 103)
    (said,) = serve(sampler, request(prompt, max_tokens=10, key="root"))
    tree = RolloutTree(toy_load("train")[0], prompt, EnvState("Toy", "1", "train", "a"))
    root = tree.root()
    root.turns = [Turn(tree.start, said, ())]
    shared = (*prompt, *said.token_ids[:4])
    old = fresh_logits(loaded, shared)[-1]
    row = Row(root, torch.ones(len(root), dtype=torch.float64))
    trainer.update([row], [torch.ones(len(root)) / len(root)], likelihood)
    if scored:
        trainer.token_stats([root], branched=True)
    branch = tree.fork(BranchPoint(root, 4))
    read = prefilled(sampler)
    logits, _ = logits_of(
        loaded, sampler, request(prompt, prefill=branch.prefill.token_ids, key="branch")
    )
    assert prefilled(sampler) - read == (1 if scored else len(shared))
    torch.testing.assert_close(logits[0], fresh_logits(loaded, shared)[-1], rtol=0, atol=1e-10)
    assert (logits[0] - old).abs().max() > 0.01


def test_requests_left_unfinished_can_be_submitted_again(tiny):
    """The caller stops after the first completion and submits all requests once more."""
    sampler = sampler_of(tiny)
    requests = mixed_requests()
    expected = [c.token_ids for c in serve(sampler_of(tiny), *requests)]
    for one in requests:
        sampler.submit(one)
    next(sampler.completed())
    assert [c.token_ids for c in serve(sampler, *requests)] == expected


def test_stats_count_prefilled_tokens_and_memory():
    """Three tokens read; a copy in bfloat16, and keys and values of 3 layers in blocks of 128."""
    loaded = load_model("tiny")
    for dtype, bytes_each in ((None, 4), (torch.bfloat16, 2)):
        sampler = sampler_of(loaded, rows=1, dtype=dtype)
        serve(sampler, request([61, 100, 101]))
        stats = sampler.stats()
        assert stats.prefilled_tokens == 3
        assert (stats.weight_bytes > 0) == (dtype is not None)
        assert stats.cache_bytes == 3 * 2 * 128 * 128 * bytes_each


def test_temperature_zero_is_greedy(tiny):
    prefix = [61, 100, 101]
    (said,) = serve(sampler_of(tiny), request(prefix, max_tokens=5, temperature=0.0))
    best = fresh_logits(tiny, [*prefix, *said.token_ids]).argmax(-1).tolist()
    assert list(said.token_ids) == best[2:-1]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_and_entropies_are_the_policys_own(tiny, temperature):
    prompt = (61, 100, 101, 102)
    tree = RolloutTree(toy_load("train")[0], prompt, EnvState("Toy", "1", "train", "a"))
    root = tree.root()
    (said,) = serve(sampler_of(tiny), request(prompt, temperature=temperature))
    root.turns = [Turn(tree.start, said, ())]
    policy = Policy(tiny, learning_rate=0.0, temperature=temperature)
    (stats,) = policy.token_stats([root])
    assert stats.logprobs.tolist() == pytest.approx(said.logprobs, abs=1e-10)
    assert stats.entropies.tolist() == pytest.approx(said.entropies, abs=1e-10)


TURN = "<think> 🦊 is a fox </think><echo> 🦊</echo>"
SCRIPT = TURN + " and more that nobody asked for </echo>"


def turn_ids(tokenizer):
    return tokenizer.encode(TURN, add_special_tokens=False)


def parrot_sampler(loaded, text, tags=("</echo>",), **options):
    """Make a sampler that writes the text after a prompt of one token."""
    script = [61, *loaded.tokenizer.encode(text, add_special_tokens=False)]
    parrot = Parrot(script, len(loaded.tokenizer))
    return parrot, TransformersSampler(parrot, loaded.tokenizer, tags, **options)


def test_a_tag_is_found_across_prefill_and_output_wherever_the_turn_was_cut(tiny):
    """Every token of a turn, inside the four bytes of the fox and inside the seven of the tag."""
    ids = turn_ids(tiny.tokenizer)
    assert len(ids) > 24
    for cut in range(len(ids)):
        _, sampler = parrot_sampler(tiny, SCRIPT)
        (said,) = serve(sampler, request([61], prefill=ids[:cut], max_tokens=60))
        assert (list(said.token_ids), said.stop) == (ids[cut:], "tag"), f"cut at {cut}"
        assert tiny.tokenizer.decode([*ids[:cut], *said.token_ids]) == TURN


def test_a_turn_ends_at_the_first_token_that_completes_any_tag(tiny):
    _, sampler = parrot_sampler(tiny, "<search> a</search><answer> b</answer>", TAGS)
    (said,) = serve(sampler, request([61], max_tokens=60))
    assert tiny.tokenizer.decode(said.token_ids) == "<search> a</search>"


def test_a_tag_in_an_earlier_turn_does_not_end_this_one(tiny):
    """The prefix holds a closing tag; only the open turn counts."""
    earlier = tiny.tokenizer.encode("<echo> 1</echo>", add_special_tokens=False)
    script = [61, *earlier, *tiny.tokenizer.encode("<echo> 2</echo>", add_special_tokens=False)]
    sampler = TransformersSampler(Parrot(script, len(tiny.tokenizer)), tiny.tokenizer, ("</echo>",))
    (said,) = serve(sampler, request([61, *earlier], max_tokens=60))
    assert tiny.tokenizer.decode(said.token_ids) == "<echo> 2</echo>"


def test_an_end_token_ends_the_turn(tiny):
    end = tiny.tokenizer.eos_token
    _, sampler = parrot_sampler(tiny, f"<think> done{end} and on")
    (said,) = serve(sampler, request([61], max_tokens=60))
    assert said.stop == "eos"
    assert said.token_ids[-1] == tiny.tokenizer.eos_token_id


def test_finished_rows_leave_the_batch(tiny):
    """Limits of 1, 2 and 4 tokens: three rows read the prompt, then two, one, one."""
    parrot, sampler = parrot_sampler(tiny, SCRIPT)
    serve(sampler, *(request([61], max_tokens=n, key=str(n)) for n in (4, 1, 2)))
    assert parrot.shapes == [(3, 1), (2, 1), (1, 1), (1, 1)]


def test_waiting_rows_join_as_soon_as_a_row_is_free(tiny):
    """At most two rows; the third reads its three tokens when the first has ended."""
    parrot, sampler = parrot_sampler(tiny, SCRIPT, rows=2)
    ids = turn_ids(tiny.tokenizer)[:2]
    one, two, three = (request([61], max_tokens=n, key=str(n)) for n in (1, 3, 2))
    serve(sampler, one, two, three._replace(prefill_ids=tuple(ids)))
    assert parrot.shapes == [(2, 1), (1, 1), (1, 3), (2, 1)]


def test_joining_rows_read_a_limited_number_of_tokens_in_a_pass(tiny):
    """At most six tokens: two rows of three, then one while the two decode, then one of nine."""
    parrot, sampler = parrot_sampler(tiny, SCRIPT, pass_tokens=6)
    three = [request([61, 62 + n, 70], max_tokens=3, key=str(n)) for n in range(3)]
    said = serve(sampler, *three, request(range(60, 69), max_tokens=1, key="long"))
    assert parrot.shapes == [(2, 3), (2, 1), (1, 3), (3, 1), (1, 9), (1, 1)]
    assert [len(one.token_ids) for one in said] == [3, 3, 3, 1]


def test_cached_prefixes_need_no_room_in_a_pass(tiny, monkeypatch):
    """Three prompts of three tokens, at most six: two passes; once cached, one with three rows."""
    sampler, joined = sampler_of(tiny, pass_tokens=6), []
    read = sampler._runner.forward

    def counted(unread, known, before):
        joined.append(len(unread) - before)
        return read(unread, known, before)

    monkeypatch.setattr(sampler._runner, "forward", counted)
    three = [request([61, 62 + n, 70], max_tokens=2, key=str(n)) for n in range(3)]
    together = serve(sampler_of(tiny), *three)
    assert [c.token_ids for c in serve(sampler, *three)] == [c.token_ids for c in together]
    assert joined == [2, 1, 0]
    serve(sampler, *three)
    assert joined[3:] == [3, 0]


def test_requests_with_cached_prefixes_go_before_these_are_evicted(tiny):
    """Two rows, four continued turns and three slots: one prefix is lost, and read again."""
    sampler = sampler_of(tiny, rows=2)
    prompts = [(61, *range(100 + 20 * n, 110 + 20 * n)) for n in range(4)]
    serve(sampler, request(prompts[0], max_tokens=1, key="shape"))
    store = sampler._cache
    store._max_bytes = 3 * store._max_bytes // store._max_slots(128)
    sampler.sync()
    serve(sampler, *(request(ids, max_tokens=1, key="first") for ids in prompts))
    read = prefilled(sampler)
    serve(sampler, *(request((*ids, 99), max_tokens=1, key="second") for ids in prompts))
    assert prefilled(sampler) - read == 3 * 1 + (10 + 1)  # the lost one: all but 61


@given(st.lists(st.integers(1, 300), max_size=40), st.integers(0, 5))
def test_rectangles_of_rows_are_at_least_half_full(lengths, first):
    parts = list(split_rectangles(lengths, first))
    rows = [row for part in parts for row in range(part.start, part.stop)]
    assert rows == list(range(first, first + len(lengths)))
    for part in parts:
        inside = lengths[part.start - first : part.stop - first]
        assert max(inside) * len(inside) <= 2 * sum(inside)


def test_rows_of_similar_length_share_a_rectangle():
    lengths = [12, 14, 9, 300, 310, 11, 12]
    assert list(split_rectangles(lengths, 4)) == [slice(4, 7), slice(7, 11)]


def test_every_request_has_its_own_limit(tiny):
    _, sampler = parrot_sampler(tiny, SCRIPT)
    said = serve(sampler, *(request([61], max_tokens=n, key=str(n)) for n in (5, 1, 200)))
    assert [(len(c.token_ids), c.stop) for c in said] == [
        (5, "length"),
        (1, "length"),
        (len(turn_ids(tiny.tokenizer)), "tag"),
    ]


@pytest.mark.parametrize(("prefix", "room"), [((), 4), ((61,), 0), ((61,), -3)])
def test_a_request_that_cannot_be_served_is_refused_at_once(tiny, prefix, room):
    with pytest.raises(ValueError, match=f"{len(prefix)} prefix tokens and max_tokens={room}$"):
        sampler_of(tiny).submit(request(prefix, max_tokens=room))


def test_uniform_numbers_are_uniform():
    """20,000 draws over 20 bins: chi-square exceeds 64.4 once in a million with 19 degrees."""
    counts = [0] * 20
    for key in range(100):
        for position in range(200):
            counts[int(uniform(f"0/1/task/{key}", position) * 20)] += 1
    assert sum((count - 1000) ** 2 / 1000 for count in counts) < 64.4


def test_uniform_numbers_are_decided_by_key_and_position():
    assert uniform("0/0/a/0", 3) == 0.3419950967246229
    draws = {uniform(key, at) for key in ("0/0/a/0", "1/0/a/0", "0/0/a/0/3/0") for at in range(9)}
    assert len(draws) == 27
    assert all(0 <= number < 1 for number in draws)


def test_a_draw_inverts_the_distribution_by_hand():
    """Probabilities 0.2, 0.3, 0.5; a draw on a boundary takes the token above it."""
    logits = torch.tensor([[0.2, 0.3, 0.5]] * 5, dtype=torch.float64).log()
    drawn = draw(logits, [0.0, 0.19, 0.21, 0.51, 1 - 2**-53], [1.0] * 5)
    assert drawn.token_ids == [0, 0, 1, 2, 2]
    assert drawn.logprobs[2] == pytest.approx(math.log(0.3))
    entropy = -(0.2 * math.log(0.2) + 0.3 * math.log(0.3) + 0.5 * math.log(0.5))
    assert drawn.entropies == pytest.approx([entropy] * 5)


def test_a_token_of_no_probability_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]])
    assert draw(logits, [0.0], [1.0]) == ([1], [0.0], [0.0])


def test_temperature_flattens_what_is_drawn_from():
    """Odds of 1 to 9 become odds of 1 to 3 at temperature 2."""
    logits = torch.tensor([[0.1, 0.9]], dtype=torch.float64).log()
    assert draw(logits, [0.24], [2.0]).token_ids == [0]
    assert draw(logits, [0.24], [1.0]).token_ids == [1]
    assert draw(logits, [0.24], [2.0]).logprobs == pytest.approx([math.log(0.25)])


def test_a_sampler_of_another_precision_follows_the_weights_after_sync(tiny):
    loaded = load_model("tiny", seed=3)
    sampler = sampler_of(loaded, dtype=torch.bfloat16)
    one = request([70, 71, 72], temperature=0.0)
    (before,) = serve(sampler, one)
    with torch.no_grad():
        loaded.model.model.embed_tokens.weight.mul_(-1)
    assert serve(sampler, one) == [before]
    sampler.sync()
    (after,) = serve(sampler, one)
    rounded = load_model("tiny", seed=3, dtype=torch.bfloat16)
    with torch.no_grad():
        rounded.model.model.embed_tokens.weight.mul_(-1)
    assert [after] == serve(sampler_of(rounded), one)
    assert after != before
    assert loaded.model.dtype == torch.float32


@pytest.mark.parametrize("kind", ["tiny", "grouped"])
def test_rows_that_join_are_read_in_one_pass_with_those_under_way(kind):
    """Three rows decode while five join, some with many unread tokens and one with a long slot: one
    pass of 3 + 30 + 2 + 4 + 5 + 20 tokens, and each gets the completion that it gets alone."""
    loaded = model_of(kind)
    sampler, passes = sampler_of(loaded), []
    draw_ids = random.Random(5)
    long = [draw_ids.randrange(50) for _ in range(80)]
    (said,) = serve(sampler, request(long, key="long", max_tokens=3))
    going = [request([n, 7], key=f"going {n}", max_tokens=6) for n in range(3)]
    joining = [
        request([draw_ids.randrange(50) for _ in range(30)], key="much", max_tokens=4),
        request([*long, *said.token_ids, 9], key="on", max_tokens=4),
        *(request([n, *range(n, 1, -1)], key=f"of {n}", max_tokens=4) for n in (4, 5, 20)),
    ]
    hook = loaded.model.base_model.register_forward_pre_hook(
        lambda _module, _args, given: passes.append(tuple(given["input_ids"].shape)),
        with_kwargs=True,
    )
    found = {}
    for one in [*going, request([3, 7], key="short", max_tokens=1)]:
        sampler.submit(one)
    for one, completion in sampler.completed():
        if one.key == "short":
            for other in joining:
                sampler.submit(other)
        found[one.key] = completion
    hook.remove()
    assert (1, 3 + 30 + 2 + 4 + 5 + 20) in passes
    for one in [*going, *joining]:
        (alone,) = serve(sampler_of(loaded), one)
        assert found[one.key].token_ids == alone.token_ids
        assert found[one.key].logprobs == pytest.approx(alone.logprobs, abs=1e-10)
