"""Metrics are named and explained once: what a run writes is in the table, and back."""

import re

import pytest
import torch

from learners.metrics import METRICS, documented, main, tree_metrics
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
    "branch/initial_rollouts": "only where a probe decides",
    "branch/from_prompt": "only in the published code's profile",
    "advantage/no_term": "only where all rewards are equal",
    "update/without_rows": "only where nothing is learned",
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
"""Names that a run of the methods below need not write, and why."""


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
    unknown = sorted(name for name in written if documented(name) is None)
    assert not unknown, "give these a line in learners/metrics.py"


def test_every_explained_name_is_written(written):
    unused = METRICS.keys() - {documented(name) for name in written} - ELSEWHERE.keys()
    assert not unused, "no run writes these"


def test_names_are_an_area_and_a_word():
    for name in METRICS.keys() - {"iteration"}:
        assert re.fullmatch(r"[a-z]+/([a-z0-9]+(_[a-z0-9]+)*_?)?(<[a-z]+>)?", name), name


def test_the_readme_says_how_to_print_the_table(capsys):
    assert "python -m learners.metrics" in (ROOT / "README.md").read_text()
    main()
    assert capsys.readouterr().out.count("\n") == len(METRICS)


def test_a_name_falls_under_the_most_specific_entry():
    assert documented("reward/mean") == "reward/mean"
    assert documented("ledger/tool_calls_search") == "ledger/tool_calls_<tool>"
    assert documented("stop/answered") == "stop/<how>"
    assert documented("nothing/like_it") is None


def finish(branch, *ids):
    said = branch.prefill + Completion(ids, (0.0,) * len(ids), (0.0,) * len(ids))
    branch.turns.append(Turn(START, said, ()))
    branch.prefill = Completion()


def test_branches_that_say_the_same_are_not_diverse():
    """Root 1 2; branches at 1: 1 2 again, 1 9 twice, 1 8: of four, one is its own."""
    tree = new_tree()
    root = grow(tree, (2, 0), reward=1.0)
    for ids in ((2,), (9,), (9,), (8,)):
        finish(branch_off(tree, root, 1), *ids)
    found = tree_metrics([tree])
    assert found["branch/distinct"] == 0.25
    assert found["branch/diverged"] == 0.75
    assert found["branch/position"] == 0.5
    assert found["branch/branches"] == 4


def test_the_reward_variance_of_a_branch_point_counts_the_parent():
    """At 0: 1 with 0 and 0, variance 1/3. At 1: 1 with 1, variance 0. Mean 1/6."""
    tree = new_tree()
    root = grow(tree, (2, 0), reward=1.0)
    for position, reward in ((0, 0.0), (0, 0.0), (1, 1.0)):
        finish(branch_off(tree, root, position, reward), 7)
    assert tree_metrics([tree])["branch/reward_variance"] == pytest.approx(1 / 6)


def test_groups_of_equal_rewards_are_counted():
    trees = [tree_with([1, 1], [0, 1]), tree_with([1, 0], [1, 1])]
    found = tree_metrics(trees)
    assert found["group/equal"] == 0.5
    assert found["group/branches_equal"] == 0.5
    assert found["group/size"] == 4
    assert found["reward/mean"] == 0.75
    assert found["reward/std"] == 0.25
    assert (found["reward/min"], found["reward/max"]) == (0, 1)


def test_trees_without_their_tools_count_for_nothing_else():
    lost = tree_with([5, 5])
    lost.unavailable = "the plug is out"
    found = tree_metrics([lost, tree_with([1, 0])])
    assert found["tools/unavailable_trees"] == 1
    assert found["reward/mean"] == 0.5


def test_without_a_tree_there_is_little_to_say():
    assert tree_metrics([]) == {"branch/branches": 0, "tools/unavailable_trees": 0}


def test_the_first_reward_counts_only_what_a_prompt_began_with():
    """Two roots each; prompt 0 was given a third, a prompt drawn later began with none."""
    first, second, later = tree_with([1, 0, 0], []), tree_with([1, 1], [0]), tree_with([0, 0], [])
    first.initial_roots = second.initial_roots = 2
    found = tree_metrics([first, second, later])
    assert found["reward/first"] == 0.75
    assert found["reward/mean"] == pytest.approx(3 / 7)
    assert "reward/first" not in tree_metrics([later])
