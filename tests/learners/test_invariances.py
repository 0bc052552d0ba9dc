"""Changes that leave a method's gradient alone: micro-batches, padding, order, a constant."""

import pytest
import torch

from learners import aepo, gigpo
from learners.policy.batch import collate
from learners.rl.advantages import normalise_groups
from tests.method_fakes import METHODS, Composed, Credited, forest, loss_of

every_method = pytest.mark.parametrize("method", METHODS)


def gradients(method, trees, micro):
    """d loss / d log pi of every row, by length and reward, in micro-batches of `micro` rows."""
    _, advantages, weighting = METHODS[method]
    rows = advantages(trees)
    weights = weighting([torch.tensor(row.trajectory.response_mask) for row in rows])
    by_row = {}
    for start in range(0, len(rows), micro):
        part = rows[start : start + micro]
        batch = collate(part, weights=weights[start : start + micro])
        logprobs = torch.full(batch.token_ids.shape, 7.0)  # arbitrary outside the response
        for line, row in enumerate(part):
            length, tokens = len(row.trajectory), len(row.trajectory.prompt_ids)
            draw = torch.Generator().manual_seed(length)
            moved = torch.randn(length, generator=draw) / 3 - 1
            logprobs[line, tokens : tokens + length] = moved
        logprobs.requires_grad_()
        loss_of(method)(logprobs, batch).backward()
        for line, row in enumerate(part):
            by_row[len(row.trajectory), row.trajectory.reward] = logprobs.grad[line]
    return {key: value[value != 0] for key, value in by_row.items()}


def same(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], rtol=1e-4, atol=1e-6)


@every_method
@pytest.mark.parametrize("micro", [1, 2])
def test_micro_batches_and_their_padding_do_not_change_the_gradient(method, micro):
    in_one_batch = gradients(method, forest(), micro=9)
    assert any(len(value) for value in in_one_batch.values())
    same(in_one_batch, gradients(method, forest(), micro=micro))


@every_method
def test_the_order_of_rollouts_and_prompts_does_not_change_the_gradient(method):
    trees = forest()
    for tree in trees:
        tree.trajectories.reverse()
    same(gradients(method, forest(), 9), gradients(method, trees[::-1], 9))


def with_constant(trees):
    """The same trees with 10 added to the rewards of some."""
    for trajectory in (t for tree in trees for t in tree.trajectories):
        trajectory.reward += 10.0


def same_credit(method, before, after):
    before, after = (METHODS[method][1](trees) for trees in (before, after))
    assert before
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one.advantages, other.advantages, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("gigpo", "reinforce_pp")])
def test_a_constant_added_to_a_prompts_rewards_changes_no_advantage(method):
    """Each takes the prompt's mean off; GiGPO's turns discount the reward itself."""
    moved = forest()
    with_constant(moved[:1])
    same_credit(method, forest(), moved)


def test_reinforce_pp_takes_the_mean_of_all_prompts_off():
    moved = forest()
    with_constant(moved)
    same_credit("reinforce_pp", forest(), moved)


def test_without_a_discount_gigpo_takes_means_off_at_both_levels():
    moved, config = forest(), gigpo.Config.of(discount=1.0)
    with_constant(moved[:1])
    before, after = (gigpo.credit_trajectories(trees, config) for trees in (forest(), moved))
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one.advantages, other.advantages, rtol=1e-4, atol=1e-5)


def test_observations_get_no_gradient():
    for method in METHODS:
        for (length, _), gradient in gradients(method, forest(), 9).items():
            sampled = {7: 5, 1: 1, 11: 7, 10: 7, 5: 5, 6: 4}[length]
            assert len(gradient) <= sampled


OPTIONS = {
    "reinforce_pp baseline": {"baseline": "group"},
    "dr_grpo": {"max_response_tokens": 64},
    "dapo": {"max_response_tokens": 64},
    "tree_grpo": {"expansions": 0},
}
"""Options with which an iteration is the method of that name in METHODS."""


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("appo paper", "aepo")])
def test_what_is_tested_is_what_an_iteration_puts_together(method):
    """Credit, weights and loss; APPO and AEPO, whose loops are their own, are tested by theirs."""
    module, advantages, weighting = METHODS[method]
    run = Composed.by(module, **OPTIONS.get(method, {}))
    rows, expected = run.advantages(run.trees), advantages(run.trees)
    assert rows
    for one, other in zip(rows, expected, strict=True):
        assert one.trajectory is other.trajectory
        assert one.advantages.tolist() == other.advantages.tolist()
    masks = [torch.tensor(row.trajectory.response_mask) for row in rows]
    for one, other in zip(run.weights(masks), weighting(masks), strict=True):
        assert one.tolist() == other.tolist()
    batch = collate(rows, weights=weighting(masks))
    logprobs = batch.old_logprobs + batch.response_mask * torch.linspace(
        -1, 1, batch.weights.shape[1]
    )
    assert run.loss(logprobs, batch) == loss_of(method)(logprobs, batch)


def test_aepo_credits_and_weighs_every_optimiser_step_by_itself():
    """Entropies 0, 0.1, ... along a response; a step per prompt, whose tokens weigh 1 together."""
    run, config = Credited(forest()), aepo.Config.of(pre_monitoring=False)
    aepo.iteration([], run, config)
    assert len(run.updates) == 2
    for tree, update in zip(run.trees, run.updates, strict=True):
        rows = normalise_groups([tree])
        masks = [torch.tensor(row.trajectory.response_mask) for row in rows]
        entropies = [torch.arange(len(mask)) * 0.1 for mask in masks]
        factors = aepo.entropy_factors(entropies, masks, 0.2)
        for actual, row, factor in zip(update.rows, rows, factors, strict=True):
            assert actual.trajectory is row.trajectory
            torch.testing.assert_close(actual.advantages, row.advantages * factor)
        assert float(sum(weight.sum() for weight in update.weights)) == pytest.approx(1)
        batch = collate(update.rows, weights=update.weights)
        logprobs = batch.old_logprobs + batch.response_mask * 0.5
        assert update.loss(logprobs, batch) == aepo.policy_loss(logprobs, batch, config)
