"""Metrics are named and explained once: the table has what a run writes, and nothing else."""

import re

import pytest
import torch

from learners.metrics import METRICS, compute_tree_metrics, find_entry, main
from learners.runs.session import run_iteration
from learners.tree import Completion, Turn
from tests.conftest import ROOT
from tests.learners.test_methods import session_of
from tests.method_fakes import RUNS
from tests.tree_fakes import START, branch_off, grow, new_tree, tree_with

ELSEWHERE = {
    "iteration": "learners/runs/training.py puts it first",
    "validation/score": "tests/learners/runs/test_evaluation.py",
    "validation/reward": "tests/learners/runs/test_evaluation.py",
    "policy/kl_reference": "tests/learners/rl/test_objective.py",
    "reward/kl_penalty": "tests/learners/rl/test_kl.py",
    "policy/sampler_correction": "tests/learners/test_rivals.py",
    "branch/initial_rollouts": "only if a probe decides",
    "branch/from_prompt": "only with the formulas of the published code",
    "advantage/no_term": "only if all rewards are equal",
    "update/without_rows": "only if a mini-batch has no row",
    "tools/unavailable_after_<calls>": "tests/learners/test_commands.py",
    "ledger/retries": "tests/learners/runs/test_counters.py",
    "ledger/free_calls": "tests/learners/test_ledger.py",
    "ledger/free_calls_<tool>": "tests/learners/test_ledger.py",
    "ledger/judge_calls": "tests/learners/runs/test_judging.py",
    "ledger/judge_cached": "tests/learners/runs/test_judging.py",
    "ledger/judge_faults": "tests/learners/runs/test_judging.py",
    "ledger/cost": "tests/learners/test_ledger.py",
    "ledger/lost_tokens": "tests/learners/runs/test_resume.py",
    "ledger/lost_calls": "tests/learners/runs/test_resume.py",
    "ledger/lost_judge_calls": "tests/learners/test_ledger.py",
}
"""Names that no run below has to write, with the reason or the test that covers them."""


@pytest.fixture(scope="module")
def written(taught):
    """Every name that an iteration of every method writes."""
    torch.set_num_threads(1)
    names = set()
    for method in RUNS:
        session, iteration = session_of(taught, method)
        names |= run_iteration(session, iteration).keys()
    return names


def test_every_name_that_a_run_writes_is_explained(written):
    unknown = sorted(name for name in written if find_entry(name) is None)
    assert not unknown, "give these a line in learners/metrics.py"


def test_every_explained_name_is_written(written):
    unused = METRICS.keys() - {find_entry(name) for name in written} - ELSEWHERE.keys()
    assert not unused, "no run writes these"


def test_names_are_an_area_and_a_word():
    for name in METRICS.keys() - {"iteration"}:
        assert re.fullmatch(r"[a-z]+/([a-z0-9]+(_[a-z0-9]+)*_?)?(<[a-z]+>)?", name), name


def test_the_readme_says_how_to_print_the_table(capsys):
    assert "python -m learners.metrics" in (ROOT / "README.md").read_text()
    main()
    assert capsys.readouterr().out.count("\n") == len(METRICS)


def test_a_name_falls_under_the_most_specific_entry():
    assert find_entry("reward/mean") == "reward/mean"
    assert find_entry("ledger/tool_calls_search") == "ledger/tool_calls_<tool>"
    assert find_entry("stop/answered") == "stop/<how>"
    assert find_entry("nothing/like_it") is None


def finish(branch, *ids):
    completion = branch.prefill + Completion(ids, (0.0,) * len(ids), (0.0,) * len(ids))
    branch.turns.append(Turn(START, completion, ()))
    branch.prefill = Completion()


def test_branches_that_write_the_same_are_not_distinct():
    """Root 1 2; branches at 1: 1 2 again, 1 9 twice, 1 8: one of four equals no other."""
    tree = new_tree()
    root = grow(tree, (2, 0), reward=1.0)
    for ids in ((2,), (9,), (9,), (8,)):
        finish(branch_off(tree, root, 1), *ids)
    metrics = compute_tree_metrics([tree])
    assert metrics["branch/distinct"] == 0.25
    assert metrics["branch/diverged"] == 0.75
    assert metrics["branch/position"] == 0.5
    assert metrics["branch/branches"] == 4


def test_the_reward_variance_of_a_branch_point_counts_the_parent():
    """At 0: 1 with 0 and 0, variance 1/3. At 1: 1 with 1, variance 0. Mean 1/6."""
    tree = new_tree()
    root = grow(tree, (2, 0), reward=1.0)
    for position, reward in ((0, 0.0), (0, 0.0), (1, 1.0)):
        finish(branch_off(tree, root, position, reward), 7)
    assert compute_tree_metrics([tree])["branch/reward_variance"] == pytest.approx(1 / 6)


def test_groups_of_equal_rewards_are_counted():
    trees = [tree_with([1, 1], [0, 1]), tree_with([1, 0], [1, 1])]
    metrics = compute_tree_metrics(trees)
    assert metrics["group/equal"] == 0.5
    assert metrics["group/branches_equal"] == 0.5
    assert metrics["group/size"] == 4
    assert metrics["reward/mean"] == 0.75
    assert metrics["reward/std"] == 0.25
    assert (metrics["reward/min"], metrics["reward/max"]) == (0, 1)


def test_trees_whose_tools_failed_are_counted_and_left_out():
    lost = tree_with([5, 5])
    lost.unavailable = "the plug is out"
    metrics = compute_tree_metrics([lost, tree_with([1, 0])])
    assert metrics["tools/unavailable_trees"] == 1
    assert metrics["reward/mean"] == 0.5


def test_without_trees_only_counts_are_written():
    assert compute_tree_metrics([]) == {"branch/branches": 0, "tools/unavailable_trees": 0}


def test_the_first_reward_counts_only_what_a_prompt_began_with():
    """Two roots each; prompt 0 got a third, a prompt drawn later began with none."""
    first, second, later = tree_with([1, 0, 0], []), tree_with([1, 1], [0]), tree_with([0, 0], [])
    first.initial_roots = second.initial_roots = 2
    metrics = compute_tree_metrics([first, second, later])
    assert metrics["reward/first"] == 0.75
    assert metrics["reward/mean"] == pytest.approx(3 / 7)
    assert "reward/first" not in compute_tree_metrics([later])
