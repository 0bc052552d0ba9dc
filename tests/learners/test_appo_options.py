"""APPO's ablations and options: each changes what its name says, in whole iterations too."""

import pytest
import torch

from learners import appo
from learners.rl import branching
from learners.rl.losses import sequence_mean
from learners.runs.session import run_iteration
from tests.learners.test_methods import session_of
from tests.method_fakes import RUNS, TREE
from tests.tree_fakes import Notes, stats_of, tree_with

OPTIONS = {
    "entropy": {"branching": "entropy"},
    "future": {"branching": "future"},
    "random": {"branching": "random"},
    "tool": {"branching": "tool"},
    "no future": {"future_weight": 0.0},
    "one group": {"groups": "one"},
    "branches trained": {"train_branches": True},
    "pooled": {"pool": "task"},
    "token kept": {"prefix": "through"},
    "layers": {"layers": 2},
    "all": {"layers": 2, "train_branches": True, "prefix": "through", "pool": "task"},
}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def iterated(monkeypatch, taught, options):
    """One iteration of appo with options: its run and metrics."""
    monkeypatch.setitem(RUNS, "here", (appo, {**TREE, **options}))
    session, iteration = session_of(taught, "here")
    metrics = run_iteration(session, iteration)
    return session.run, metrics


@pytest.mark.parametrize("name", OPTIONS)
def test_an_iteration_fills_every_budget_and_moves_the_weights(monkeypatch, taught, name):
    run, metrics = iterated(monkeypatch, taught, OPTIONS[name])
    assert metrics["update/steps"] >= 1
    assert metrics["update/skipped"] == 0
    for tree in run.trees:
        assert (len(tree.trajectories), len(tree.roots)) == (6, 2)
        assert all(one.done for one in tree.trajectories)
        for branch in tree.branches:
            parent, position, _ = branch.parent
            assert branch.response_ids[:position] == parent.response_ids[:position]
            assert parent.response_mask[position]
            assert len(branch) > position


def test_branches_of_branches_are_made_layer_by_layer(monkeypatch, taught):
    """N 2, M 6, L 2: 2 grow to 2 sqrt(3), which is 3, then to 6."""
    run, _ = iterated(monkeypatch, taught, {"layers": 2})
    depths = [len(one.path) // 2 for tree in run.trees for one in tree.trajectories]
    assert max(depths) == 2
    for tree in run.trees:
        for branch in tree.branches:
            source, position, _ = branch.parent
            if source.parent is not None:
                assert position >= source.parent.position, "its own tokens, not its parent's"


def test_at_tool_boundaries_branches_leave_after_a_result_or_at_the_prompt(monkeypatch, taught):
    run, _ = iterated(monkeypatch, taught, {"branching": "tool"})
    points = [b.parent for tree in run.trees for b in tree.branches]
    assert points
    for source, position, _ in points:
        assert position == 0 or not source.response_mask[position - 1]


@pytest.mark.parametrize("trained", [False, True])
def test_branches_are_trained_on_only_when_asked_to(monkeypatch, taught, trained):
    """Roots count once, branches by the tokens that they did not share."""
    run, metrics = iterated(monkeypatch, taught, {"train_branches": trained, "groups": "one"})
    tokens = 0
    for tree in run.trees:
        if len({one.reward for one in tree.trajectories}) > 1:
            for one in tree.trajectories if trained else tree.roots:
                tokens += len(branching.own_tokens(one))
    assert metrics["ledger/trained_tokens"] == tokens > 0


def credit(tree, **options):
    stats = {one: stats_of(one) for one in tree.roots}
    for branch in tree.branches:
        branch.old_logprobs = torch.zeros(len(branch))
        stats[branch] = stats_of(branch)
    rows = appo.procedure_advantages(tree, stats, appo.Config.of(**options), Notes())
    return [(row.trajectory, row.advantages.tolist()) for row in rows]


def test_one_group_standardises_roots_among_all_trajectories():
    """Rewards 1 and 0 of roots, 0 and 0 of branches: mean 1/4, deviation sqrt(3)/4."""
    tree = tree_with([1, 0], [0, 0])
    rows = credit(tree, groups="one", future_weight=0.0)
    assert [one for one, _ in rows] == tree.roots
    assert [advantages[0] for _, advantages in rows] == pytest.approx([3**0.5, -(3**-0.5)])


def test_dual_groups_standardise_the_same_reward_twice():
    """T_init 1, 0: +-1. T_branch 1, 0.5: mean .75, deviation .25: 1 is +1, 0 is -3."""
    tree = tree_with([1, 0], [1, 0.5])
    rows = credit(tree, future_weight=0.0)
    assert [advantages[0] for _, advantages in rows] == pytest.approx([1.0, -2.0])


def test_without_the_future_term_the_advantage_is_the_base():
    """Omega is 1, so the term multiplies by 1 + b."""
    tree = tree_with([1, 0], [1, 0.5])
    plain, weighed = credit(tree, future_weight=0.0), credit(tree, future_weight=0.5)
    assert [a[0] for _, a in weighed] == pytest.approx([1.5 * a[0] for _, a in plain])


def test_trained_branches_are_credited_as_roots_are():
    tree = tree_with([1, 0], [1, 0.5])
    rows = credit(tree, future_weight=0.0, train_branches=True)
    assert [one for one, _ in rows] == tree.trajectories
    values = [advantages[0] if advantages else None for _, advantages in rows]
    assert values[:2] == pytest.approx([1.0, -2.0])
    assert values[2] == pytest.approx(1.0)


def test_the_divisor_of_eq_8_is_m_whichever_rows_are_trained():
    """Two rows of one tree with M 4: each token weighs 1 / (4 |H_n|)."""
    masks = [torch.tensor([True, True, False]), torch.tensor([True])]
    weights = sequence_mean(masks, 4)
    assert [w.tolist() for w in weights] == [[1 / 8, 1 / 8, 0.0], [1 / 4]]
