"""Mistakes of other implementations in objectives and methods; `test_traps.py` has the rest."""

import math
from types import SimpleNamespace

import pytest
import torch

from learners import aepo, arpo, cispo, dapo, dr_grpo, gigpo, gppo, grpo, gspo, rloo, tree_grpo
from learners.ledger import Ledger
from learners.policy.batch import collate
from learners.policy.policy import UpdateMetrics
from learners.rl import branching
from learners.rl.advantages import normalise_groups
from learners.rl.losses import clipped_surrogate, kl_k3, sequence_mean, sequence_sum, token_mean
from learners.runs.recorder import Recorder
from learners.runs.trainer import PolicyTrainer
from learners.tree import Completion, Row, Turn
from tests.method_fakes import CLIPPING, Composed, Credited, forest
from tests.tree_fakes import START, grow, new_tree, tree_with


def batch_of(old, advantages, weights=None):
    old, advantages = torch.tensor([old]), torch.tensor([advantages])
    return SimpleNamespace(
        old_logprobs=old,
        advantages=advantages,
        response_mask=torch.ones_like(old, dtype=torch.bool),
        weights=torch.ones_like(old) if weights is None else weights,
    )


def test_trap_17_all_clips_are_the_same_before_the_first_step():
    gradients = []
    for module in CLIPPING:
        batch = batch_of([-1.0, -2.0], [2.0, 2.0])
        logprobs = batch.old_logprobs.clone().requires_grad_()
        module.policy_loss(logprobs, batch, module.Config()).backward()
        gradients.append(logprobs.grad.tolist())
    assert gradients == [[[-2.0, -2.0]]] * len(CLIPPING)


@pytest.mark.parametrize("module", [m for m in CLIPPING if m is not cispo])
@pytest.mark.parametrize(
    ("field", "ratio", "advantage"), [("clip_low", 0.1, -1.0), ("clip_high", 9.0, 1.0)]
)
def test_trap_18_every_clip_that_can_be_set_is_used(module, field, ratio, advantage):
    losses = []
    for config in (module.Config(), module.Config.of(**{field: 0.5})):
        batch = batch_of([0.0], [advantage])
        losses.append(module.policy_loss(torch.tensor([[math.log(ratio)]]), batch, config).item())
    assert losses[1] == pytest.approx(0.5 if field == "clip_low" else -1.5)
    assert losses[0] != pytest.approx(losses[1])


def test_trap_19_cispo_caps_the_ratio_itself_and_floors_nothing():
    batch = batch_of([0.0, 0.0], [1.0, 1.0])
    logprobs = torch.tensor([[math.log(100), math.log(0.01)]], requires_grad=True)
    cispo.policy_loss(logprobs, batch, cispo.Config.of(ratio_cap=5.0)).backward()
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


def test_trap_21_gspo_clips_a_thousand_times_closer():
    config = gspo.Config()
    assert config.clip_low < 1e-3 < grpo.Config().clip_low
    batch = batch_of([0.0, 0.0], [1.0, 1.0])
    logprobs = torch.full((1, 2), 5e-4).requires_grad_()
    gspo.policy_loss(logprobs, batch, config).backward()
    assert not logprobs.grad.any()


@pytest.mark.parametrize("module", [dapo, gppo, arpo, aepo, tree_grpo, gigpo])
def test_trap_22_the_dual_clip_is_an_option_wherever_there_is_one(module):
    """With it `--dual-clip inf` makes methods comparable; the others have no dual clip."""
    batch, free = batch_of([0.0], [-1.0]), module.Config.of(dual_clip=math.inf)
    for config, slope in ((module.Config(), 0.0), (free, 15.0)):
        logprobs = torch.tensor([[math.log(15.0)]], requires_grad=True)
        module.policy_loss(logprobs, batch, config).backward()
        assert logprobs.grad.item() == pytest.approx(slope)


@pytest.mark.parametrize("gap", [-200.0, 200.0])
def test_trap_23_a_divergence_that_counts_nothing_has_no_gradient(gap):
    divergence = torch.tensor([gap], requires_grad=True)
    (0 * kl_k3(divergence, torch.zeros(1))).sum().backward()
    assert not divergence.grad.any()


def test_trap_23_a_divergence_that_counts_nothing_costs_no_pass():
    """The default of the methods: the reference, None here, is not asked."""
    (root,) = tree_with([1.0]).roots
    asked = []

    def update(rows, weights, loss):
        asked.append(len(rows))
        return UpdateMetrics(0.0, 0.0, False)

    policy, sampler = SimpleNamespace(update=update, updates=0), SimpleNamespace(sync=list)
    trainer = PolicyTrainer(grpo.Config(), policy, sampler, Ledger(), Recorder(), reference=None)
    trainer.update([Row(root, torch.ones(2))], [torch.full((2,), 0.5)], None)
    assert asked == [1]


def test_trap_24_grpo_weighs_rows_and_dapo_weighs_tokens():
    assert Composed.by(grpo).weights is sequence_mean
    assert Composed.by(dapo).weights is token_mean


@pytest.mark.parametrize("weighting", [sequence_mean, token_mean, sequence_sum])
def test_trap_25_weights_are_of_the_whole_mini_batch(weighting):
    """Made once, from all rows; a micro-batch takes its part and normalises nothing again."""
    tree = tree_with([1, 0, 0.5], turns=((3, 0),))
    rows = [Row(root, torch.ones(3)) for root in tree.roots]
    weights = weighting([torch.tensor(r.response_mask) for r in tree.roots])
    total = collate(rows, weights=weights).weights.sum()
    parts = [collate([r], weights=[w]).weights.sum() for r, w in zip(rows, weights, strict=True)]
    assert float(sum(parts)) == pytest.approx(float(total))


def test_trap_26_the_divisor_of_dr_grpo_is_constant_and_rows_are_averaged():
    short, long = torch.ones(2).bool(), torch.ones(8).bool()
    assert sequence_sum([short, long], 10)[0].tolist() == [0.05] * 2
    assert sequence_sum([short, long], 10)[1].tolist() == [0.05] * 8
    weights = Composed.by(dr_grpo, max_response_tokens=10).weights
    assert weights([short, long])[0].tolist() == [0.05] * 2


@pytest.mark.parametrize("module", [arpo, aepo, branching])
def test_trap_28_no_entropy_outlives_its_tree(module):
    """First entropies are read from the tree; the modules keep nothing."""
    state = [
        v for n, v in vars(module).items() if isinstance(v, dict | list) and not n.startswith("_")
    ]
    assert state == []


def test_trap_28_a_first_turn_has_no_gain_whatever_was_before():
    for entropy in (9.0, 0.0):
        root = new_tree().root()
        root.turns.append(Turn(START, Completion((1,), (0.0,), (entropy,)), (2,)))
        assert branching.entropy_gain(root, 20, 10) == 0


def test_trap_31_entropies_are_never_missing_from_the_advantages():
    run = Credited(forest())
    aepo.iteration([], run, aepo.Config.of(pre_monitoring=False))
    rows = [row for update in run.updates for row in update.rows]
    assert len(rows) == 7
    plain = {row.trajectory: row.advantages for row in normalise_groups(run.trees)}
    long = [row for row in rows if row.trajectory.sampled_tokens > 1]
    assert all((r.advantages != plain[r.trajectory]).sum() > 1 for r in long)
    assert run.counts["advantage/dropped_groups"] == 0


def test_trap_31_a_threshold_is_called_one():
    """The code's branch_probability branches less the higher it is."""
    assert not hasattr(aepo.Config(), "branch_probability")
    assert aepo.should_branch(0.3, 0.0, 0, aepo.Config.of(branch_threshold=0.2))
    assert not aepo.should_branch(0.3, 0.0, 0, aepo.Config.of(branch_threshold=0.4))


def test_trap_31_a_pause_ends_the_penalty():
    tree = tree_with([1.0])
    assert aepo.grow(tree, aepo.Config.of(rollouts=1, initial_rollouts=1), 10, None, growing=5) == 0


def test_trap_33_dapo_looks_at_rewards_before_the_penalty():
    """Two right answers of different lengths teach nothing, though their shaped rewards differ."""
    tree = new_tree()
    for length in (60, 100):
        grow(tree, (length, 0), reward=1.0)
    config = dapo.Config.of(max_response_tokens=100)
    first, second = (dapo.shaped_reward(root, config) for root in tree.roots)
    assert first != second
    assert not dapo.is_informative([root.reward for root in tree.roots])


def test_a_dual_clip_of_infinity_is_none():
    logprobs = torch.tensor([math.log(50.0)])
    losses = clipped_surrogate(logprobs, torch.zeros(1), torch.tensor([-1.0]), 0.2, 0.2)
    assert losses.item() == pytest.approx(50)


def test_rloo_has_no_ratio():
    """Whatever the old log-probabilities were, the loss and its gradient are the same."""
    results = []
    for old in (0.0, -50.0):
        logprobs = torch.tensor([[-1.0]], requires_grad=True)
        loss = rloo.policy_loss(logprobs, batch_of([old], [2.0]))
        loss.backward()
        results.append((loss.item(), logprobs.grad.item()))
    assert results == [(2.0, -2.0)] * 2
