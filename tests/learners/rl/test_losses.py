"""Pieces of losses: worked by hand on two tokens, against a slow oracle, at their edges."""

import math

import pytest
import torch

from learners import appo
from learners.policy.batch import collate
from learners.rl.losses import (
    clipped_losses,
    clipped_surrogate,
    dual_clip,
    dual_clipped_losses,
    future_values,
    kl_k1,
    kl_k2,
    kl_k3,
    preserving_surrogate,
    sequence_log_ratio,
    sequence_mean,
    sequence_sum,
    suffix_sum,
    token_log_ratio,
    token_mean,
)
from learners.tree import Row
from tests.tree_fakes import grow, new_tree


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def mask(*flags):
    return torch.tensor(flags, dtype=torch.bool)


def test_a_suffix_sum_adds_what_follows_at_a_discount():
    """1 + 0.5 * 2 = 2; the last token has nothing after it."""
    assert suffix_sum(tensor(1, 2), 0.5).tolist() == [2, 2]
    assert suffix_sum(tensor(1, 2), 1.0).tolist() == [3, 2]


def test_a_suffix_sum_of_nothing_is_nothing():
    assert suffix_sum(torch.zeros(3, 0), 0.5).shape == (3, 0)
    assert suffix_sum(torch.zeros(0), 1.0).shape == (0,)


@pytest.mark.parametrize("discount", [1.0, 0.9, 2 ** (-1 / 32)])
def test_a_suffix_sum_equals_its_definition(discount):
    x = torch.randn(3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    slow = [
        [sum(discount ** (k - t) * row[k] for k in range(t, 9)) for t in range(9)]
        for row in x.tolist()
    ]
    torch.testing.assert_close(suffix_sum(x, discount), torch.tensor(slow, dtype=torch.float64))


def test_future_values_multiply_ratios_at_a_discount():
    """Ratios 2 and 3, gamma 1/2: Omega is 2 * 3^(1/2), then 3."""
    log_ratio = tensor(math.log(2), math.log(3))
    omega = future_values(log_ratio, mask(1, 1), 0.5, clip=0)
    assert omega.tolist() == pytest.approx([2 * math.sqrt(3), 3])


def test_a_masked_token_adds_nothing_but_counts_in_the_exponent():
    """Ratio 9 two places on, gamma 1/2: 9^(1/4), not 9^(1/2)."""
    log_ratio = tensor(0, math.log(5), math.log(9))
    omega = future_values(log_ratio, mask(1, 0, 1), 0.5, clip=0)
    assert omega.tolist() == pytest.approx([9**0.25, 9**0.5, 9])


def test_future_values_stay_within_the_clip():
    omega = future_values(tensor(-1, 0.01, 1), mask(1, 1, 1), 1e-9, clip=0.2)
    assert omega.tolist() == pytest.approx([0.8, math.exp(0.01), 1.2])


def test_a_sum_of_many_log_ratios_stays_finite():
    omega = future_values(tensor(*[50.0] * 100), mask(*[1] * 100), 1.0, clip=0)
    assert omega.max() == pytest.approx(math.exp(20))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.1, 1.0, -1.1, -1.1),  # within the clip: the gradient of -r A in log r is -r A
        (1.5, 1.0, -1.2, 0.0),  # a good token that is likely enough already
        (1.5, -1.0, 1.5, 1.5),  # a bad token that became likelier
        (0.5, 1.0, -0.5, -0.5),  # a good token that became less likely
        (0.5, -1.0, 0.8, 0.0),  # a bad token that is rare enough already
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_the_surrogate_stops_where_the_ratio_has_moved_enough(ratio, advantage, loss, slope):
    logprobs = tensor(math.log(ratio) - 1).requires_grad_()
    losses = clipped_surrogate(logprobs, tensor(-1), tensor(advantage), 0.2, 0.2)
    losses.sum().backward()
    assert losses.item() == pytest.approx(loss)
    assert logprobs.grad.item() == pytest.approx(slope, abs=1e-12)


def test_the_clip_may_be_wider_above_than_below():
    logprobs = tensor(math.log(1.5), math.log(0.5))
    found = clipped_surrogate(logprobs, tensor(0, 0), tensor(1, -1), 0.1, 0.3)
    assert found.tolist() == pytest.approx([-1.3, 0.9])


def slopes(loss, *values):
    """Gradient of the summed losses in their log-probabilities, by autograd."""
    logprobs = tensor(*values).requires_grad_()
    loss(logprobs).sum().backward()
    return logprobs.grad.tolist()


def test_a_tokens_log_ratio_is_a_difference_cut_far_out():
    old = tensor(-1, -1, -1)
    assert token_log_ratio(tensor(-0.5, -40, 30), old).tolist() == [0.5, -20, 20]
    assert slopes(lambda x: token_log_ratio(x, old), -0.5, -40, 30) == [1, 0, 0]


def test_a_rows_log_ratio_is_the_mean_over_its_trained_tokens():
    """Differences 1, 9 and 3, the middle one a tool's: (1 + 3) / 2 for every token."""
    old, trained = tensor(0, 0, 0)[None], mask(1, 0, 1)[None]
    log_ratio = sequence_log_ratio(tensor(1, 9, 3)[None], old, trained, 10.0)
    assert log_ratio.tolist() == [[2, 2, 2]]
    ratio = slopes(lambda x: sequence_log_ratio(x[None], old, trained, 10.0).exp(), 1, 9, 3)
    assert ratio == pytest.approx([math.exp(2)] * 3)  # each through its own log-probability
    cut = slopes(lambda x: sequence_log_ratio(x[None], old, trained, 1.5).exp(), 1, 9, 3)
    assert cut == [0, 0, 0]


def test_the_gradient_of_a_rows_ratio_is_that_of_the_geometric_mean():
    """With one advantage and each token weighing 1/2: d exp((x + y) / 2) = exp(...) / 2 each."""
    old, trained = tensor(0, 0)[None], mask(1, 1)[None]
    ours = slopes(lambda x: sequence_log_ratio(x[None], old, trained, 10.0).exp() / 2, 0.2, 0.6)
    assert ours == pytest.approx(slopes(lambda x: (x.sum() / 2).exp(), 0.2, 0.6))


def test_the_clip_alone_bounds_what_a_token_can_gain():
    """Ratios 2, 2 and 1/2: -1.2, 2 (a bad token is not bounded above), 0.8."""
    logs, advantages = tensor(2, 2, 0.5).log(), tensor(1, -1, -1)
    assert clipped_losses(logs, advantages, 0.2, 0.2).tolist() == pytest.approx([-1.2, 2, 0.8])
    gradients = slopes(lambda x: clipped_losses(x, advantages, 0.2, 0.2), *logs.tolist())
    assert gradients == pytest.approx([0, 2, 0])


def test_the_dual_clip_alone_bounds_what_a_bad_token_can_cost():
    """At c = 3: a loss of 5 at A = -1 becomes 3, and at A = -2 stays; good tokens are untouched."""
    advantages = tensor(-1, -2, 1)
    assert dual_clip(tensor(5, 5, 5), advantages, 3.0).tolist() == [3, 5, 5]
    assert slopes(lambda x: dual_clip(x, advantages, 3.0), 5, 5, 5) == [0, 1, 1]
    assert dual_clip(tensor(5, 0), tensor(-1, 0), math.inf).tolist() == [5, 0]


def test_both_clips_say_where_they_decide():
    surrogate = dual_clipped_losses(tensor(2, 9, 1.1).log(), tensor(1, -1, 1), 0.2, 0.2, 3.0)
    assert surrogate.losses.tolist() == pytest.approx([-1.2, 3, -1.1])
    assert surrogate.upper.tolist() == [True, False, False]
    assert surrogate.lower.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("below", "above", "expected"),
    [
        (0, 0, [0, 0, -1, 2, 0]),  # PPO
        (1, 1, [-1.2, 0.8, -1, 2, 0]),  # GPPO
        (0, 1, [-1.2, 0, -1, 2, 0]),  # AEPO
        (0.5, 0.25, [-0.3, 0.4, -1, 2, 0]),
    ],
)
def test_outside_of_the_clip_a_share_of_the_gradient_is_kept(below, above, expected):
    """A good token over its clip, a bad one under it, two inside, a bad one past the dual clip."""
    ratios, advantages = tensor(2, 0.5, 1, 2, 9), tensor(1, -1, 1, -1, -1)
    old, logs = tensor(0, 0, 0, 0, 0), ratios.log()

    def loss(x):
        return preserving_surrogate(x, old, advantages, 0.2, 0.2, 3.0, below=below, above=above)

    plain = clipped_surrogate(logs, old, advantages, 0.2, 0.2, 3.0)
    assert loss(logs).tolist() == pytest.approx(plain.tolist())
    assert slopes(loss, *logs.tolist()) == pytest.approx(expected)


def test_without_a_share_the_preserving_surrogate_is_ppo_everywhere():
    draw = torch.Generator().manual_seed(0)
    logs, advantages = torch.randn(2, 200, dtype=torch.float64, generator=draw)
    old = torch.zeros_like(logs)
    clips = (advantages, 0.2, 0.28, 3.0)
    ours = slopes(lambda x: preserving_surrogate(x, old, *clips, below=0, above=0), *logs.tolist())
    theirs = slopes(lambda x: clipped_surrogate(x, old, *clips), *logs.tolist())
    assert ours == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("estimator", "value", "slope"),
    [
        (kl_k1, -1.0, 1.0),
        (kl_k2, 0.5, -1.0),
        (kl_k3, math.e - 2, 1 - math.e),
    ],
)
def test_a_divergence_and_its_gradient_where_the_reference_is_e_times_likelier(
    estimator, value, slope
):
    """x = log q / p = 1: k1 is -x, k2 is x^2 / 2, k3 is e^x - x - 1."""
    assert estimator(tensor(-2), tensor(-1)).item() == pytest.approx(value)
    assert slopes(lambda x: estimator(x, tensor(-1)), -2) == pytest.approx([slope])


@pytest.mark.parametrize("estimator", [kl_k1, kl_k3])
def test_unbiased_estimators_have_the_divergence_as_their_mean(estimator):
    """Over all three tokens of a distribution: sum of p times the estimate is sum of p log p/q."""
    p, q = (torch.softmax(tensor(*logits), -1) for logits in ((0, 1, 2), (1, 0.5, -1)))
    true = float((p * (p / q).log()).sum())
    assert float((p * estimator(p.log(), q.log())).sum()) == pytest.approx(true)


def test_a_sequence_sum_divides_by_a_constant_and_by_rows():
    weights = sequence_sum([mask(1, 0, 1), mask(1)], 4.0)
    assert [w.tolist() for w in weights] == [[0.125, 0, 0.125], [0.125]]


def test_a_sequence_mean_weighs_rows_alike_whatever_their_length():
    weights = sequence_mean([mask(1, 0, 1), mask(1)])
    assert [w.tolist() for w in weights] == [[0.25, 0, 0.25], [0.5]]


def test_a_sequence_mean_may_divide_by_more_rows_than_are_trained():
    """Two roots of M = 4: 1 / (4 * 2) for each token of a row of two."""
    weights = sequence_mean([mask(1, 1), mask(1)], rows=4)
    assert [w.tolist() for w in weights] == [[0.125, 0.125], [0.25]]


def test_a_token_mean_weighs_tokens_alike():
    weights = token_mean([mask(1, 0, 1), mask(1, 1)])
    assert [w.tolist() for w in weights] == [[0.25, 0, 0.25], [0.25, 0.25]]


@pytest.mark.parametrize("weighting", [sequence_mean, token_mean, sequence_sum])
def test_rows_without_a_trained_token_weigh_nothing(weighting):
    assert [w.tolist() for w in weighting([mask(0, 0)])] == [[0, 0]]
    assert weighting([]) == []


def eq8(rows, logprobs, clip, rollouts):
    """Minus eq. 8, with loops over rows and tokens."""
    total = 0.0
    for row, line in zip(rows, logprobs, strict=True):
        flags = row.trajectory.response_mask
        for t, is_trained in enumerate(flags):
            if is_trained:
                ratio = math.exp(float(line[t]) - float(row.trajectory.old_logprobs[t]))
                clipped = min(max(ratio, 1 - clip), 1 + clip)
                advantage = float(row.advantages[t])
                total += min(ratio * advantage, clipped * advantage) / sum(flags)
    return -total / rollouts


@pytest.mark.parametrize("groups", [[[0, 1, 2]], [[2], [0, 1]], [[0], [1], [2]]])
def test_eq_8_is_the_same_however_rows_are_split(groups):
    """1/M over N rows, 1/|H_n| over sampled tokens, nothing from observations or padding."""
    draw, tree = torch.Generator().manual_seed(0), new_tree()
    for turns in (((3, 2), (2, 0)), ((1, 0),), ((2, 4), (1, 3), (4, 0))):
        grow(tree, *turns, logprobs=-1.0)
    rows = [Row(root, torch.randn(len(root), generator=draw)) for root in tree.roots]
    moved = [torch.randn(len(root), generator=draw) / 3 - 1 for root in tree.roots]
    weights = sequence_mean([torch.tensor(r.response_mask) for r in tree.roots], rows=8)
    config = appo.Config.of(clip_low=0.2, clip_high=0.2)
    total = 0.0
    for group in groups:
        batch = collate([rows[i] for i in group], weights=[weights[i] for i in group])
        logprobs = torch.full(batch.token_ids.shape, 7.0)  # arbitrary outside the response
        for line, i in enumerate(group):
            logprobs[line, 2 : 2 + len(moved[i])] = moved[i]
        total += float(appo.policy_loss(logprobs, batch, config))
    assert total == pytest.approx(eq8(rows, moved, 0.2, 8), rel=1e-5)
