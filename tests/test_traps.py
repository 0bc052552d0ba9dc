"""What other implementations of these methods get wrong: a test each, or why it cannot occur."""

import inspect
import math
import re
import sys
from types import SimpleNamespace

import pytest
import torch

from learners import arpo, cispo, dapo, dr_grpo, gigpo, gppo, grpo, gspo, reinforce_pp, rloo
from learners.advantages import group_normalised, leave_one_out, normalised
from learners.batch import pack
from learners.losses import (
    clipped_surrogate,
    kl_k3,
    mismatch_weights,
    sequence_mean,
    sequence_sum,
    token_mean,
)
from learners.tree import Row
from tests.tree_fakes import grow, new_tree, tree_with

CANNOT = {
    3: "one floor, 1e-6, and the sample deviation in one function; DAPO's filter has no deviation",
    8: "whoever writes a token writes its mask: no end token is looked for, none is padding's",
    9: "a reward is a number of the trajectory, on no token; tools' results never reach the reward",
    11: "padding is on the right and exists only inside an update",
    12: "past the limit the environment says so in an observation, masked; no token is written",
    13: "observations are encoded with add_special_tokens=False; test_rollout.py has the ids",
    14: "sampled ids are kept, nothing decoded is encoded again; test_rollout.py compares them",
    15: "a turn ends with the token that completes a tag, whole; test_sampler.py forks at each",
    18: "clip_low and clip_high are the only clips there are, and each is used",
    23: "there is no reference model, so no coefficient of 0; k3 is finite all the same (see 20)",
    27: "minibatch_prompts counts prompts, and only prompts",
    29: "it is ARPO's rule, so it stays: H is a sum, said in the module's first lines",
    30: "there is one branching rule, and `beam` is an int",
    31: "there is no AEPO here",
    32: "it is ARPO's way, so it stays: every row trains its prefix, and every copy counts",
}
"""By number: why it cannot occur, or is on purpose."""


def batch_of(old, advantages, weights=None):
    old, advantages = torch.tensor([old]), torch.tensor([advantages])
    return SimpleNamespace(
        old_logprobs=old,
        advantages=advantages,
        response_mask=torch.ones_like(old, dtype=torch.bool),
        weights=torch.ones_like(old) if weights is None else weights,
    )


def test_trap_1_a_group_of_one_is_nothing_everywhere():
    alone = torch.tensor([3.0], dtype=torch.float64)
    assert not normalised(alone).any()
    assert not leave_one_out(alone).any()
    assert not gigpo.step_advantages(alone, [0], "std").any()
    assert group_normalised([tree_with([3.0])]) == []
    assert gigpo.two_level([tree_with([3.0])], gigpo.Config()) == []


@pytest.mark.parametrize("reward", [0.7, 0.1, 1 / 3])
def test_trap_2_equal_rewards_are_exactly_nothing(reward):
    assert not normalised(torch.tensor([reward] * 8, dtype=torch.float32)).any()
    assert group_normalised([tree_with([reward] * 8)]) == []


def test_trap_4_episodes_count_once_however_many_turns_they_have():
    """Without step credit, as GRPO: a long episode weighs no more than a short one."""
    tree = new_tree()
    grow(tree, *[(1, 1)] * 7, (1, 0), reward=1.0)
    grow(tree, (1, 0))
    found = gigpo.tree_advantages(tree, gigpo.Config(step_weight=0.0))
    expected = [row.advantages for row in group_normalised([tree])]
    assert all(torch.allclose(a, b) for a, b in zip(found, expected, strict=True))


def test_trap_5_reinforce_pp_normalises_over_the_batch():
    """Two prompts, each of equal rewards: nothing within a prompt, something between them."""
    trees = [tree_with([1.0, 1.0]), tree_with([0.0, 0.0])]
    assert group_normalised(trees) == []
    assert len(reinforce_pp.batch_normalised(trees, reinforce_pp.Config())) == 4


def test_trap_6_a_turn_before_a_tools_result_keeps_its_return():
    tree = new_tree()
    grow(tree, (2, 3), (1, 0), reward=1.0)
    grow(tree, (1, 0))
    long, _ = reinforce_pp.batch_normalised([tree], reinforce_pp.Config())
    assert long.advantages[0] == long.advantages[-1] > 0


@pytest.mark.parametrize("weighting", [sequence_mean, token_mean, sequence_sum])
def test_trap_7_what_tools_said_weighs_nothing(weighting):
    (found,) = weighting([torch.tensor([True, False, False, True])])
    assert found[1] == found[2] == 0
    assert found[0] == found[3] > 0


def test_trap_7_whitening_counts_sampled_tokens_only():
    tree = new_tree()
    grow(tree, (1, 50), (1, 0), reward=1.0)
    grow(tree, (2, 0))
    long, short = reinforce_pp.batch_normalised([tree], reinforce_pp.Config())
    assert float(long.advantages[0]) == pytest.approx(-float(short.advantages[0]))
    assert not long.advantages[1:51].any()


@pytest.mark.parametrize("weighting", [sequence_mean, token_mean, sequence_sum])
def test_trap_10_a_row_without_a_token_is_no_nan(weighting):
    found = weighting([torch.tensor([False, False]), torch.tensor([True, True])])
    assert torch.isfinite(torch.stack(found)).all()
    assert not found[0].any()


def test_trap_16_a_mismatch_weight_of_one_token_says_nothing_of_the_row():
    ratio = torch.tensor([[math.log(100.0)] + [0.0] * 9])
    found = mismatch_weights(ratio, torch.ones_like(ratio, dtype=torch.bool), 2.0)
    assert found[0].tolist() == pytest.approx([2.0] + [1.0] * 9)


CLIPPING = (grpo, reinforce_pp, dapo, gppo, cispo, arpo, gigpo, dr_grpo, gspo)


def test_trap_17_all_clips_are_the_same_before_the_first_step():
    gradients = []
    for module in CLIPPING:
        batch = batch_of([-1.0, -2.0], [2.0, 2.0])
        logprobs = batch.old_logprobs.clone().requires_grad_()
        module.policy_loss(logprobs, batch, module.Config()).backward()
        gradients.append(logprobs.grad.tolist())
    assert gradients == [[[-2.0, -2.0]]] * len(CLIPPING)


def test_trap_19_cispo_caps_the_ratio_itself_and_floors_nothing():
    batch = batch_of([0.0, 0.0], [1.0, 1.0])
    logprobs = torch.tensor([[math.log(100), math.log(0.01)]], requires_grad=True)
    cispo.policy_loss(logprobs, batch, cispo.Config(ratio_cap=5.0)).backward()
    assert logprobs.grad[0].tolist() == pytest.approx([-5, -0.01])


@pytest.mark.parametrize("module", CLIPPING)
@pytest.mark.parametrize("gap", [-200.0, -90.0, 90.0, 200.0])
@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_trap_20_a_ratio_that_overflows_is_finite(module, gap, advantage):
    batch = batch_of([-1.0], [advantage])
    logprobs = (batch.old_logprobs + gap).requires_grad_()
    loss = module.policy_loss(logprobs, batch, module.Config())
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logprobs.grad).all()
    divergence = torch.tensor([gap], requires_grad=True)
    (0 * kl_k3(divergence, torch.zeros(1))).sum().backward()
    assert not divergence.grad.any()


def test_trap_21_gspo_clips_a_thousand_times_closer():
    config = gspo.Config()
    assert config.clip_low < 1e-3 < grpo.Config().clip_low
    batch = batch_of([0.0, 0.0], [1.0, 1.0])
    logprobs = torch.full((1, 2), 5e-4).requires_grad_()
    gspo.policy_loss(logprobs, batch, config).backward()
    assert not logprobs.grad.any()


@pytest.mark.parametrize("module", [dapo, gppo, arpo, gigpo])
def test_trap_22_the_dual_clip_is_an_option_wherever_there_is_one(module):
    """So that `--dual-clip inf` makes methods comparable; the others have none."""
    batch, free = batch_of([0.0], [-1.0]), module.Config(dual_clip=math.inf)
    for config, slope in ((module.Config(), 0.0), (free, 15.0)):
        logprobs = torch.tensor([[math.log(15.0)]], requires_grad=True)
        module.policy_loss(logprobs, batch, config).backward()
        assert logprobs.grad.item() == pytest.approx(slope)


def test_trap_24_grpo_weighs_rows_and_dapo_weighs_tokens():
    assert "weights=sequence_mean" in inspect.getsource(grpo)
    assert "weights=token_mean" in inspect.getsource(dapo)


@pytest.mark.parametrize("weighting", [sequence_mean, token_mean, sequence_sum])
def test_trap_25_weights_are_of_the_whole_mini_batch(weighting):
    """Made once, from all rows; a micro-batch takes its part and normalises nothing again."""
    tree = tree_with([1, 0, 0.5], turns=((3, 0),))
    rows = [Row(root, torch.ones(3)) for root in tree.roots]
    weights = weighting([torch.tensor(r.response_mask) for r in tree.roots])
    whole = pack(rows, weights=weights).weights.sum()
    parts = [pack([r], weights=[w]).weights.sum() for r, w in zip(rows, weights, strict=True)]
    assert float(sum(parts)) == pytest.approx(float(whole))


def test_trap_26_the_divisor_of_dr_grpo_is_constant_and_rows_are_averaged():
    short, long = torch.ones(2).bool(), torch.ones(8).bool()
    assert sequence_sum([short, long], 10)[0].tolist() == [0.05] * 2
    assert sequence_sum([short, long], 10)[1].tolist() == [0.05] * 8
    assert "divisor=config.max_response_tokens" in inspect.getsource(dr_grpo)


def test_trap_28_no_entropy_outlives_its_tree():
    """ARPO's first entropies are read from the tree; the module keeps nothing."""
    kept = [
        v for n, v in vars(arpo).items() if isinstance(v, dict | list) and not n.startswith("_")
    ]
    assert kept == []


def test_trap_33_dapo_looks_at_rewards_before_the_penalty():
    """Two right answers of different lengths teach nothing, though their shaped rewards differ."""
    tree = new_tree()
    for length in (60, 100):
        grow(tree, (length, 0), reward=1.0)
    config = dapo.Config(max_response_tokens=100)
    first, second = (dapo.shaped(root, config) for root in tree.roots)
    assert first != second
    assert not dapo.teaches([root.reward for root in tree.roots])


def test_every_trap_has_a_test_or_a_reason():
    names = " ".join(name for name in vars(sys.modules[__name__]) if name.startswith("test_trap"))
    tested = {int(number) for number in re.findall(r"test_trap_(\d+)_", names)}
    assert tested | CANNOT.keys() == set(range(1, 34))
    assert not tested & CANNOT.keys()


def test_a_dual_clip_of_infinity_is_none():
    logprobs = torch.tensor([math.log(50.0)])
    found = clipped_surrogate(logprobs, torch.zeros(1), torch.tensor([-1.0]), 0.2, 0.2)
    assert found.item() == pytest.approx(50)


def test_rloo_has_no_ratio():
    assert "old_logprobs" not in inspect.getsource(rloo)
