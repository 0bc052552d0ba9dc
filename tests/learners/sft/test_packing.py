"""A cold start on packed batches learns what it learns on padded ones."""

import pytest
import torch

from benchmarks import Demonstration, Step
from learners.policy.batch import token_ids
from learners.sft.training import describe_work, update
from learners.tree import Row
from tests.learners.policy.test_packing import model_of, policy_of, same
from tests.learners.sft.test_sft import TASK, played, rollouts_of

STEPS = (Step("look", "search", "a fox"), Step("it is so", "answer", "2"))
LENGTHS = (1, 40, 8)


@pytest.fixture(scope="module")
def loaded():
    torch.set_num_threads(1)
    return model_of("tiny")


def demonstrate(loaded, apart=False, lengths=LENGTHS):
    """Trajectories with one prompt, a call and a result each; with `apart` they share no token."""
    scripts = [
        Demonstration(TASK, (Step("x " * length, "python", "1"), *STEPS)) for length in lengths
    ]
    trajectories = played(rollouts_of(loaded.tokenizer), scripts)
    assert len(trajectories) == len(lengths)
    for number, trajectory in enumerate(trajectories):
        if apart:
            trajectory.prompt_ids = (number + 5, *trajectory.prompt_ids[1:])
    return trajectories


def update_and_record(policy, demonstrations, observation_weight):
    """Make one update; return its loss and every gradient by name."""
    gradients = {}
    for name, parameter in policy.model.named_parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda p, name=name: gradients.update({name: p.grad.clone()})
        )
    return update(policy, demonstrations, observation_weight), gradients


@pytest.mark.parametrize("observation_weight", [0.0, 1.0])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("tokens", [150, 8192])
def test_packed_demonstrations_teach_what_padded_ones_teach(
    loaded, observation_weight, apart, tokens
):
    plain, packed = (
        policy_of(loaded, packs, microbatch_tokens=tokens) for packs in ("never", "always")
    )
    demonstrations = demonstrate(loaded, apart)
    expected = update_and_record(plain, demonstrations, observation_weight)
    same(expected, update_and_record(packed, demonstrations, observation_weight))
    assert all(grad.any() for grad in expected[1].values())
    assert (plain.work.trees, packed.work.trees) == (False, True)
    tokens_in_all = sum(len(token_ids(one)) for one in demonstrations)
    if apart:
        assert packed.work.computed_tokens == tokens_in_all
    assert plain.work.computed_tokens > tokens_in_all or tokens == 150
    assert len(packed.work.parts) == 1 or tokens == 150


def token_losses(policy, demonstrations):
    """Per demonstration the negative log-probability of every token but the first."""
    losses = {}

    def loss(logprobs, batch):
        for ids, attended, row in zip(
            batch.token_ids, batch.attention_mask, logprobs.detach(), strict=True
        ):
            mask = attended.bool()
            losses[tuple(ids[mask].tolist())] = -row[mask][1:]
        return -(logprobs * batch.weights).sum()

    rows = [Row(one, torch.zeros(len(one))) for one in demonstrations]
    weights = [torch.ones(len(token_ids(one))) for one in demonstrations]
    policy.update(rows, weights, loss, everything=True)
    return [losses[token_ids(one)] for one in demonstrations]


@pytest.mark.parametrize("apart", [False, True])
def test_a_demonstration_does_not_change_the_losses_of_others_in_its_batch(loaded, apart):
    """Three packed ones; the one in the middle is replaced by a longer one."""
    before = demonstrate(loaded, apart)
    after = demonstrate(loaded, apart, lengths=(1, 55, 8))
    first, between, last = token_losses(policy_of(loaded, "always"), before)
    again, changed, end = token_losses(policy_of(loaded, "always"), after)
    torch.testing.assert_close(again, first, rtol=0, atol=1e-12)
    torch.testing.assert_close(end, last, rtol=0, atol=1e-12)
    assert len(changed) > len(between)
    alone = token_losses(policy_of(loaded, "never"), [before[2]])[0]
    torch.testing.assert_close(last, alone, rtol=0, atol=1e-12)


def test_a_batch_is_packed_if_that_is_less_work_and_the_log_says_so(loaded):
    """Three of different lengths are packed; one alone is not, since that saves nothing."""
    policy, demonstrations = policy_of(loaded, "auto"), demonstrate(loaded, apart=True)
    update(policy, demonstrations, 1.0)
    assert describe_work(policy.work) == "computed 100%, packed"
    update(policy, demonstrations[:1], 1.0)
    assert describe_work(policy.work) == "computed 100%, padded"
