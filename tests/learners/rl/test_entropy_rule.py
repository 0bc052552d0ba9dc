"""Branching after tool results by entropy, as ARPO and AEPO do, and AEPO's credit."""

import math
import random
from types import SimpleNamespace

import pytest
import torch

from learners import aepo, arpo
from learners.rl.branching import entropy_gain
from learners.tree import Completion, Turn
from tests.tree_fakes import START, Notes, new_tree


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
    config = arpo.Config.of(rollouts=2, initial_rollouts=1, branch_probability=1.0)
    arpo.grow(tree, config, 10, random.Random(0))
    (branch,) = tree.branches
    branch.turns.append(Turn(START, Completion((1,), (0.0,), (2 * unit,)), ()))
    assert entropy_gain(branch, 20, 10) == 0
    assert entropy_gain(root, 20, 10) == pytest.approx(3)


def test_arpo_keeps_its_budget_and_starts_anew_where_all_have_ended():
    config = arpo.Config.of(rollouts=4, initial_rollouts=2, beam=3, branch_probability=1.0)
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


@pytest.mark.parametrize(("beam", "branches"), [(1, 0), (2, 1), (3, 2), (9, 4)])
def test_a_rollout_makes_one_branch_less_than_the_beam_within_the_budget(beam, branches):
    tree = new_tree()
    with_turns(tree, (1.0,))
    config = arpo.Config.of(rollouts=5, initial_rollouts=1, beam=beam, branch_probability=1.0)
    arpo.grow(tree, config, 10, random.Random(0))
    assert len(tree.branches) == branches


@pytest.mark.parametrize(
    ("root", "steps", "expected"),
    [
        (1.0, [1.0], 5),  # no gap: half of 9, and one
        (1.0, [], 5),
        (2 * math.log(3), [0.0], 7),  # sigmoid(ln 3) = 3/4 of 9, and one
        (3 * math.log(3), [2 * math.log(3), 0.0], 7),  # the same against the mean of the steps
        (99.0, [0.0], 9),
        (0.0, [99.0], 1),
    ],
)
def test_aepo_starts_more_rollouts_from_an_uncertain_prompt(root, steps, expected):
    assert aepo.initial_rollouts(9, root, steps, 0.5) == expected


@pytest.mark.parametrize(
    ("uniform", "gain", "growing", "expected"),
    [
        (0.6, 0, 0, True),
        (0.5, 0, 0, True),
        (0.4, 0, 0, False),
        (0.4, 1, 0, True),  # 0.4 + 0.2
        (0.6, 0, 4, False),  # 0.6 * 0.8
        (0.6, 1, 4, True),  # 0.8 * 0.8
        (1.0, 99, 20, False),  # times 0
        (1.0, 99, 30, False),
    ],
)
def test_aepo_branches_over_its_threshold_less_the_longer_a_prompt_has_grown(
    uniform, gain, growing, expected
):
    assert aepo.should_branch(uniform, gain, growing, aepo.Config()) is expected


def test_a_higher_threshold_branches_less_where_a_higher_probability_branches_more():
    low, high = (aepo.Config.of(branch_threshold=p) for p in (0.1, 0.9))
    assert (aepo.should_branch(0.5, 0, 0, low), aepo.should_branch(0.5, 0, 0, high)) == (
        True,
        False,
    )
    low, high = (arpo.Config.of(branch_probability=p) for p in (0.1, 0.9))
    assert (arpo.should_branch(0.5, 0, low), arpo.should_branch(0.5, 0, high)) == (False, True)


def test_a_prompt_that_grows_is_counted_and_one_that_pauses_starts_over():
    tree, draw = new_tree(), random.Random(0)
    with_turns(tree, (1.0,))
    always, never = (
        aepo.Config.of(rollouts=3, initial_rollouts=1, branch_threshold=p) for p in (0.0, 1.1)
    )
    assert aepo.grow(tree, always, 10, draw, growing=2) == 3
    for branch in tree.branches:
        branch.turns.append(branch.turns[0])
    assert aepo.grow(tree, never, 10, draw, growing=3) == 0
    ended = new_tree()
    with_turns(ended, (1.0,), done=True)
    assert aepo.grow(ended, never, 10, draw, growing=0) == 1  # starting anew is growing too


class Played(Notes):
    """A run of one prompt whose rollouts have turns of one token each, of these entropies."""

    def __init__(self, *entropies):
        super().__init__()
        self.entropies = entropies
        self.rollouts = SimpleNamespace(tokenizer=range(10))

    def new_trees(self, tasks, roots):
        tree = new_tree()
        for _ in range(roots):
            tree.root()
        return [tree]

    def rollout(self, trees, after_turn=None):
        (tree,) = trees
        while running := [t for t in tree.trajectories if not t.done]:
            for t in running:
                entropy = self.entropies[len(t.turns)]
                t.turns.append(Turn(START, Completion((1,), (0.0,), (entropy,)), (2,)))
                t.done = len(t.turns) == len(self.entropies)
            if after_turn is not None:
                after_turn(trees)
        return trees

    def draw(self, name):
        return random.Random(0)


@pytest.mark.parametrize(
    ("entropies", "probed", "roots"),
    [
        ((50.0, 0.0), 6, 6),
        ((0.0, 0.0), 4, 4),
        ((0.0, 50.0), 1, 2),  # one rollout must run besides the probe
    ],
)
def test_the_probe_is_the_first_of_the_rollouts_it_decides_on(entropies, probed, roots):
    run, config = (
        Played(*entropies),
        aepo.Config.of(rollouts=6, initial_rollouts=1, branch_threshold=0.0),
    )
    (tree,) = aepo.sample_trees([None], run, config)
    assert run.notes["branch/initial_rollouts"] == [probed]
    assert len(tree.trajectories) == 6
    assert all(t.done for t in tree.trajectories)
    assert sum(t.parent is None for t in tree.trajectories[:roots]) == roots


def test_without_pre_monitoring_as_many_start_as_asked_for():
    config = aepo.Config.of(
        rollouts=6, pre_monitoring=False, initial_rollouts=2, branch_threshold=0.0
    )
    (tree,) = aepo.sample_trees([None], Played(1.0, 1.0, 1.0), config)
    assert [t.parent is None for t in tree.trajectories][:3] == [True, True, False]
    assert len(tree.trajectories) == 6


@pytest.mark.parametrize("rollouts", [1, 2])
def test_the_smallest_budgets_are_kept(rollouts):
    config = aepo.Config.of(rollouts=rollouts, initial_rollouts=1)
    (tree,) = aepo.sample_trees([None], Played(1.0, 1.0), config)
    assert len(tree.trajectories) == rollouts


def test_uncertain_tokens_weigh_more_by_all_rows_together():
    """Trained entropies 1, 2 and 3: mean 2, sample deviation 1; a tool's token counts nowhere."""
    entropies = [torch.tensor([1.0, 9.0, 2.0]), torch.tensor([3.0])]
    masks = [torch.tensor([True, False, True]), torch.tensor([True])]
    first, second = aepo.entropy_factors(entropies, masks, 0.2)
    assert first.tolist() == pytest.approx([0.8, 1.0, 1.0])
    assert second.tolist() == pytest.approx([1.2])


@pytest.mark.parametrize("entropies", [[0.7] * 5, [0.7]])
def test_equal_entropies_change_no_advantage(entropies):
    values = torch.tensor(entropies)
    (factors,) = aepo.entropy_factors([values], [torch.ones_like(values).bool()], 0.2)
    assert factors.tolist() == [1] * len(entropies)
    assert aepo.entropy_factors([], [], 0.2) == []
