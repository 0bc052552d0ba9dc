"""Prefix trees: each shared token once, with the numbers and gradients of padded rows."""

import copy
import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from envs import EnvState
from learners.policy import attention
from learners.policy.batch import collate, lay_out, pack_rows, pack_tree
from learners.policy.loading import load_model
from learners.policy.policy import Policy
from learners.rl.losses import clipped_surrogate
from learners.runs.training import format_compute
from learners.tree import Completion, Row, Trajectory, Turn
from tests.learner_fakes import likelihood

STATE = EnvState("Toy", "1", "train", "a")
ABOVE = 3
"""Size of the toy vocabulary: small, so that random rows often share prefixes."""


def test_a_tree_holds_what_rows_share_once():
    """5 6 7 8, 5 6 7 9 4 and 3 1: sorted, 3 1 comes first, then 7 8 and 9 4 after 5 6 7."""
    packing = pack_tree([(5, 6, 7, 8), (5, 6, 7, 9, 4), (3, 1)])
    assert packing.token_ids.tolist() == [3, 1, 5, 6, 7, 8, 9, 4]
    assert packing.positions.tolist() == [0, 1, 0, 1, 2, 3, 3, 4]
    assert packing.previous.tolist() == [0, 0, 2, 2, 3, 4, 4, 6]
    assert packing.indices.tolist() == [[2, 3, 4, 5, 0], [2, 3, 4, 6, 7], [0, 1, 0, 0, 0]]
    assert packing.layout.spans == ((2, 2), (4, 4), (2, 5))
    assert packing.layout.keys.tolist() == [0, 1, 2, 3, 4, 5, 2, 3, 4, 6, 7]


def test_equal_rows_and_rows_that_end_early_add_nothing():
    packing = pack_tree([(1, 2, 3), (1, 2), (1, 2, 3)])
    assert packing.token_ids.tolist() == [1, 2, 3]
    assert packing.indices.tolist() == [[0, 1, 2], [0, 1, 0], [0, 1, 2]]
    assert packing.layout.spans == ((2, 2), (1, 3))


@pytest.mark.parametrize("seed", range(20))
def test_a_tree_is_as_large_as_the_number_of_different_prefixes(seed):
    draw = random.Random(seed)
    rows = [random_ids(draw, draw.randrange(1, 9)) for _ in range(draw.randrange(1, 12))]
    packing = pack_tree(rows)
    assert len(packing.token_ids) == len({row[: i + 1] for row in rows for i in range(len(row))})
    for index, row in enumerate(rows):
        path = packing.indices[index, : len(row)]
        assert packing.token_ids[path].tolist() == list(row)
        assert packing.positions[path].tolist() == list(range(len(row)))
        assert packing.previous[path[1:]].tolist() == path[:-1].tolist()


def random_ids(draw, count):
    return tuple(draw.randrange(ABOVE) for _ in range(count))


def random_trajectory(draw):
    """Make a prompt and one to three turns of sampled and observed tokens."""
    made = Trajectory(random_ids(draw, draw.randrange(1, 5)), STATE, path=(0,))
    for _ in range(draw.randrange(1, 4)):
        said = random_ids(draw, draw.randrange(1, 6))
        completion = Completion(said, (-1.0,) * len(said), (0.0,) * len(said))
        made.turns.append(Turn(STATE, completion, random_ids(draw, draw.randrange(3))))
    return made


def model_of(kind):
    """Make a model in float64, with weights large enough for a wrong attention to show."""
    if kind == "tiny":
        tiny = load_model("tiny", dtype=torch.float64)
        return tiny._replace(model=with_exact_norms(tiny.model))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        intermediate_size=64,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config).double()
    model.set_attn_implementation(attention.register())
    return load_model("tiny")._replace(model=with_exact_norms(model))


def with_exact_norms(model):
    """Replace transformers' norms, which round to float32 whatever the weights' dtype."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, LlamaRMSNorm):
                width = len(child.weight)
                norm = torch.nn.RMSNorm(width, child.variance_epsilon, dtype=torch.float64)
                norm.weight.data.copy_(child.weight)
                setattr(parent, name, norm)
    return model


@pytest.fixture(scope="module", params=["tiny", "grouped"])
def loaded(request):
    torch.set_num_threads(1)
    return model_of(request.param)


def policy_of(loaded, packs, **options):
    copied = loaded._replace(model=copy.deepcopy(loaded.model))
    return Policy(copied, learning_rate=1e-3, packs=packs, **options)


def surrogate(logprobs, batch):
    losses = clipped_surrogate(logprobs, batch.old_logprobs, batch.advantages, 0.2, 0.2)
    return (losses * batch.weights).sum()


def random_rows(loaded, seed):
    """Make rows with advantages, perturbed old log-probabilities and weights of both signs."""
    draw = random.Random(seed)
    made = [random_trajectory(draw) for _ in range(draw.randrange(2, 10))]
    noise = torch.Generator().manual_seed(seed)
    rows, weights = [], []
    for one, stats in zip(made, policy_of(loaded, "never").token_stats(made), strict=True):
        random_numbers = torch.randn(3, len(one), generator=noise, dtype=torch.float64)
        one.old_logprobs = stats.logprobs + 0.1 * random_numbers[0]
        rows.append(Row(one, random_numbers[1]))
        weights.append(random_numbers[2] * torch.tensor(one.response_mask))
    return rows, weights


def gradient(policy, rows, weights, loss=surrogate, everything=False):
    """Return the loss, and every gradient by name."""
    total = policy._accumulate(rows, weights, loss, everything=everything)
    return total, {name: p.grad for name, p in policy.model.named_parameters()}


def same(one, other):
    assert one[0] == pytest.approx(other[0], abs=1e-12)
    for name, expected in one[1].items():
        torch.testing.assert_close(other[1][name], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("tokens", [12, 10_000])
def test_the_loss_and_every_gradient_equal_those_of_padded_rows(loaded, seed, tokens):
    rows, weights = random_rows(loaded, seed)
    plain = gradient(policy_of(loaded, "never"), rows, weights)
    tree = policy_of(loaded, "always", microbatch_tokens=tokens)
    same(plain, gradient(tree, rows, weights))
    assert tree.work.trees
    if tokens == 10_000:
        paths = [(*r.trajectory.prompt_ids, *r.trajectory.response_ids) for r in rows]
        prefixes = {path[: end + 1] for path in paths for end in range(len(path))}
        assert tree.work.computed_tokens == len(prefixes)


@pytest.mark.parametrize("seed", range(3))
def test_prompts_and_observations_are_learned_on_request_too(loaded, seed):
    rows, _ = random_rows(loaded, seed)
    weights = [
        torch.linspace(-1, 2, len(r.trajectory.prompt_ids) + len(r.trajectory)) for r in rows
    ]

    def likelihood(logprobs, batch):
        return -(logprobs * batch.weights).sum()

    plain, tree = policy_of(loaded, "never"), policy_of(loaded, "always")
    same(
        gradient(plain, rows, weights, likelihood, everything=True),
        gradient(tree, rows, weights, likelihood, everything=True),
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_loss_over_whole_rows_has_its_gradient_too(loaded, seed):
    """The square of each row's sum: a shared token's gradient depends on all rows it is in."""
    rows, weights = random_rows(loaded, seed)

    def squared(logprobs, batch):
        return (logprobs * batch.weights).sum(-1).square().sum()

    plain, tree = policy_of(loaded, "never"), policy_of(loaded, "always")
    same(gradient(plain, rows, weights, squared), gradient(tree, rows, weights, squared))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_and_entropies_equal_those_of_padded_rows(loaded, seed, temperature):
    draw = random.Random(seed)
    made = [random_trajectory(draw) for _ in range(8)]
    plain = policy_of(loaded, "never", temperature=temperature).token_stats(made)
    tree = policy_of(loaded, "always", temperature=temperature, microbatch_tokens=30)
    for one, other in zip(plain, tree.token_stats(made), strict=True):
        torch.testing.assert_close(other.logprobs, one.logprobs, rtol=0, atol=1e-12)
        torch.testing.assert_close(other.entropies, one.entropies, rtol=0, atol=1e-12)


def test_recomputed_logits_change_no_bit(loaded, monkeypatch):
    rows, weights = random_rows(loaded, 0)
    kept = gradient(policy_of(loaded, "always"), rows, weights)
    monkeypatch.setattr("learners.policy.logprobs.MAX_SAVED", 0)
    monkeypatch.setattr("learners.policy.logprobs.CHUNK", 3)
    same(kept, gradient(policy_of(loaded, "always"), rows, weights))


def test_the_same_update_gives_the_same_bits(loaded):
    rows, weights = random_rows(loaded, 1)
    one = gradient(policy_of(loaded, "always"), rows, weights)
    other = gradient(policy_of(loaded, "always"), rows, weights)
    assert one[0] == other[0]
    assert all(torch.equal(one[1][name], other[1][name]) for name in one[1])


def test_two_threads_give_the_same_bits_each_time():
    """Eight rows of 400 tokens that share 200: a shared token's gradient comes from all of them."""
    shared = tuple(range(200))
    rows = rows_of(*[shared + (200 + row,) * 200 for row in range(8)])
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        policy = policy_of(load_model("tiny"), "always")
        weights = [torch.full((len(row.trajectory),), 1e-3) for row in rows]
        found = [policy.gradient(rows, weights, likelihood) for _ in range(30)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, found[0]) for one in found)


def rows_of(*ids):
    """Make rows of one prompt token and a response."""
    found = []
    for first, *rest in ids:
        made = Trajectory((first,), STATE, path=(0,))
        made.turns.append(
            Turn(STATE, Completion(tuple(rest), (0.0,) * len(rest), (0.0,) * len(rest)), ())
        )
        found.append(Row(made, torch.zeros(len(rest))))
    return found


def test_rows_are_read_as_trees_if_that_costs_less():
    """Two rows of 40 that share 30: 50 tokens of 1.2 and two calls of 8 are 76, padded rows 80."""
    shared = tuple(range(30))
    rows = rows_of(shared + (1,) * 10, shared + (2,) * 10)
    work = lay_out(rows, 1000, "auto")
    assert (work.trees, work.row_tokens, work.computed_tokens) == (True, 80, 50)


def test_short_prompts_are_padded():
    """Two rows of 20 that share 10: 30 tokens of 1.2 and two calls of 8 are 52, padded rows 40."""
    shared = tuple(range(10))
    rows = rows_of(shared + (1,) * 10, shared + (2,) * 10)
    work = lay_out(rows, 1000, "auto")
    assert (work.trees, work.row_tokens, work.computed_tokens) == (False, 40, 40)
    assert lay_out(rows, 1000, "always").computed_tokens == 30


def test_a_short_shared_prefix_does_not_pay_for_a_tree():
    """Two rows of 200 that share 40: 360 tokens of 1.2 are more than 400."""
    shared = tuple(range(40))
    rows = rows_of(shared + (1,) * 160, shared + (2,) * 160)
    assert not lay_out(rows, 1000, "auto").trees


def test_rows_that_share_nothing_are_packed_if_padding_would_cost_more():
    """Rows of 100 and three of 20: 160 tokens of 1.2 and four calls of 8 are 224, padded 400."""
    rows = rows_of((0,) * 100, *[(index,) * 20 for index in (1, 2, 3)])
    work = lay_out(rows, 1000, "auto")
    assert (work.trees, work.computed_tokens) == (True, 160)


def test_trees_hold_a_limited_number_of_tokens_and_every_row_once():
    """Two families of three rows: 30 shared and 10 of each make 60; both do not fit in 70."""
    rows = [
        row
        for family in (0, 1)
        for row in rows_of(*[((family,) * 30 + (2 + index,) * 10) for index in range(3)])
    ]
    work = lay_out(rows, 70, "always")
    assert [len(part.packing.token_ids) for part in work.parts] == [60, 60]
    assert [len(part.rows) for part in work.parts] == [3, 3]
    assert {id(row) for part in work.parts for row in part.rows} == {id(row) for row in rows}


def test_no_rows_are_no_work():
    assert lay_out([], 100, "auto") == ([], 0, 0, False)


def test_a_model_with_another_attention_takes_padded_rows():
    """Sliding windows cut paths, and only our attention supports trees."""
    loaded = model_of("grouped")
    assert attention.supports_trees(loaded.model)
    loaded.model.config.sliding_window = 16
    assert not attention.supports_trees(loaded.model)
    loaded.model.config.sliding_window = None
    loaded.model.set_attn_implementation("eager")
    assert not attention.supports_trees(loaded.model)
    assert Policy(loaded, learning_rate=1e-3, packs="always").packs == "never"


def test_a_batch_knows_its_tree():
    rows = rows_of((1, 2, 3), (1, 2, 4))
    batch = collate(rows, packing=pack_rows(rows))
    assert batch.packing.token_ids.tolist() == [1, 2, 3, 4]
    assert batch.token_ids.tolist() == [[1, 2, 3], [1, 2, 4]]


@pytest.mark.slow
def test_smollm2_learns_the_same_from_trees_in_float32():
    """Four rows of one prompt, two with a common start; padded and tree differ by rounding only."""
    torch.set_num_threads(1)
    loaded = load_model("smollm2")
    ids = loaded.tokenizer.encode("The capital of France is Paris. " * 9)
    prompt, answer = tuple(ids[:30]), tuple(ids[:20])
    rows = rows_of(
        prompt + answer, prompt + answer[:10] + (7,) * 8, prompt + (9,) * 5, prompt + answer[:3]
    )
    for index, row in enumerate(rows):
        row.trajectory.old_logprobs = torch.full((len(row.trajectory),), -3.0)
        row.advantages[:] = (-1.0) ** index
    weights = [torch.full((len(row.trajectory),), 1 / 64) for row in rows]
    plain, tree = (Policy(loaded, learning_rate=0.0, packs=packs) for packs in ("never", "always"))
    (loss, expected) = gradient(plain, rows, weights)
    expected = {name: grad.clone() for name, grad in expected.items()}
    plain.optimizer.zero_grad()
    (again, found) = gradient(tree, rows, weights)
    assert again == pytest.approx(loss, rel=1e-5)
    for name, grad in expected.items():
        furthest = (found[name] - grad).abs().max() / grad.abs().max()
        assert furthest < 1e-4, name
    assert (tree.work.computed_tokens, tree.work.row_tokens) == (30 + 20 + 8 + 5, 4 * 30 + 46)


@pytest.mark.parametrize(
    ("trees", "expected"),
    [
        (1.0, "read 40%, trees  "),
        (0.0, "read 40%, padded  "),
        (0.25, "read 40%, 25% trees  "),
    ],
)
def test_the_log_says_how_rows_were_read(trees, expected):
    """400 of 300 + 700 tokens were computed."""
    line = {"ledger/scored_tokens": 300, "ledger/updated_tokens": 700, "update/trees": trees}
    assert format_compute({**line, "ledger/computed_tokens": 400}) == expected
    assert format_compute({}) == ""
