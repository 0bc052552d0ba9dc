"""The policy: its numbers equal those of a naive computation, however rows are laid out."""

import copy
import random

import pytest
import torch

from envs import EnvState
from learners.policy.batch import collate
from learners.policy.loading import load_model
from learners.policy.policy import Policy
from learners.rl.losses import clipped_surrogate
from learners.tree import Completion, Row, Trajectory, Turn
from tests.learner_fakes import likelihood

STATE = EnvState("Toy", "1", "train", "a")


@pytest.fixture(scope="module")
def tiny():
    torch.set_num_threads(1)
    return load_model("tiny", dtype=torch.float64)


def policy_of(tiny, **options):
    """Make a policy over a copy of the weights."""
    chosen = {"learning_rate": 1e-3} | options
    return Policy(tiny._replace(model=copy.deepcopy(tiny.model)), **chosen)


def trajectories(*shapes, seed=0):
    """Make trajectories of random ids; a shape is (prompt tokens, (sampled, observed), ...)."""
    draw = random.Random(seed)

    def ids(count):
        return tuple(draw.randrange(256) for _ in range(count))

    found = []
    for prompt, *turns in shapes:
        made = Trajectory(ids(prompt), STATE, path=(0,))
        for sampled, observed in turns:
            said = ids(sampled)
            completion = Completion(said, (-1.0,) * sampled, (0.0,) * sampled)
            made.turns.append(Turn(STATE, completion, ids(observed)))
        found.append(made)
    return found


SHAPES = ((5, (4, 3), (6, 0)), (2, (3, 0)), (9, (1, 8), (2, 2), (3, 0)), (4, (12, 0)))


def naive_stats(model, made, temperature=1.0):
    """Compute one row, without padding, by a full softmax over every position."""
    whole = torch.tensor([[*made.prompt_ids, *made.response_ids]])
    with torch.no_grad():
        logits = model(whole, use_cache=False).logits[0] / temperature  # (T, V)
    logprobs = torch.log_softmax(logits, -1)
    entropies = -(logprobs.exp() * logprobs).sum(-1)
    begin = len(made.prompt_ids)
    at = torch.arange(begin, whole.shape[1])
    mask = torch.tensor(made.response_mask)
    return logprobs[at - 1, whole[0, at]] * mask, entropies[at - 1] * mask


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_token_stats_equal_a_full_softmax(tiny, temperature):
    rows = trajectories(*SHAPES)
    stats = policy_of(tiny, temperature=temperature).token_stats(rows)
    for made, found in zip(rows, stats, strict=True):
        logprobs, entropies = naive_stats(tiny.model, made, temperature)
        torch.testing.assert_close(found.logprobs, logprobs, rtol=0, atol=1e-12)
        torch.testing.assert_close(found.entropies, entropies, rtol=0, atol=1e-12)


def test_token_stats_are_the_same_in_chunks_of_logits(tiny):
    """More than 512 sampled tokens, so that logits are computed in two chunks."""
    (made,) = trajectories((3, (600, 0)))
    (found,) = policy_of(tiny).token_stats([made])
    logprobs, entropies = naive_stats(tiny.model, made)
    torch.testing.assert_close(found.logprobs, logprobs, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.entropies, entropies, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tokens", [1, 40, 10_000])
def test_token_stats_do_not_depend_on_padding_or_order(tiny, tokens):
    rows = trajectories(*SHAPES)
    order = [2, 0, 3, 1]
    policy = policy_of(tiny, microbatch_tokens=tokens)
    mixed = policy.token_stats([rows[i] for i in order])
    for place, index in enumerate(order):
        (alone,) = policy.token_stats([rows[index]])
        torch.testing.assert_close(mixed[place].logprobs, alone.logprobs, rtol=0, atol=1e-12)
        torch.testing.assert_close(mixed[place].entropies, alone.entropies, rtol=0, atol=1e-12)


def gradients(tiny, rows, weights, loss, **options):
    """Return the gradients of one update, read before the step clears them, and its metrics."""
    policy = policy_of(tiny, **options)
    seen = {}

    def keep(*_):
        seen.update({name: p.grad.clone() for name, p in policy.model.named_parameters()})

    policy.optimizer.register_step_pre_hook(keep)
    done = policy.update(rows, weights, loss)
    return seen, done


def surrogate(logprobs, batch):
    losses = clipped_surrogate(logprobs, batch.old_logprobs, batch.advantages, 0.2, 0.2)
    return (losses * batch.weights).sum()


def credited(tiny, seed=0):
    """Make rows with perturbed old log-probabilities, advantages of both signs, and weights."""
    made = trajectories(*SHAPES, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    rows, weights = [], []
    for one, stats in zip(made, policy_of(tiny).token_stats(made), strict=True):
        noise = torch.randn(len(one), generator=draw, dtype=torch.float64)
        one.old_logprobs = stats.logprobs + 0.1 * noise
        rows.append(Row(one, torch.randn(len(one), generator=draw, dtype=torch.float64)))
        mask = torch.tensor(one.response_mask).double()
        weights.append(mask / mask.sum() / len(made))
    return rows, weights


def equal(one, other):
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("tokens", [1, 30, 50])
def test_microbatches_add_up_to_the_gradient_of_one_batch(tiny, tokens):
    rows, weights = credited(tiny)
    whole, done = gradients(tiny, rows, weights, surrogate, microbatch_tokens=10_000)
    parts, again = gradients(tiny, rows, weights, surrogate, microbatch_tokens=tokens)
    equal(whole, parts)
    assert again.loss == pytest.approx(done.loss, abs=1e-12)
    assert again.gradient_norm == pytest.approx(done.gradient_norm, abs=1e-12)


def test_the_order_of_rows_does_not_matter(tiny):
    rows, weights = credited(tiny)
    one, _ = gradients(tiny, rows, weights, surrogate)
    order = [3, 1, 0, 2]
    shuffled = [rows[i] for i in order], [weights[i] for i in order]
    other, _ = gradients(tiny, *shuffled, surrogate)
    equal(one, other)


def test_a_gradient_equals_that_of_the_written_out_loss(tiny):
    """-mean over rows of the mean over sampled tokens of min(r A, clip(r) A), row by row."""
    rows, weights = credited(tiny)
    model = copy.deepcopy(tiny.model)
    total = 0.0
    for made, advantage in rows:
        whole = torch.tensor([[*made.prompt_ids, *made.response_ids]])
        logprobs = torch.log_softmax(model(whole, use_cache=False).logits[0], -1)
        sampled = [t for t, own in enumerate(made.response_mask) if own]
        for t in sampled:
            place = len(made.prompt_ids) + t
            ratio = (logprobs[place - 1, whole[0, place]] - made.old_logprobs[t]).exp()
            clipped = ratio.clamp(0.8, 1.2)
            gain = torch.minimum(ratio * advantage[t], clipped * advantage[t])
            total = total - gain / len(sampled) / len(rows)
    total.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    found, done = gradients(tiny, rows, weights, surrogate)
    equal(found, {name: p.grad for name, p in model.named_parameters()})
    assert done.gradient_norm == pytest.approx(float(norm), abs=1e-12)
    assert done.loss == pytest.approx(total.item(), abs=1e-12)


def test_observations_get_no_gradient(tiny):
    """Advantages of observations change nothing; those of sampled tokens would."""
    rows, weights = credited(tiny)
    one, _ = gradients(tiny, rows, weights, surrogate)
    altered = []
    for made, advantage in rows:
        own = torch.tensor(made.response_mask)
        altered.append(Row(made, torch.where(own, advantage, torch.full_like(advantage, 7.0))))
    full = [torch.where(w > 0, w, torch.ones_like(w)) for w in weights]
    mask_only, _ = gradients(tiny, altered, weights, surrogate)
    equal(one, mask_only)

    def weighted(logprobs, batch):
        return -(logprobs * batch.weights).sum()

    equal(gradients(tiny, rows, weights, weighted)[0], gradients(tiny, altered, full, weighted)[0])


def test_one_update_moves_the_weights_towards_the_rewarded_tokens(tiny):
    policy = policy_of(tiny)
    (made,) = trajectories((4, (6, 0)))
    (before,) = policy.token_stats([made])
    row = Row(made, torch.ones(len(made), dtype=torch.float64))
    done = policy.update([row], [torch.ones(len(made)) / len(made)], likelihood)
    (after,) = policy.token_stats([made])
    assert (policy.updates, done.skipped) == (1, False)
    assert after.logprobs.sum() > before.logprobs.sum()
    assert done.loss == pytest.approx(-float(before.logprobs.mean()))


def test_a_gradient_that_is_not_finite_changes_nothing(tiny):
    policy = policy_of(tiny)
    before = [p.clone() for p in policy.model.parameters()]
    (made,) = trajectories((4, (6, 0)))
    row = Row(made, torch.full((6,), torch.nan, dtype=torch.float64))
    made.old_logprobs = torch.zeros(6, dtype=torch.float64)
    done = policy.update([row], [torch.ones(6)], surrogate)
    assert done.skipped
    assert policy.updates == 0
    assert all(torch.equal(a, b) for a, b in zip(before, policy.model.parameters(), strict=True))
    assert all(p.grad is None for p in policy.model.parameters())


def test_shares_of_a_minibatch_add_up(tiny):
    rows, weights = credited(tiny)
    seen = []

    def loss(logprobs, batch):
        seen.append(batch.share)
        return surrogate(logprobs, batch)

    gradients(tiny, rows, weights, loss, microbatch_tokens=30)
    assert len(seen) > 1
    assert sum(seen) == pytest.approx(1)


def test_everything_is_predicted_on_request(tiny):
    """(B, T) log-probabilities of prompt and observations too, but of no first token."""
    (made,) = trajectories((3, (2, 2), (1, 0)))
    policy = policy_of(tiny)
    seen = []

    def loss(logprobs, batch):
        seen.append(logprobs.detach())
        return -(logprobs * batch.weights).sum()

    row = Row(made, torch.zeros(5))
    policy.update([row], [torch.ones(8) / 8], loss, everything=True)
    assert (seen[0] != 0).tolist() == [[False, *[True] * 7]]
    assert collate([row], everything=True).response_mask.tolist() == [[False, *[True] * 7]]
