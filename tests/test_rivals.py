"""The rivals: losses by hand on two tokens, credit by hand, and what may not change a gradient."""

import math
import random
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from learners import arpo, cispo, dapo, dr_grpo, gigpo, gppo, grpo, gspo, reinforce_pp, rloo
from learners.advantages import by_group, centred, group_normalised, leave_one_out, normalised
from learners.batch import pack
from learners.entropy_branching import entropy_gain
from learners.ledger import Ledger
from learners.loop import Run
from learners.losses import mismatch_weights, sequence_mean, sequence_sum, token_mean
from learners.policy import UpdateMetrics
from learners.tree import Completion, Row, Turn
from tests.tree_fakes import START, TASK, Notes, grow, new_tree, tree_with

METHODS = {
    "grpo": (grpo, group_normalised, sequence_mean),
    "reinforce_pp": (
        reinforce_pp,
        partial(reinforce_pp.batch_normalised, config=reinforce_pp.Config()),
        token_mean,
    ),
    "reinforce_pp baseline": (
        reinforce_pp,
        partial(reinforce_pp.batch_normalised, config=reinforce_pp.Config(baseline="group")),
        token_mean,
    ),
    "dapo": (dapo, group_normalised, token_mean),
    "gppo": (gppo, group_normalised, token_mean),
    "cispo": (cispo, group_normalised, token_mean),
    "arpo": (arpo, group_normalised, token_mean),
    "gigpo": (gigpo, partial(gigpo.two_level, config=gigpo.Config()), token_mean),
    "rloo": (rloo, partial(by_group, credit=leave_one_out, keep_equals=True), sequence_sum),
    "dr_grpo": (
        dr_grpo,
        partial(by_group, credit=centred, keep_equals=True),
        partial(sequence_sum, divisor=64),
    ),
    "gspo": (gspo, group_normalised, sequence_mean),
}
every_method = pytest.mark.parametrize("method", METHODS)


def loss_of(method):
    module = METHODS[method][0]
    return (
        module.policy_loss
        if module is rloo
        else partial(module.policy_loss, config=module.Config())
    )


def two_tokens(method, ratios, advantages):
    """Loss and gradient of one row of two tokens, each weighing 1/2."""
    old = torch.tensor([[-1.0, -2.0]], dtype=torch.float64)
    logprobs = (old + torch.tensor([ratios], dtype=torch.float64).log()).requires_grad_()
    batch = SimpleNamespace(
        old_logprobs=old,
        advantages=torch.tensor([advantages], dtype=torch.float64),
        response_mask=torch.ones(1, 2, dtype=torch.bool),
        weights=torch.full((1, 2), 0.5, dtype=torch.float64),
    )
    loss = loss_of(method)(logprobs, batch)
    loss.backward()
    return loss.item(), logprobs.grad[0].tolist()


@pytest.mark.parametrize(
    ("method", "ratios", "advantages", "gradient"),
    [
        # Inside of every clip: -r A / 2.
        ("reinforce_pp", (1.1, 0.9), (1, -1), (-0.55, 0.45)),
        ("dapo", (1.1, 0.9), (1, -1), (-0.55, 0.45)),
        ("gppo", (1.1, 0.9), (1, -1), (-0.55, 0.45)),
        ("cispo", (1.1, 0.9), (1, -1), (-0.55, 0.45)),
        ("dr_grpo", (1.1, 0.9), (1, -1), (-0.55, 0.45)),
        # A likely good token and an unlikely bad one: clipped to nothing, or to the bound.
        ("dapo", (1.5, 0.5), (1, -1), (0, 0)),
        ("dapo", (1.25, 0.5), (1, -1), (-0.625, 0)),
        ("gppo", (1.5, 0.5), (1, -1), (-0.64, 0.4)),
        ("cispo", (1.5, 0.5), (1, -1), (-0.75, 0.25)),
        ("cispo", (9, 9), (1, -1), (-2.5, 2.5)),
        # An unlikely good token and a likely bad one: never clipped but by the dual clip.
        ("gppo", (0.5, 2), (1, -1), (-0.25, 1)),
        ("gppo", (0.5, 11), (1, -1), (-0.25, 0)),
        ("dapo", (0.5, 11), (1, -1), (-0.25, 0)),
        ("arpo", (0.5, 3.5), (1, -1), (-0.25, 0)),
        ("gigpo", (0.5, 2.5), (1, -1), (-0.25, 1.25)),
        # REINFORCE does not look at the ratio.
        ("rloo", (7, 0.1), (1, -1), (-0.5, 0.5)),
        # s = (4 * 1/4)^(1/2) = 1; then s = 2, clipped for a good row.
        ("gspo", (4, 0.25), (1, 1), (-0.5, -0.5)),
        ("gspo", (4, 1), (1, 1), (0, 0)),
        ("gspo", (4, 1), (-1, -1), (1, 1)),
    ],
)
def test_the_gradient_of_two_tokens_is_what_the_paper_says(method, ratios, advantages, gradient):
    _, found = two_tokens(method, ratios, advantages)
    assert found == pytest.approx(gradient, abs=1e-12)


def test_gppo_has_the_value_of_the_clipped_surrogate():
    """-(1.28 - 0.8) / 2: what clip-higher has, in value alone."""
    ours, _ = two_tokens("gppo", (1.5, 0.5), (1, -1))
    assert ours == pytest.approx(two_tokens("dapo", (1.5, 0.5), (1, -1))[0])
    assert ours == pytest.approx(-0.24)


@every_method
def test_at_ratio_one_every_method_is_the_policy_gradient(method):
    """Before the first step of an iteration all clips are the same: -A / 2."""
    _, gradient = two_tokens(method, (1, 1), (0.5, -2) if method != "gspo" else (0.5, 0.5))
    assert gradient == pytest.approx((-0.25, 1.0) if method != "gspo" else (-0.25, -0.25))


def forest():
    """Two prompts; rollouts of one to three turns with results between."""
    first, second = new_tree(), new_tree()
    grow(first, (3, 2), (2, 0), reward=1.0, logprobs=-1.0)
    grow(first, (1, 0), logprobs=-1.0)
    grow(first, (2, 1), (1, 3), (4, 0), reward=0.25, logprobs=-1.0)
    grow(second, (2, 2), (3, 0), reward=0.5, logprobs=-1.0)
    grow(second, (5, 0), reward=-1.0, logprobs=-1.0)
    return [first, second]


def gradients(method, trees, micro):
    """d loss / d log pi of every row, by trajectory, in micro-batches of so many rows."""
    _, advantages, weighting = METHODS[method]
    rows = advantages(trees)
    weights = weighting([torch.tensor(row.trajectory.response_mask) for row in rows])
    found = {}
    for start in range(0, len(rows), micro):
        part = rows[start : start + micro]
        batch = pack(part, weights=weights[start : start + micro])
        logprobs = torch.full(batch.token_ids.shape, 7.0)  # whatever is outside of the response
        for line, row in enumerate(part):
            length, tokens = len(row.trajectory), len(row.trajectory.prompt_ids)
            draw = torch.Generator().manual_seed(length)
            moved = torch.randn(length, generator=draw) / 3 - 1
            logprobs[line, tokens : tokens + length] = moved
        logprobs.requires_grad_()
        loss_of(method)(logprobs, batch).backward()
        for line, row in enumerate(part):
            found[len(row.trajectory), row.trajectory.reward] = logprobs.grad[line]
    return {key: value[value != 0] for key, value in found.items()}


def same(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], rtol=1e-4, atol=1e-6)


@every_method
@pytest.mark.parametrize("micro", [1, 2])
def test_micro_batches_do_not_change_the_gradient(method, micro):
    whole = gradients(method, forest(), micro=5)
    assert any(len(value) for value in whole.values())
    same(whole, gradients(method, forest(), micro=micro))


@every_method
def test_the_order_of_rollouts_and_prompts_does_not_change_the_gradient(method):
    trees = forest()
    for tree in trees:
        tree.trajectories.reverse()
    same(gradients(method, forest(), 5), gradients(method, trees[::-1], 5))


@pytest.mark.parametrize("method", [m for m in METHODS if m != "gigpo"])
def test_a_constant_added_to_all_rewards_changes_no_advantage(method):
    """Each method takes a mean off; GiGPO's turns discount the reward itself, see below."""
    trees, moved = forest(), forest()
    for trajectory in (t for tree in moved for t in tree.trajectories):
        trajectory.reward += 10.0
    before, after = (METHODS[method][1](some) for some in (trees, moved))
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one.advantages, other.advantages, rtol=1e-4, atol=1e-5)


def test_observations_get_no_gradient():
    for method in METHODS:
        for (length, _), gradient in gradients(method, forest(), 5).items():
            sampled = {7: 5, 1: 1, 11: 7, 5: 5}[length]
            assert len(gradient) <= sampled


def test_leave_one_out_compares_with_the_others():
    """1 - (0 + 2) / 2 = 0; 0 - 3 / 2; 2 - 1 / 2."""
    found = leave_one_out(torch.tensor([1.0, 0.0, 2.0]))
    assert found.tolist() == pytest.approx([0, -1.5, 1.5])


def test_whitening_is_over_tokens_of_all_prompts():
    """Rewards 1 and 0 on 3 tokens and 1: mean 3/4, sample deviation 1/2."""
    one, other = tree_with([1.0], turns=((3, 0),)), tree_with([0.0], turns=((1, 0),))
    rows = reinforce_pp.batch_normalised([one, other], reinforce_pp.Config())
    assert rows[0].advantages.tolist() == pytest.approx([0.5] * 3)
    assert rows[1].advantages.tolist() == pytest.approx([-1.5])


def test_a_return_is_discounted_by_sampled_tokens_only():
    """Turns of 1 and 2 tokens with a result of 3 between, gamma 1/2: 1/4, then 1/2 and 1."""
    mask = torch.tensor([1, 0, 0, 0, 1, 1]).bool()
    rewards = torch.tensor([0.0, 0, 0, 0, 0, 1])
    found = reinforce_pp.rewards_to_go(rewards, mask, 0.5)
    assert found.tolist() == [0.25, 0, 0, 0, 0.5, 1]


def test_mismatch_weights_are_cut_from_above_or_zeroed_outside():
    ratio, mask = torch.tensor([0.25, 1.0, 8.0]).log(), torch.tensor([True, False, True])
    assert mismatch_weights(ratio, mask, 2.0).tolist() == pytest.approx([0.25, 0, 2])
    assert mismatch_weights(ratio, mask, 2.0, 0.5).tolist() == [0, 0, 0]
    whole = mismatch_weights(ratio, mask, 5.0, whole_rows=True)
    assert whole.tolist() == pytest.approx([2, 0, 2])


@pytest.mark.parametrize(("length", "penalty"), [(1, 0), (80, 0), (90, -0.5), (100, -1)])
def test_the_overlong_penalty_grows_over_the_last_part_of_the_room(length, penalty):
    tree = tree_with([2.0], turns=((length, 0),))
    config = dapo.Config(max_response_tokens=100)
    assert dapo.shaped(tree.roots[0], config) == pytest.approx(2 + penalty)


class Sampled(Notes):
    """A run whose rollouts earn what a script says; it holds six tasks."""

    def __init__(self, rewards):
        super().__init__()
        self.rewards, self.asked = iter(rewards), []
        tasks = [replace(TASK, id=f"t{i}") for i in range(6)]
        self.rollouts = SimpleNamespace(env=SimpleNamespace(tasks=tasks))

    def new_trees(self, tasks, roots):
        self.asked.append([task.id for task in tasks])
        trees = []
        for task in tasks:
            trees.append(tree_with(next(self.rewards)))
            trees[-1].task = task
        return trees

    def rollout(self, trees):
        pass

    def draw(self, name):
        return random.Random(name)


def test_dapo_samples_on_until_enough_prompts_teach():
    run = Sampled([(1, 1), (0, 1), (0, 0), (1, 0), (0, 1), (1, 1)])
    tasks = run.rollouts.env.tasks[:2]
    kept = dapo.informative_trees(tasks, run, dapo.Config(prompts=2))
    assert [[t.reward for t in tree.roots] for tree in kept] == [[0, 1], [1, 0]]
    assert len(run.trees) == 4
    assert len({name for asked in run.asked for name in asked}) == 4
    assert run.counts["sampling/generations"] == 2
    assert run.counts["sampling/equal_groups"] == 2


def test_dapo_stops_at_its_bound_and_trains_on_what_there_is():
    run = Sampled([(1, 1), (0, 1)] * 3)
    kept = dapo.informative_trees(
        run.rollouts.env.tasks[:2], run, dapo.Config(prompts=4, generations=1)
    )
    assert len(kept) == 1
    run = Sampled([(1, 1)] * 6)
    assert dapo.informative_trees(run.rollouts.env.tasks[:2], run, dapo.Config(prompts=2)) == []
    assert run.counts["sampling/generations"] >= 3  # then all tasks have been met


def with_turns(tree, *entropies, done=False):
    root = tree.root()
    for values in entropies:
        ids = tuple(range(len(values)))
        root.turns.append(Turn(START, Completion(ids, (0.0,) * len(ids), values), (1, 2)))
    root.done = done
    return root


def test_arpo_compares_a_turn_with_the_first_one_of_the_same_rollout():
    """Sums over the first two tokens in units of ln 10: 3 - 1 = 2."""
    tree, unit = new_tree(), math.log(10)
    root = with_turns(tree, (unit, 0.0, 5 * unit), (unit, 2 * unit, 9 * unit))
    assert entropy_gain(root, 2, 10) == pytest.approx(2)


def test_a_branch_of_arpo_starts_with_an_entropy_of_its_own():
    tree, unit = new_tree(), math.log(10)
    root = with_turns(tree, (unit,), (4 * unit,))
    config = arpo.Config(rollouts=2, branch_probability=1.0)
    arpo.grow(tree, config, 10, random.Random(0))
    (branch,) = tree.branches
    branch.turns.append(Turn(START, Completion((1,), (0.0,), (2 * unit,)), ()))
    assert entropy_gain(branch, 20, 10) == 0
    assert entropy_gain(root, 20, 10) == pytest.approx(3)


def test_arpo_keeps_its_budget_and_starts_anew_where_all_have_ended():
    config = arpo.Config(rollouts=4, beam=3, branch_probability=1.0)
    tree = new_tree()
    with_turns(tree, (1.0,), done=True)
    with_turns(tree, (1.0,))
    arpo.grow(tree, config, 10, random.Random(0))
    assert (len(tree.roots), len(tree.branches)) == (2, 2)
    for branch in tree.branches:
        branch.turns.append(branch.turns[0])
    arpo.grow(tree, config, 10, random.Random(0))
    assert len(tree.trajectories) == 4
    ended = new_tree()
    with_turns(ended, (1.0,), done=True)
    arpo.grow(ended, config, 10, random.Random(0))
    assert (len(ended.roots), len(ended.branches)) == (2, 0)


def test_turns_after_the_same_result_are_one_group():
    """Two rollouts answer the question, then both see "A" and one of them "B"."""
    tree = new_tree()
    for reward, seen in ((1.0, ("A", "B")), (0.0, ("A",))):
        root = tree.root()
        root.reward, root.done, transcript = reward, True, ()
        for observation in ("", *seen):
            transcript += ("said", observation) if observation else ()
            state = replace(START, transcript=transcript)
            root.turns.append(Turn(state, Completion((1, 2), (0.0,) * 2, (0.0,) * 2), (3,)))
    long, short = tree.roots
    assert gigpo.anchors(long) == ["", "A", "B"]
    assert gigpo.step_returns(long, 0.5).tolist() == [0.25, 0.5, 1]
    found = gigpo.tree_advantages(tree, gigpo.Config(discount=0.5))
    half = 0.5**0.5  # of two values, each is so many sample deviations from their mean
    assert found[0].tolist() == pytest.approx([2 * half] * 6 + [half] * 3, rel=1e-4)
    assert found[1].tolist() == pytest.approx([-2 * half] * 6, rel=1e-4)
    assert len(short) == 6


def test_without_a_deviation_gigpo_only_takes_means_off():
    """Both turns begin at the question: returns 1/2, 1 and 0, 0 less 3/8; episodes 1 and 0."""
    tree = tree_with([1.0, 0.0], turns=((1, 1), (1, 0)))
    found = gigpo.tree_advantages(tree, gigpo.Config(divide_by="none", discount=0.5))
    assert found[0].tolist() == pytest.approx([0.625, 0.625, 1.125])
    assert found[1].tolist() == pytest.approx([-0.875] * 3)


def test_similar_anchors_share_a_group_where_asked_to():
    seen = ["the quick brown fox", "the quick brown fix", "something else", "the quick brown fox"]
    assert gigpo.step_groups(seen, 1.0) == [0, 1, 2, 0]
    assert gigpo.step_groups(seen, 0.9) == [0, 0, 1, 0]


def test_normalising_is_exact_about_equal_rewards():
    assert not normalised(torch.tensor([0.7] * 8, dtype=torch.float64)).any()


def test_a_token_counts_by_policy_over_sampler_up_to_a_cap():
    """Ratios 1/2, 1 and 8 at a cap of 2, whatever the method; without a cap nothing changes."""
    tree = tree_with([1.0], turns=((3, 0),))
    (root,) = tree.roots
    root.old_logprobs = torch.tensor([0.5, 1.0, 8.0]).log()  # the sampler reported log 1
    seen = []

    def update(rows, weights, loss):
        seen.append([w.tolist() for w in weights])
        return UpdateMetrics(0.0, 0.0, False)

    for cap in (None, 2.0):
        rollouts = SimpleNamespace(ledger=Ledger(), sampler=SimpleNamespace(sync=lambda: None))
        run = Run(grpo.Config(sampler_correction=cap), SimpleNamespace(update=update), rollouts)
        run.update([Row(root, torch.ones(3))], [torch.full((3,), 0.5)], None)
    assert seen == [[[0.5] * 3], [pytest.approx([0.25, 0.5, 1.0])]]
