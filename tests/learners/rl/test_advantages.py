"""Advantages: worked by hand, against a slow oracle, and for groups that teach nothing."""

import math
import statistics
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learners import appo
from learners.config import RunConfig
from learners.rl.advantages import normalise_groups
from learners.rl.losses import token_mean
from learners.runs.run import Run
from tests.tree_fakes import Notes, grow, new_tree, stats_of, tree_with

REWARDS = st.lists(st.sampled_from([-1.0, 0.0, 0.25, 1.0, 1.1]), min_size=1, max_size=6)


def first_tokens(rows):
    return [float(row.advantages[0]) for row in rows]


def procedure(tree, **options):
    """Rows and the recorded metrics; the policy has not moved, so Omega is 1."""
    run = Notes()
    stats = {root: stats_of(root) for root in tree.roots}
    return appo.procedure_advantages(tree, stats, appo.Config.of(**options), run), run


def test_two_rollouts_are_half_a_sample_deviation_from_their_mean():
    """Mean 1/2, sample deviation 1/sqrt(2): both are 1/sqrt(2) deviations away."""
    rows = normalise_groups([tree_with([1, 0])])
    assert first_tokens(rows) == pytest.approx([0.5**0.5, -(0.5**0.5)], rel=1e-5)


def test_all_tokens_of_a_rollout_get_the_same():
    tree = new_tree()
    grow(tree, (2, 3), (1, 0), reward=1.0)
    grow(tree, (1, 0))
    long, short = normalise_groups([tree])
    assert long.advantages.tolist() == [long.advantages[0].item()] * 6
    assert len(short.advantages) == 1


@pytest.mark.parametrize("rewards", [[1.0], [0.7, 0.7, 0.7], [0.1 + 0.2] * 5])
def test_a_group_of_one_or_of_equals_teaches_nothing(rewards):
    rows = normalise_groups([tree_with(rewards)])
    assert len(rows) == len(rewards)
    assert first_tokens(rows) == [0] * len(rewards)


def test_without_trees_there_are_no_rows():
    assert normalise_groups([]) == []


@pytest.mark.parametrize(("kl", "passed"), [(0.0, 2), (0.1, 4)])
def test_rows_without_credit_count_in_the_mean_and_cost_no_pass(kl, passed):
    """Four rollouts of a token each, two of equal rewards: every token weighs 1/4."""
    updates = []
    trainer = SimpleNamespace(update=lambda *arguments: updates.append(arguments))
    run = SimpleNamespace(config=RunConfig.of(kl=kl), trainer=trainer)
    trees = [tree_with([1, 0]), tree_with([5, 5])]
    Run.update_by(run, normalise_groups(trees), token_mean, None)
    ((rows, weights, _),) = updates
    assert [row.trajectory for row in rows] == [*trees[0].roots, *trees[1].roots][:passed]
    lengths = [len(row.trajectory) for row in rows]
    assert [w.tolist() for w in weights] == [[1 / (4 * n)] * n for n in lengths]


def test_groups_do_not_mix():
    trees = [tree_with([1, 0]), tree_with([5, 5]), tree_with([10, 0])]
    rows = normalise_groups(trees)
    assert first_tokens(rows) == pytest.approx([0.7071, -0.7071, 0, 0, 0.7071, -0.7071], rel=1e-3)
    assert [r.trajectory for r in rows] == [root for tree in trees for root in tree.roots]


@given(REWARDS, st.sampled_from([-3.0, 0.5, 100.0]))
def test_a_constant_added_to_a_group_changes_nothing(rewards, constant):
    before = normalise_groups([tree_with(rewards)])
    after = normalise_groups([tree_with([r + constant for r in rewards])])
    assert first_tokens(after) == pytest.approx(first_tokens(before), abs=1e-5)


@given(REWARDS)
def test_a_group_equals_its_definition(rewards):
    rows = normalise_groups([tree_with(rewards)])
    if len(set(rewards)) < 2:
        assert first_tokens(rows) == [0] * len(rewards)
        return
    mean, deviation = statistics.mean(rewards), statistics.stdev(rewards)
    slow = [(r - mean) / (deviation + 1e-6) for r in rewards]
    assert first_tokens(rows) == pytest.approx(slow, rel=1e-5)


def test_eq_6_standardises_a_root_against_both_groups():
    """Roots 1, 0: mean 1/2, deviation 1/2. Branches 1, 1, 1, 0: mean 3/4, deviation sqrt(3)/4.

    The root at 1: (1 + 1/sqrt(3)) / 2. The root at 0: (-1 - sqrt(3)) / 2. Omega is 1: times 1.5.
    """
    rows, run = procedure(tree_with([1, 0], [1, 1, 1, 0]))
    high, low = (1 + 3**-0.5) / 2, (-1 - 3**0.5) / 2
    assert first_tokens(rows) == pytest.approx([1.5 * high, 1.5 * low])
    assert run.notes["advantage/base"] == pytest.approx([high, low])
    assert run.counts["advantage/no_term"] == 0


@pytest.mark.parametrize(
    ("roots", "branches", "expected"),
    [
        ([1, 0], [], [1, -1]),  # no branch
        ([1, 0], [1], [1, -1]),  # one branch is no group
        ([1, 0], [1, 1], [1, -1]),  # equal branches
        ([1, 1], [1, 0], [1, 1]),  # equal roots: the branches' term alone
        ([1], [1, 0], [1]),  # one root is no group
        ([0, 1], [1] * 12, [-1, 1]),  # literally, eq. 6 divides by 0 here
    ],
)
def test_a_group_that_defines_no_term_is_left_out_of_the_mean(roots, branches, expected):
    rows, _ = procedure(tree_with(roots, branches), future_weight=0.0)
    assert first_tokens(rows) == pytest.approx(expected)


@pytest.mark.parametrize(("roots", "branches"), [([1, 1], [0, 0, 0]), ([1], [0]), ([0, 0], [])])
def test_a_root_without_any_term_is_dropped_and_counted(roots, branches):
    rows, run = procedure(tree_with(roots, branches))
    assert rows == []
    assert run.counts["advantage/no_term"] == len(roots)


def test_a_term_is_clipped_before_the_mean_and_noted():
    """Branches 1 (99 times) and 0.9: mean 0.999, deviation 0.1 * sqrt(0.0099) = 0.00995.

    A root at 0 is 100 deviations below, kept at -5; against the roots 0, 1 it is -1: mean -3.
    """
    rows, run = procedure(tree_with([0, 1], [1] * 99 + [0.9]), future_weight=0.0)
    assert first_tokens(rows)[0] == pytest.approx(-3)
    assert run.notes["advantage/clipped"] == [0, 1, 0, 0]


def test_the_bound_of_a_term_is_an_option():
    rows, run = procedure(tree_with([1, 0]), future_weight=0.0, advantage_clip=0.5)
    assert first_tokens(rows) == [0.5, -0.5]
    assert run.notes["advantage/clipped"] == [1, 1]


def test_eq_7_weighs_tokens_by_what_the_policy_did_to_the_rest():
    """Ratios 1.1 and 0.5, gamma 1/2, b = 0.5: Omega is 1.1 sqrt(0.5), kept at 0.8, then 0.8."""
    tree = tree_with([1, 0])
    moved = stats_of(tree.roots[0], logprobs=[math.log(1.1), math.log(0.5)])
    stats = {tree.roots[0]: moved, tree.roots[1]: stats_of(tree.roots[1])}
    config = appo.Config.of(discount=0.5)
    first, second = appo.procedure_advantages(tree, stats, config, Notes())
    assert first.advantages.tolist() == pytest.approx([1.4, 1.4])
    assert second.advantages.tolist() == pytest.approx([-1.5, -1.5])
    free = appo.Config.of(discount=0.5, future_clip=0.0)
    (first, _) = appo.procedure_advantages(tree, stats, free, Notes())
    omega = [1.1 * 0.5**0.5, 0.5]
    assert first.advantages.tolist() == pytest.approx([1 + 0.5 * value for value in omega])


@given(REWARDS, REWARDS, st.sampled_from([-2.0, 0.5, 10.0]))
def test_a_constant_added_to_all_rewards_changes_no_procedure_advantage(roots, branches, constant):
    before, _ = procedure(tree_with(roots, branches))
    after, _ = procedure(tree_with(*([r + constant for r in g] for g in (roots, branches))))
    assert first_tokens(after) == pytest.approx(first_tokens(before), abs=1e-4)


@given(REWARDS, REWARDS)
def test_procedure_advantages_equal_their_definition(roots, branches):
    rows, run = procedure(tree_with(roots, branches))
    expected = []
    for reward in roots:
        terms = []
        for group in (roots, branches):
            if len(set(group)) > 1:
                mean, deviation = statistics.mean(group), statistics.pstdev(group)
                terms.append(max(-5.0, min(5.0, (reward - mean) / deviation)))
        if terms:
            expected.append(1.5 * statistics.mean(terms))
    assert first_tokens(rows) == pytest.approx(expected, rel=1e-4)
    assert run.counts["advantage/no_term"] == len(roots) - len(expected)


def test_advantages_are_as_long_as_the_response_and_finite():
    tree = new_tree()
    grow(tree, (2, 3), (1, 0), reward=1.0)
    grow(tree, (4, 0))
    rows, _ = procedure(tree)
    assert [len(row.advantages) for row in rows] == [6, 4]
    assert all(torch.isfinite(row.advantages).all() for row in rows)
