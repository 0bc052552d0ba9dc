"""Mistakes of other implementations of these methods: a test each, or why it cannot occur."""

import math
import re
import sys

import pytest
import torch

from learners import dapo, gigpo, reinforce_pp, tree_grpo
from learners.policy.batch import collate
from learners.rl.advantages import leave_one_out, normalise, normalise_groups
from learners.rl.losses import mismatch_weights, sequence_mean, sequence_sum, token_mean
from learners.tree import Row
from tests.learners import test_traps_methods
from tests.tree_fakes import grow, new_tree, tree_with

CANNOT = {
    8: "the code that writes a token writes its mask; no end token is searched for",
    9: "a reward is a number of the trajectory, on no token; tools' results never reach the reward",
    11: "padding is on the right and exists only inside an update",
    12: "past the limit the environment says so in an observation, masked; no token is written",
    13: "observations are encoded with add_special_tokens=False; test_rollout.py has the ids",
    14: "sampled ids are kept, nothing decoded is encoded again; test_rollout.py compares them",
    15: "a turn ends with the token that completes a tag, whole; sampling tests fork at each",
    27: "minibatch_prompts counts prompts, and only prompts",
    29: "it is the rule of ARPO and AEPO, so it stays: rl/branching.py says so",
    30: "there is one branching rule, and `beam` is an int",
    32: "it is ARPO's way, so it stays: every row trains its prefix, and every copy counts",
}
"""By number: the reason why it cannot occur, or is on purpose."""


def nothing(rows):
    """Rows that count in a mean and have no gradient."""
    return bool(rows) and not any(row.advantages.any() for row in rows)


def test_trap_1_a_group_of_one_is_nothing_everywhere():
    alone = torch.tensor([3.0], dtype=torch.float64)
    assert not normalise(alone).any()
    assert not leave_one_out(alone).any()
    assert not gigpo.step_advantages(alone, [0], "std").any()
    assert nothing(normalise_groups([tree_with([3.0])]))
    assert nothing(gigpo.credit_trajectories([tree_with([3.0])], gigpo.Config()))
    assert not tree_grpo.leaf_advantages([alone]).any()


@pytest.mark.parametrize("reward", [0.7, 0.1, 1 / 3])
def test_trap_2_equal_rewards_are_exactly_nothing(reward):
    assert not normalise(torch.tensor([reward] * 8, dtype=torch.float32)).any()
    assert nothing(normalise_groups([tree_with([reward] * 8)]))


def test_trap_3_the_deviation_is_the_samples_and_its_floor_is_1e_6():
    """For 1 and 0: the sample's sqrt(1/2), the population's 1/2; DAPO needs none for equal scores.

    A floor of 1e-4 would show in the fourth digit.
    """
    advantages = normalise(torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert advantages.tolist() == pytest.approx([0.5 / (0.5**0.5 + 1e-6), -0.5 / (0.5**0.5 + 1e-6)])
    assert advantages[0] == pytest.approx(0.7071058, abs=1e-7)
    assert not dapo.is_informative([0.7] * 8)


def test_trap_4_episodes_count_once_however_many_turns_they_have():
    """Without step credit, as GRPO: a long episode weighs no more than a short one."""
    tree = new_tree()
    grow(tree, *[(1, 1)] * 7, (1, 0), reward=1.0)
    grow(tree, (1, 0))
    advantages = gigpo.tree_advantages(tree, gigpo.Config.of(step_weight=0.0))
    expected = [row.advantages for row in normalise_groups([tree])]
    assert all(torch.allclose(a, b) for a, b in zip(advantages, expected, strict=True))


def test_trap_5_reinforce_pp_normalises_over_the_batch():
    """Two prompts, each of equal rewards: nothing within a prompt, something between them."""
    trees = [tree_with([1.0, 1.0]), tree_with([0.0, 0.0])]
    assert nothing(normalise_groups(trees))
    assert len(reinforce_pp.normalise_batch(trees, reinforce_pp.Config())) == 4


def test_trap_6_a_turn_before_a_tools_result_keeps_its_return():
    tree = new_tree()
    grow(tree, (2, 3), (1, 0), reward=1.0)
    grow(tree, (1, 0))
    long, _ = reinforce_pp.normalise_batch([tree], reinforce_pp.Config())
    assert long.advantages[0] == long.advantages[-1] > 0


@pytest.mark.parametrize("weighting", [sequence_mean, token_mean, sequence_sum])
def test_trap_7_what_tools_said_weighs_nothing(weighting):
    (weights,) = weighting([torch.tensor([True, False, False, True])])
    assert weights[1] == weights[2] == 0
    assert weights[0] == weights[3] > 0


def test_trap_7_whitening_counts_sampled_tokens_only():
    tree = new_tree()
    grow(tree, (1, 50), (1, 0), reward=1.0)
    grow(tree, (2, 0))
    long, short = reinforce_pp.normalise_batch([tree], reinforce_pp.Config())
    assert float(long.advantages[0]) == pytest.approx(-float(short.advantages[0]))
    assert not long.advantages[1:51].any()


def test_trap_7_attention_is_not_the_trained_mask():
    """Every later token attends to observed tokens, and none to padding."""
    tree = new_tree()
    rows = [Row(grow(tree, *turns), torch.ones(5)) for turns in (((2, 2), (1, 0)), ((5, 0),))]
    batch = collate([*rows, Row(grow(tree, (1, 0)), torch.ones(1))])
    assert batch.attention_mask.tolist() == [[1] * 7, [1] * 7, [1] * 3 + [0] * 4]
    assert batch.response_mask[0].tolist() == [False, False, True, True, False, False, True]


@pytest.mark.parametrize("weighting", [sequence_mean, token_mean, sequence_sum])
def test_trap_10_a_row_without_a_token_is_no_nan(weighting):
    weights = weighting([torch.tensor([False, False]), torch.tensor([True, True])])
    assert torch.isfinite(torch.stack(weights)).all()
    assert not weights[0].any()


def test_trap_16_a_mismatch_weight_of_one_token_says_nothing_of_the_row():
    ratio = torch.tensor([[math.log(100.0)] + [0.0] * 9])
    weights = mismatch_weights(ratio, torch.ones_like(ratio, dtype=torch.bool), 2.0)
    assert weights[0].tolist() == pytest.approx([2.0] + [1.0] * 9)


def test_every_trap_has_a_test_or_a_reason():
    modules = (sys.modules[__name__], test_traps_methods)
    names = " ".join(n for m in modules for n in vars(m) if n.startswith("test_trap_"))
    tested = {int(number) for number in re.findall(r"test_trap_(\d+)_", names)}
    assert tested | CANNOT.keys() == set(range(1, 34))
    assert not tested & CANNOT.keys()
