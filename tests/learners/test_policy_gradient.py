"""Every method's gradient against finite differences of the expected reward, by enumeration.

Two tokens with a tool's result between them: four trajectories, sixteen groups of two. The expected
gradient of a method is the sum over all groups of their probability times their gradient. Methods
that branch have a second list: two rollouts, and two branches of the first after the tool's result.
"""

from itertools import product

import pytest
import torch

from learners.policy.batch import collate
from tests.method_fakes import METHODS, TRAINED_BRANCHES, fork_after, loss_of
from tests.tree_fakes import grow, new_tree

REWARDS = {(0, 0): 1.0, (0, 1): 0.0, (1, 0): 0.25, (1, 1): -1.0}
LOGITS = torch.tensor([[0.3, -0.2], [0.5, 0.1], [-0.4, 0.2]], dtype=torch.float64)
"""Logits of the first token, of the second after 0, of the second after 1."""
EXACT = {"rloo": 1.0, "dr_grpo": 1 / 2 / 64}
"""Unbiased methods: the factor of their gradient over that of the expected reward."""


def logprobs_of(logits, path):
    """(2,) of the sampled tokens."""
    table = torch.log_softmax(logits, -1)
    return torch.stack([table[0, path[0]], table[1 + path[0], path[1]]])


def expected_reward(logits):
    return sum(float(logprobs_of(logits, p).sum().exp()) * r for p, r in REWARDS.items())


def true_gradient(step=1e-6):
    gradient = torch.zeros_like(LOGITS)
    for index in product(range(3), range(2)):
        moved = torch.zeros_like(LOGITS)
        moved[index] = step
        difference = expected_reward(LOGITS + moved) - expected_reward(LOGITS - moved)
        gradient[index] = difference / (2 * step)
    return gradient


def old_logprobs(path):
    """(3,) with the tool's result between."""
    before = logprobs_of(LOGITS, path)
    return torch.stack([before[0], torch.tensor(0.0), before[1]])


def group_gradient(method, paths, branches=()):
    """Minus the gradient of the loss of one group; branches are paths that begin as the first."""
    _, advantages, weighting = METHODS[method]
    tree, logits = new_tree(), LOGITS.clone().requires_grad_()
    path_of = {}
    for path in paths:
        root = grow(tree, (1, 1), (1, 0), reward=REWARDS[path])
        path_of[root] = path
    for path in branches:
        branch = fork_after(tree, tree.roots[0], 1, (1, 0), reward=REWARDS[path])
        path_of[branch] = path
    for trajectory, path in path_of.items():
        trajectory.old_logprobs = old_logprobs(path)
    rows = advantages([tree])
    if not rows:
        return torch.zeros_like(LOGITS)
    rows = [row._replace(advantages=row.advantages.double()) for row in rows]
    weights = weighting([torch.tensor(row.trajectory.response_mask) for row in rows])
    batch = collate(rows, weights=weights)
    now = torch.zeros(batch.token_ids.shape, dtype=torch.float64)
    for line, row in enumerate(rows):
        now[line, [2, 4]] = logprobs_of(logits, path_of[row.trajectory])
    loss_of(method)(now, batch).backward()
    return -logits.grad


def expected_gradient(method):
    total = torch.zeros_like(LOGITS)
    for paths in product(REWARDS, repeat=2):
        chance = sum(logprobs_of(LOGITS, path).sum() for path in paths).exp()
        total += chance * group_gradient(method, paths)
    return total


def expected_gradient_with_branches(method):
    total = torch.zeros_like(LOGITS)
    for first, second, *ends in product(REWARDS, REWARDS, (0, 1), (0, 1)):
        branches = [(first[0], end) for end in ends]
        logs = [logprobs_of(LOGITS, path).sum() for path in (first, second)]
        logs += [logprobs_of(LOGITS, path)[1] for path in branches]
        total += sum(logs).exp() * group_gradient(method, (first, second), branches)
    return total


def alike(ours, true):
    return torch.nn.functional.cosine_similarity(ours.flatten(), true.flatten(), dim=0)


@pytest.mark.parametrize("method", METHODS)
def test_the_expected_gradient_climbs_the_expected_reward(method):
    assert alike(expected_gradient(method), true_gradient()) > 0.9


@pytest.mark.parametrize("method", ["appo paper", *TRAINED_BRANCHES])
def test_with_branches_it_climbs_too(method):
    """In every state; branches share the first token, so that the direction leans to the second."""
    ours, true = expected_gradient_with_branches(method), true_gradient()
    assert (ours * true > 0).all()
    assert alike(ours, true) > 0.75


@pytest.mark.parametrize("method", EXACT)
def test_an_unbiased_method_has_the_gradient_of_the_expected_reward(method):
    true = true_gradient()
    torch.testing.assert_close(
        expected_gradient(method), EXACT[method] * true, rtol=1e-5, atol=1e-9
    )
