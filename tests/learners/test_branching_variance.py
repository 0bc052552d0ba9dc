"""The measurement of APPO's variance claim: its arithmetic by hand, and one quick run."""

import json

import pytest
import torch

from learners import branching_variance
from learners.branching_variance import Point, Root, best_over_all, per_branch, ratio
from learners.errors import CommandError, UsageError
from learners.policy.policy import Policy
from tests.learners.test_methods import session_of
from tests.tree_fakes import branch_off, new_tree


def root_of(*variances, ranks=None, task="a"):
    """A root whose points have these variances, ranked in this order by default."""
    order = ranks or range(len(variances))
    points = [
        Point(v, 0.0, dict.fromkeys(("score", "entropy", "future"), rank))
        for v, rank in zip(variances, order, strict=True)
    ]
    return Root(task, points, True)


def test_equal_shares_give_the_mean_of_the_variances():
    assert per_branch(root_of(4.0, 1.0), "uniform") == pytest.approx(2.5)


def test_shares_by_rank_help_if_variance_falls_with_the_rank():
    """Two shares and one of three: (4 / (2/3) + 1 / (1/3)) / 4 = 9/4; the other way round 27/8."""
    assert per_branch(root_of(4.0, 1.0), "score") == pytest.approx(9 / 4)
    assert per_branch(root_of(4.0, 1.0, ranks=(1, 0)), "score") == pytest.approx(27 / 8)


def test_shares_in_proportion_to_the_deviation_are_optimal():
    """Deviations 2 and 1, as the shares above: the square of their mean, the theorem's bound."""
    assert per_branch(root_of(4.0, 1.0), "score") == pytest.approx(((2 + 1) / 2) ** 2)


def test_the_better_half_is_compared_with_all():
    assert best_over_all(root_of(4.0, 2.0, 1.0, 1.0), "score") == (3.0, 2.0)
    assert best_over_all(root_of(4.0, 2.0, 1.0, 1.0), "uniform") == (2.0, 2.0)


def test_a_ratio_is_of_sums_and_its_interval_is_over_tasks():
    roots = [root_of(4.0, 4.0, task=str(n)) for n in range(5)]
    one = ratio(roots, lambda _: 1.0, lambda _: 2.0)
    assert one == (0.5, 0.5, 0.5)
    mixed = ratio([root_of(1.0, task="a"), root_of(9.0, task="b")], first, lambda _: 5.0)
    assert mixed.value == 1.0
    assert (mixed.low, mixed.high) == (0.2, 1.8)


def first(root):
    return root.points[0].gradient_variance


def test_the_variance_of_gradients_is_that_of_their_vectors():
    """Gradients (3, 0) times 1 and (0, 4) times -1, none for the third: mean (1, -4/3).

    Squares 9 + 16, minus 3 times |mean|^2 = 3 times 25/9, over 2.
    """
    tree = new_tree()
    root = branchless(tree)
    branches = [branch_off(tree, root, 0, reward) for reward in (1.5, -0.5, 0.5)]
    vectors = iter([torch.tensor([3.0, 0.0]), torch.tensor([0.0, -4.0])])

    class Policy:
        @staticmethod
        def gradient(rows, weights, loss):
            return next(vectors)

    estimate = branching_variance.gradient_variance(Policy, branches, 0.5)
    assert estimate == pytest.approx((25 - 25 / 3) / 2)


def branchless(tree):
    from tests.tree_fakes import grow

    return grow(tree, (2, 0))


def test_a_gradient_is_what_an_update_would_follow_and_changes_nothing(taught):
    """Compared with autograd's, of the loss written out for one row."""
    torch.set_num_threads(1)
    session, _ = session_of(taught, "grpo")
    policy: Policy = session.policy
    trees = session.run.new_trees(session.tasks_of(0)[:1], roots=1)
    session.run.rollout(trees)
    (root,) = trees[0].roots
    mask = torch.tensor(root.response_mask)
    rows = [branching_variance_row(root)]
    before = [p.clone() for p in policy.model.parameters()]
    gradient = policy.gradient(rows, [mask.double() * 2], summed)
    ids = torch.tensor([[*root.prompt_ids, *root.response_ids]])
    logprobs = torch.log_softmax(policy.model(ids, use_cache=False).logits[0], -1)
    at = torch.arange(len(root.prompt_ids), ids.shape[1])
    (2 * logprobs[at - 1, ids[0, at]][mask].sum()).backward()
    expected = torch.cat([p.grad.flatten() for p in policy.model.parameters()])
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.model.parameters(), strict=True))


def branching_variance_row(root):
    from learners.tree import Row

    return Row(root, torch.zeros(len(root)))


def summed(logprobs, batch):
    return (logprobs * batch.weights).sum()


def quick(taught, out, *more):
    return [
        "--model", str(taught), "--quick", "--tools", "search", "calculator", "--threads", "1",
        "--max-response-tokens", "72", "--temperature", "1.4", "--out", str(out), *more,
    ]  # fmt: skip


def test_the_quick_setting_runs_and_prints_every_rule(taught, tmp_path, capsys):
    branching_variance.main(quick(taught, tmp_path, "--reward", "task"))
    output = capsys.readouterr().out
    for rule in branching_variance.RULES:
        assert rule in output
    written = json.loads((tmp_path / "branching_variance.json").read_text())
    assert written["config"]["quick"] is True
    assert 0 < len(written["roots"]) <= 12
    for root in written["roots"]:
        for rule in ("score", "entropy", "future"):
            ranks = sorted(point["ranks"][rule] for point in root["points"])
            assert ranks == list(range(len(ranks)))


def test_rewards_that_are_all_equal_are_an_error_that_says_what_to_do(taught, tmp_path, capsys):
    """The policy is never right, so no update moves it."""
    with pytest.raises(SystemExit) as ended:
        branching_variance.main(quick(taught, tmp_path, "--reward", "correctness"))
    assert ended.value.code == 2
    assert "earned the same, so no update moves the policy" in capsys.readouterr().err
    assert issubclass(UsageError, CommandError)
