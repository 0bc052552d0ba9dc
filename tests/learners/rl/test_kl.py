"""The KL penalty in the reward: by hand, against finite differences, in whole iterations."""

from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import combinations_with_replacement, product
from math import factorial, prod

import pytest
import torch

from learners import reinforce_pp, rloo
from learners.config import RunConfig
from learners.errors import RolloutFileError, UsageError
from learners.policy.batch import collate
from learners.policy.loading import load_model
from learners.policy.policy import Policy
from learners.policy.reference import FrozenPolicy, make_reference
from learners.replay.__main__ import replay, update_rows
from learners.rl.advantages import credit_groups, leave_one_out
from learners.rl.kl import penalised_reward, token_penalties
from learners.rl.losses import sequence_sum
from learners.rollouts.storage import read_rows, write_rollouts
from learners.runs.session import run_iteration
from learners.tree import Row
from tests.learners.test_methods import session_of
from tests.learners.test_policy_gradient import LOGITS, REWARDS, alike, logprobs_of, old_logprobs
from tests.method_fakes import RUNS
from tests.tree_fakes import grow, new_tree

METHODS = (reinforce_pp, rloo)
BETA = 0.5
REFERENCE = torch.tensor([[-0.6, 0.4], [0.1, 0.3], [0.7, -0.5]], dtype=torch.float64)
"""Logits of the reference policy, laid out as LOGITS."""


def two_turns(reward=1.0):
    """Two sampled tokens, a result, one sampled token; k1 of them is 0.5, -1 and 0."""
    tree = new_tree()
    root = grow(tree, (2, 1), (1, 0), reward=reward)
    root.old_logprobs = torch.tensor([-1.0, -2.0, 0.0, -0.5])
    root.reference_logprobs = torch.tensor([-1.5, -1.0, -9.0, -0.5])
    return tree


def test_a_token_earns_less_the_likelier_it_is_than_under_the_reference():
    """0.1 times 0.5 and -1; what the tool said costs nothing, however unlikely it is."""
    (root,) = two_turns().roots
    assert token_penalties(root, 0.1).tolist() == pytest.approx([0.05, -0.1, 0.0, 0.0])
    assert penalised_reward(root, 0.1) == pytest.approx(1.05)
    assert not token_penalties(root, 0.0).any()


def test_a_penalty_of_nothing_needs_no_reference():
    (root,) = two_turns().roots
    root.reference_logprobs = None
    assert penalised_reward(root, 0.0) == 1.0
    with pytest.raises(AssertionError, match="remember_reference_logprobs before credit"):
        token_penalties(root, 0.1)


@pytest.mark.parametrize(
    ("discount", "expected"), [(1.0, [1.05, 1.1, 0.0, 1.0]), (0.5, [0.25, 0.6, 0.0, 1.0])]
)
def test_the_return_of_reinforce_pp_has_the_penalties_that_follow(discount, expected):
    """1; 0.1 + gamma; -0.05 + gamma that. With gamma 1/2: 1, 0.6, 0.25."""
    config = reinforce_pp.Config.of(kl_reward=0.1, discount=discount)
    (returns,) = reinforce_pp.token_returns(two_turns(), config)
    assert returns.tolist() == pytest.approx(expected)


def test_the_baseline_is_the_mean_of_rewards_without_the_penalty():
    """Rewards 1 and 0, mean 1/2; the second rollout is as likely as under the reference."""
    tree = two_turns()
    plain = grow(tree, (1, 0), reward=0.0)
    plain.old_logprobs = plain.reference_logprobs = torch.tensor([-1.0])
    config = reinforce_pp.Config.of(kl_reward=0.1, baseline="group")
    first, second = reinforce_pp.token_returns(tree, config)
    assert first.tolist() == pytest.approx([0.55, 0.6, 0.0, 0.5])
    assert second.tolist() == pytest.approx([-0.5])


def test_rloo_compares_rewards_less_the_penalty_of_the_rollout():
    """Rewards 1.05 and 0: each differs from the other by 1.05."""
    tree = two_turns()
    plain = grow(tree, (1, 0), reward=0.0)
    plain.old_logprobs = plain.reference_logprobs = torch.tensor([-1.0])
    rows = credit_groups([tree], leave_one_out, partial(penalised_reward, coefficient=0.1))
    assert rows[0].advantages.tolist() == pytest.approx([1.05] * 4)
    assert rows[1].advantages.tolist() == pytest.approx([-1.05])


def true_objective(logits):
    """E[R] - beta KL(policy || reference) over all trajectories."""
    total = 0.0
    for path, reward in REWARDS.items():
        logprob = logprobs_of(logits, path).sum()
        divergence = logprob - logprobs_of(REFERENCE, path).sum()
        total += float(logprob.exp() * (reward - BETA * divergence))
    return total


def true_gradient(step=1e-6):
    gradient = torch.zeros_like(LOGITS)
    for index in product(range(3), range(2)):
        moved = torch.zeros_like(LOGITS)
        moved[index] = step
        difference = true_objective(LOGITS + moved) - true_objective(LOGITS - moved)
        gradient[index] = difference / (2 * step)
    return gradient


def tree_of(paths):
    """A prompt's rollouts, a tool's result after the first token of each."""
    tree = new_tree()
    for path in paths:
        root = grow(tree, (1, 1), (1, 0), reward=REWARDS[path])
        root.old_logprobs = old_logprobs(path)
        first, second = logprobs_of(REFERENCE, path)
        root.reference_logprobs = torch.stack([first, torch.tensor(-3.0), second])
    return tree


def gradient(rows, paths, weigh=sequence_sum):
    """Minus the gradient of -A log pi, by autograd."""
    logits = LOGITS.clone().requires_grad_()
    rows = [row._replace(advantages=row.advantages.double()) for row in rows]
    batch = collate(rows, weights=weigh([torch.tensor(r.trajectory.response_mask) for r in rows]))
    now = torch.zeros(batch.token_ids.shape, dtype=torch.float64)
    for line, path in enumerate(paths):
        now[line, [2, 4]] = logprobs_of(logits, path)
    rloo.policy_loss(now, batch).backward()
    return -logits.grad


def expected(credit, rollouts):
    """Expected gradient over all groups of this many rollouts."""
    total = torch.zeros_like(LOGITS)
    for paths in product(REWARDS, repeat=rollouts):
        chance = sum(logprobs_of(LOGITS, path).sum() for path in paths).exp()
        total += chance * gradient(credit(tree_of(paths)), paths)
    return total


def test_rloo_climbs_the_expected_reward_minus_the_divergence():
    """Exactly, and in another direction than the expected reward alone."""
    reward = partial(penalised_reward, coefficient=BETA)
    ours = expected(lambda tree: credit_groups([tree], leave_one_out, reward), 2)
    torch.testing.assert_close(ours, true_gradient(), rtol=1e-5, atol=1e-8)
    plain = expected(lambda tree: credit_groups([tree], leave_one_out), 2)
    assert alike(plain, true_gradient()) < 0.9


@pytest.mark.parametrize(("baseline", "rollouts"), [("none", 1), ("group", 2)])
def test_the_returns_of_reinforce_pp_climb_it_too(baseline, rollouts):
    """Before whitening. A mean that holds the rollout itself leaves (n - 1) / n of the reward's."""
    config = reinforce_pp.Config.of(kl_reward=BETA, baseline=baseline)

    def credit(tree, config=config):
        pairs = zip(tree.roots, reinforce_pp.token_returns(tree, config), strict=True)
        return [Row(trajectory, returns) for trajectory, returns in pairs]

    ours = expected(credit, rollouts)
    if baseline == "group":
        free = reinforce_pp.Config.of(baseline="group")
        ours = ours + expected(partial(credit, config=free), rollouts)
    torch.testing.assert_close(ours, true_gradient(), rtol=1e-5, atol=1e-8)


def expected_of_eight(config):
    """Expected gradient over groups of eight; whitening does not depend on their order."""
    total = torch.zeros_like(LOGITS)
    for paths in combinations_with_replacement(REWARDS, 8):
        orders = factorial(8) / prod(factorial(count) for count in Counter(paths).values())
        chance = orders * sum(logprobs_of(LOGITS, path).sum() for path in paths).exp()
        rows = reinforce_pp.normalise_batch([tree_of(paths)], config)
        total += chance * gradient(rows, paths)
    return total


def test_whitened_returns_climb_it_nearly():
    """Each group is divided by its own deviation: nearer the more rollouts there are."""
    ours, true = expected_of_eight(reinforce_pp.Config.of(kl_reward=BETA)), true_gradient()
    assert alike(ours, true) > 0.98
    assert alike(expected_of_eight(reinforce_pp.Config()), true) < 0.9


class Counting(FrozenPolicy):
    """Counts the trajectories it is asked about."""

    asked = 0

    def logprobs(self, trajectories):
        self.asked += len(trajectories)
        return super().logprobs(trajectories)


def iterated(monkeypatch, taught, module, beta, iterations=2):
    """Run iterations with the penalty; return the session, its reference and the metrics."""
    monkeypatch.setitem(RUNS, "here", (module, {"rollouts": 6, "kl_reward": beta}))
    session, iteration = session_of(taught, "here")
    frozen = Counting(Policy(load_model(str(taught)), learning_rate=0.0))
    session.trainer.reference, lines = frozen, []
    for _ in range(iterations):
        lines.append(run_iteration(session, iteration))
        session.iteration += 1
    return session, frozen, lines


@pytest.mark.parametrize("module", METHODS)
def test_a_run_asks_its_reference_once_per_rollout_and_reports_the_penalty(
    monkeypatch, taught, module
):
    """0 in the first iteration, in which the policy is its reference; not 0 in the second."""
    torch.set_num_threads(1)
    session, frozen, (first, second) = iterated(monkeypatch, taught, module, 1.0)
    assert frozen.asked == 2 * 3 * 6
    assert first["reward/kl_penalty"] == pytest.approx(0.0, abs=1e-5)
    assert abs(second["reward/kl_penalty"]) > 1e-3
    assert second["policy/kl_reference"] > 0
    other, unasked, (one, two) = iterated(monkeypatch, taught, module, 0.0)
    assert unasked.asked == 0
    assert "reward/kl_penalty" not in two
    assert one["reward/mean"] == first["reward/mean"]
    weights = [
        torch.cat([p.flatten() for p in s.policy.model.parameters()]) for s in (session, other)
    ]
    assert not torch.allclose(*weights)


@pytest.mark.parametrize("module", METHODS)
def test_a_replay_subtracts_the_penalty_that_the_run_subtracted(
    monkeypatch, taught, tmp_path, module
):
    """From stored log-probabilities; a run without a reference has none."""
    torch.set_num_threads(1)
    session, _, _ = iterated(monkeypatch, taught, module, 1.0)
    write_rollouts(tmp_path, 1, session.run.trees, session.policy.loaded.tokenizer)
    rows = read_rows(tmp_path, 1)
    free = replay(rows, module.__name__, replace(session.config, kl_reward=0.0))
    again = replay(rows, module.__name__, session.config)
    new = [row["advantages"] for row in update_rows(rows, again.trees)]
    assert any(new)
    for old, advantages in zip(rows, new, strict=True):
        assert advantages == pytest.approx(old["advantages"], abs=1e-5)
    assert [row["advantages"] for row in update_rows(rows, free.trees)] != new
    without = [dict(row) | {"reference_logprobs": None} for row in rows]
    with pytest.raises(RolloutFileError, match="the run had neither --kl nor --kl-reward"):
        replay(without, module.__name__, session.run.config)


def test_a_run_with_the_penalty_opens_a_reference_and_one_without_does_not():
    assert rloo.Config.of(kl_reward=0.1).has_reference
    assert reinforce_pp.Config.of(kl=0.1).has_reference
    assert not rloo.Config().has_reference
    assert not RunConfig().has_reference
    assert make_reference(rloo.Config(), None) is None
    for options in ({"kl_reward": 0.1}, {"kl": 0.1}):
        reference = make_reference(rloo.Config.of(model="tiny", **options), None)
        (logprobs,) = reference.logprobs(two_turns().roots)
        assert logprobs.shape == (4,)
        assert not any(p.requires_grad for p in reference._policy.model.parameters())


@pytest.mark.parametrize("module", METHODS)
def test_a_reward_for_leaving_the_reference_is_refused(module):
    with pytest.raises(UsageError, match=r"--kl-reward -0\.1 is below 0"):
        module.Config.of(kl_reward=-0.1).validate()
