"""Tree-GRPO: where its trees grow, how many leaves they get, what a leaf is worth."""

import random
from collections import Counter

import pytest
import torch

from learners import tree_grpo
from learners.tree_grpo import credit_leaves, leaf_advantages, leaves, step_points
from tests.method_fakes import fork_after
from tests.tree_fakes import grow, new_tree, tree_with


def positions(points):
    return [point.position for point in points]


def test_a_tree_grows_from_the_prompt_and_after_every_step_but_the_last():
    """Steps of 3 + 2, 1 + 1 and 4 tokens."""
    tree = new_tree()
    root = grow(tree, (3, 2), (1, 1), (4, 0))
    assert positions(step_points([root])) == [0, 5, 7]
    assert positions(step_points([grow(tree, (9, 0))])) == [0]


def test_a_step_that_rollouts_share_counts_once():
    """Both have the first step; each its own second one, equal though they are in length."""
    tree = new_tree()
    root = grow(tree, (3, 2), (1, 1), (4, 0))
    branch = fork_after(tree, root, 1, (1, 1), (2, 0))
    points = step_points([root, branch])
    assert positions(points) == [0, 5, 7, 7]
    assert [point.trajectory for point in points] == [root, root, root, branch]


def test_rollouts_belong_to_the_tree_they_left_wherever_they_left_it():
    tree = new_tree()
    first, second = (grow(tree, (3, 2), (1, 0)) for _ in range(2))
    anew = fork_after(tree, first, 0, (2, 1), (1, 0))
    later = fork_after(tree, anew, 1, (1, 0))
    assert leaves(tree, first) == [first, anew, later]
    assert leaves(tree, second) == [second]


@pytest.mark.parametrize(
    ("rollouts", "roots", "expansions", "expected"),
    [
        (16, 4, 1, [4, 4, 4, 4]),
        (6, 2, 1, [3, 3]),
        (7, 2, 1, [4, 3]),
        (8, 2, 2, [4, 4]),
        (9, 2, 3, [5, 4]),
        (2, 2, 1, [1, 1]),
    ],
)
def test_the_budget_is_filled_exactly(rollouts, roots, expansions, expected):
    tree, config = (
        new_tree(),
        tree_grpo.Config.of(rollouts=rollouts, initial_rollouts=roots, expansions=expansions),
    )
    for _ in range(roots):
        grow(tree, (3, 2), (1, 0))
    for number in range(expansions):
        tree_grpo.expand(tree, number, config, random.Random(0))
        for branch in tree.branches:
            branch.turns = branch.turns[:1] or tree.roots[0].turns[:1]
            branch.done = True
    assert [len(leaves(tree, root)) for root in tree.roots] == expected


def test_steps_are_drawn_alike_and_again_and_again():
    """600 draws of three steps: 200 each, give or take four deviations of 11.5."""
    tree, config = new_tree(), tree_grpo.Config.of(rollouts=601)
    root = grow(tree, (3, 2), (1, 1), (4, 0))
    tree_grpo.expand(tree, 0, config, random.Random(0))
    drawn = Counter(branch.parent.position for branch in tree.branches)
    assert set(drawn) == set(positions(step_points([root])))
    assert all(abs(count - 200) < 46 for count in drawn.values())


def test_a_leaf_is_compared_with_its_prompt_and_with_its_tree():
    """1, 0 | 0, 0: mean 1/4, deviation 1/2. 1, 0: a half over sqrt(1/2). 0, 0: nothing."""
    advantages = leaf_advantages([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0])])
    half = 0.5**0.5
    assert advantages.tolist() == pytest.approx([1.5 + half, -0.5 - half, -0.5, -0.5], rel=1e-5)


def test_a_leaf_alone_in_its_tree_is_compared_with_its_prompt_only():
    advantages = leaf_advantages([torch.tensor([1.0]), torch.tensor([0.0])])
    assert advantages.tolist() == pytest.approx([0.5**0.5, -(0.5**0.5)], rel=1e-5)


def test_all_tokens_of_a_leaf_get_the_same_and_equal_leaves_get_nothing():
    tree = new_tree()
    root = grow(tree, (3, 2), (1, 0), reward=1.0)
    fork_after(tree, root, 1, (2, 0))
    long, short, *equal = credit_leaves([tree, tree_with([0.7] * 3)], None, id)
    assert [row.advantages.tolist() for row in equal] == [[0, 0]] * 3
    assert long.advantages.tolist() == [long.advantages[0].item()] * 6
    assert float(long.advantages[0]) == pytest.approx(2 * 0.5**0.5, rel=1e-5)
    assert len(short.advantages) == 7


def test_pruned_leaves_are_neither_trained_on_nor_compared_with():
    """Two of each tree's four are kept; those four are the group."""
    tree = new_tree()
    for reward in (1.0, 0.0):
        root = grow(tree, (3, 2), (1, 0), reward=reward)
        for other in (0.25, 0.5, 0.75):
            fork_after(tree, root, 1, (2, 0), reward=other)

    def rows_of(seed):
        return credit_leaves([tree], 2, lambda tree: random.Random(seed))

    rows = rows_of(1)
    groups = [[r.trajectory for r in rows if r.trajectory.path[0] == n] for n in range(2)]
    assert [len(group) for group in groups] == [2, 2]
    expected = leaf_advantages([torch.tensor([t.reward for t in group]) for group in groups])
    assert [float(r.advantages[0]) for r in rows] == pytest.approx(expected.tolist(), rel=1e-5)
    assert [r.trajectory for r in rows_of(1)] == [r.trajectory for r in rows]
    assert {r.trajectory for seed in range(9) for r in rows_of(seed)} == set(tree.trajectories)
