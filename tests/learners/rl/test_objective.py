"""The wrapped loss: the KL penalty, its gradient, and the metrics that are recorded."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from learners import appo, cispo, gppo
from learners.config import RunConfig
from learners.policy.loading import load_model
from learners.policy.optimizers import multiplier
from learners.policy.policy import Policy
from learners.policy.reference import FrozenPolicy
from learners.rl.kl import divergence
from learners.rl.losses import clipped_policy_loss, token_mean
from learners.rl.objective import wrap_loss
from learners.runs.session import run_iteration
from learners.tree import Row
from tests.learners.policy.test_policy import SHAPES, trajectories
from tests.learners.test_methods import session_of
from tests.method_fakes import RUNS, TREE
from tests.tree_fakes import Notes


def batch_of(old, advantages, reference=None, weights=None):
    old = torch.tensor([old])
    return SimpleNamespace(
        old_logprobs=old,
        advantages=torch.tensor([advantages]),
        response_mask=torch.ones_like(old, dtype=torch.bool),
        weights=torch.ones_like(old) if weights is None else torch.tensor([weights]),
        reference_logprobs=None if reference is None else torch.tensor([reference]),
    )


CLIPS = SimpleNamespace(clip_low=0.2, clip_high=0.2)
CLIPPED = partial(clipped_policy_loss, config=CLIPS)


@pytest.mark.parametrize(
    ("estimator", "value", "slope"),
    [
        ("k1", math.log(2), math.log(2)),
        ("k2", math.log(2) ** 2 / 2, math.log(2)),
        ("k3", 0.5 - math.log(0.5) - 1, 1 - 0.5),
    ],
)
def test_the_penalty_of_a_token_twice_as_likely_as_under_the_reference(estimator, value, slope):
    """p / q = 2: k1 log 2, k2 its square halved, k3 1/2 - log(1/2) - 1 with slope 1 - q / p."""
    logprobs = torch.tensor([[math.log(0.5)]], requires_grad=True)
    penalty = divergence(logprobs, torch.tensor([[math.log(0.25)]]), estimator)
    penalty.sum().backward()
    assert penalty.item() == pytest.approx(value, rel=1e-5)
    assert logprobs.grad.item() == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_without_a_difference_there_is_no_penalty(estimator):
    logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    penalty = divergence(logprobs, logprobs.detach(), estimator)
    penalty.sum().backward()
    assert not penalty.any()
    assert not logprobs.grad.any()


def test_k2_has_the_gradient_of_the_divergence_in_the_mean_and_k1_none():
    """Over all three actions of a softmax, by the policy's probabilities, against autograd."""
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.tensor([0.0, 0.5, 0.1], dtype=torch.float64), -1)
    logprobs = torch.log_softmax(logits, -1)
    exact = (logprobs.exp() * (logprobs - reference)).sum()
    (expected,) = torch.autograd.grad(exact, logits, retain_graph=True)
    chances = logprobs.detach().exp()
    for estimator in ("k1", "k2"):
        each = divergence(logprobs, reference, estimator)
        (mean,) = torch.autograd.grad((chances * each).sum(), logits, retain_graph=True)
        torch.testing.assert_close(mean, expected)
    (naive,) = torch.autograd.grad((chances * (logprobs - reference)).sum(), logits)
    torch.testing.assert_close(naive, torch.zeros_like(naive), rtol=0, atol=1e-12)


def test_the_penalty_is_added_with_its_coefficient_and_the_weights():
    """Weights 1/4 and 3/4; k2 of log 2 and of 0."""
    logprobs = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    batch = batch_of([-1.0, -1.0], [0.0, 0.0], [-1.0 - math.log(2), -1.0], [0.25, 0.75])
    notes = Notes()
    value = wrap_loss(CLIPPED, notes.note, 0.1, "k2")(logprobs, batch)
    assert value.item() == pytest.approx(0.1 * 0.25 * math.log(2) ** 2 / 2)
    assert notes.notes["policy/kl_reference"] == pytest.approx([math.log(2) ** 2 / 2, 0.0])


def test_without_a_reference_the_loss_is_the_methods_own():
    logprobs = torch.tensor([[-1.0, -0.5]], requires_grad=True)
    batch = batch_of([-1.0, -1.0], [1.0, -1.0])
    value = wrap_loss(CLIPPED, Notes().note)(logprobs, batch)
    assert value.item() == CLIPPED(logprobs, batch).item()


def test_tokens_that_the_clip_leaves_as_they_are_are_counted_by_sign():
    """Ratios 1, 2, 2, 0.5, 0.5 with A 1, 1, -1, -1, 1: clipped are the second and the fourth."""
    ratios = torch.tensor([[1.0, 2.0, 2.0, 0.5, 0.5]])
    logprobs = (torch.full((1, 5), -1.0) + ratios.log()).requires_grad_()
    notes = Notes()
    wrap_loss(CLIPPED, notes.note)(logprobs, batch_of([-1.0] * 5, [1.0, 1.0, -1.0, -1.0, 1.0]))
    assert notes.notes["loss/clip_high_fraction"] == [0, 1, 0, 0, 0]
    assert notes.notes["loss/clip_low_fraction"] == [0, 0, 0, 1, 0]
    expected = [r - math.log(r) - 1 for r in ratios[0].tolist()]
    assert notes.notes["policy/kl_old"] == pytest.approx(expected, abs=1e-5)


def test_looking_does_not_change_the_gradient():
    logprobs = torch.tensor([[-1.0, -0.9, -1.3]], requires_grad=True)
    batch = batch_of([-1.0] * 3, [1.0, -1.0, 0.5])
    (plain,) = torch.autograd.grad(CLIPPED(logprobs, batch), logprobs)
    (watched,) = torch.autograd.grad(wrap_loss(CLIPPED, Notes().note)(logprobs, batch), logprobs)
    assert torch.equal(plain, watched)


KL = "policy/kl_reference"
METHODS_WITH_KL = ("appo paper", "grpo", "reinforce_pp", "gspo")


@pytest.mark.parametrize("method", METHODS_WITH_KL)
def test_every_method_can_stay_near_the_model_it_started_from(monkeypatch, taught, method):
    """The penalty is there, changes what is learned, and leaves the reference as it is."""
    torch.set_num_threads(1)
    weights = []
    for beta in (1e-9, 1.0):
        module, own = RUNS[method]
        monkeypatch.setitem(RUNS, "here", (module, {**own, "kl": beta}))
        session, iteration = session_of(taught, "here")
        frozen = load_model(str(taught))
        session.trainer.reference = FrozenPolicy(Policy(frozen, learning_rate=0.0))
        before = [p.clone() for p in frozen.model.parameters()]
        assert run_iteration(session, iteration)[KL] > 0
        after = frozen.model.parameters()
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        weights.append(torch.cat([p.flatten() for p in session.policy.model.parameters()]))
    assert not torch.equal(*weights)


def test_the_penalty_alone_brings_a_policy_back():
    """Advantages are 0: only the penalty trains. Weights differ by 0.01, as after some updates."""
    torch.set_num_threads(1)
    moved, draw = load_model("tiny"), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in moved.model.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=draw))
    made = trajectories(*SHAPES)
    frozen = FrozenPolicy(Policy(load_model("tiny"), learning_rate=0.0))
    for one, logprobs in zip(made, frozen.logprobs(made), strict=True):
        one.reference_logprobs = logprobs
    rows = [Row(one, torch.zeros(len(one))) for one in made]
    weights = token_mean([torch.tensor(one.response_mask) for one in made])
    policy, divergences = Policy(moved, learning_rate=3e-4), []
    for _ in range(12):
        notes = Notes()
        policy.update(rows, weights, wrap_loss(CLIPPED, notes.note, 1.0))
        divergences.append(sum(notes.notes[KL]) / len(notes.notes[KL]))
    assert divergences[-1] < 0.5 * divergences[0], divergences


def test_the_penalty_is_off_where_the_paper_has_none():
    assert RunConfig().optimisation.kl == appo.Config().optimisation.kl == 0


def test_a_run_with_a_penalty_needs_its_reference(monkeypatch, taught):
    monkeypatch.setitem(RUNS, "here", (appo, {**TREE, "kl": 0.1}))
    session, iteration = session_of(taught, "here")
    with pytest.raises(AssertionError, match="needs its reference"):
        run_iteration(session, iteration)


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0.0, [1, 1, 1, 1]),
        ("linear", 0.0, [1, 0.75, 0.5, 0.25]),
        ("cosine", 0.0, [1, 0.853553, 0.5, 0.146447]),
        ("constant", 0.5, [1 / 3, 2 / 3, 1, 1]),
        ("linear", 0.5, [1 / 3, 2 / 3, 1, 0.5]),
        ("cosine", 0.5, [1 / 3, 2 / 3, 1, 0.5]),
    ],
)
def test_a_rate_rises_then_falls_and_is_never_zero(schedule, warmup, expected):
    rates = [multiplier(schedule, warmup, step, 4) for step in range(4)]
    assert rates == pytest.approx(expected, abs=1e-6)


def test_the_rate_of_an_iteration_is_set_and_reported(monkeypatch, taught):
    own = {**TREE, "schedule": "linear", "iterations": 4}
    monkeypatch.setitem(RUNS, "here", (appo, own))
    session, _ = session_of(taught, "here")
    session.iteration = 2
    session.trainer.begin_iteration(session.iteration)
    assert session.policy.optimizer.param_groups[0]["lr"] == pytest.approx(5e-4)


def test_rows_sampled_before_the_last_step_are_counted_as_stale(monkeypatch, taught):
    """Rollouts sampled together: the rows of the j-th step are j - 1 steps old."""
    session, iteration = session_of(taught, "grpo")
    sizes, update = [], session.policy.update

    def watched(rows, *rest, **options):
        sizes.append(len(rows))
        return update(rows, *rest, **options)

    monkeypatch.setattr(session.policy, "update", watched)
    metrics = run_iteration(session, iteration)
    assert len(sizes) > 1
    aged = sum(step * size for step, size in enumerate(sizes))
    assert metrics["update/staleness"] == pytest.approx(aged / sum(sizes))
    assert metrics["update/stale_rows"] == pytest.approx(sum(sizes[1:]) / sum(sizes))


RATIOS = [[math.log(r) for r in (0.5, 2.0, 6.0, 0.5, 6.0, 1.0)]]
SIGNS = [-1.0, 1.0, -1.0, 1.0, 1.0, 1.0]


def recorded_metrics(module):
    """Metrics of a loss at ratios 0.5, 2 and 6 with A = -1, 1, -1; 0.5, 6 and 1 with A = 1."""
    notes = Notes()
    batch = batch_of([0.0] * 6, SIGNS)
    module.policy_loss(torch.tensor(RATIOS), batch, module.Config(), note=notes.note)
    return notes.notes


def test_gppo_reports_what_its_clips_bound_and_cispo_what_its_cap_does():
    """GPPO: 0.8 below where A < 0, 1.28 above where A > 0. CISPO: above 5, whatever A is."""
    assert recorded_metrics(gppo) == {
        "loss/bounded_low_fraction": [1, 0, 0, 0, 0, 0],
        "loss/bounded_high_fraction": [0, 1, 0, 0, 1, 0],
    }
    assert recorded_metrics(cispo) == {"loss/capped_fraction": [0, 0, 1, 0, 1, 0]}
