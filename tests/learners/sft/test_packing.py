"""The cold start without padding: what it learns is what padded demonstrations teach."""

import pytest
import torch

from benchmarks import Demonstration, Step
from learners.policy.batch import token_ids
from learners.sft import __main__
from learners.tree import Row
from tests.learners.policy.test_packing import model_of, policy_of, same
from tests.learners.sft.test_sft import TASK, played, rollouts_of

STEPS = (Step("look", "search", "a fox"), Step("it is so", "answer", "2"))
LENGTHS = (1, 40, 8)


@pytest.fixture(scope="module")
def loaded():
    torch.set_num_threads(1)
    return model_of("tiny")


def shown(loaded, apart=False, lengths=LENGTHS):
    """Demonstrations of one prompt, a call and a result in each; apart, they share no token."""
    scripts = [
        Demonstration(TASK, (Step("x " * length, "python", "1"), *STEPS)) for length in lengths
    ]
    found = played(rollouts_of(loaded.tokenizer), scripts)
    assert len(found) == len(lengths)
    for number, one in enumerate(found):
        if apart:
            one.prompt_ids = (number + 5, *one.prompt_ids[1:])
    return found


def taught(policy, demonstrations, observation_weight):
    """The loss of one update, and every gradient by name."""
    found = {}
    for name, parameter in policy.model.named_parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda p, name=name: found.update({name: p.grad.clone()})
        )
    return __main__._update(policy, demonstrations, observation_weight), found


@pytest.mark.parametrize("observation_weight", [0.0, 1.0])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("tokens", [150, 8192])
def test_packed_demonstrations_teach_what_padded_ones_teach(
    loaded, observation_weight, apart, tokens
):
    plain, packed = (
        policy_of(loaded, packs, microbatch_tokens=tokens) for packs in ("never", "always")
    )
    given = shown(loaded, apart)
    expected = taught(plain, given, observation_weight)
    same(expected, taught(packed, given, observation_weight))
    assert all(grad.any() for grad in expected[1].values())
    assert (plain.work.trees, packed.work.trees) == (False, True)
    whole = sum(len(token_ids(one)) for one in given)
    if apart:
        assert packed.work.computed_tokens == whole
    assert plain.work.computed_tokens > whole or tokens == 150
    assert len(packed.work.parts) == 1 or tokens == 150


def token_losses(policy, demonstrations):
    """Per demonstration minus the log-probability of every token but the first, read as well."""
    kept = {}

    def loss(logprobs, batch):
        for ids, attended, line in zip(
            batch.token_ids, batch.attention_mask, logprobs.detach(), strict=True
        ):
            own = attended.bool()
            kept[tuple(ids[own].tolist())] = -line[own][1:]
        return -(logprobs * batch.weights).sum()

    rows = [Row(one, torch.zeros(len(one))) for one in demonstrations]
    weights = [torch.ones(len(token_ids(one))) for one in demonstrations]
    policy.update(rows, weights, loss, everything=True)
    return [kept[token_ids(one)] for one in demonstrations]


@pytest.mark.parametrize("apart", [False, True])
def test_another_demonstration_leaves_the_losses_of_ones_tokens(loaded, apart):
    """The first and the last of three, packed; the one between is another, longer one."""
    one = shown(loaded, apart)
    other = shown(loaded, apart, lengths=(1, 55, 8))
    first, between, last = token_losses(policy_of(loaded, "always"), one)
    again, changed, end = token_losses(policy_of(loaded, "always"), other)
    torch.testing.assert_close(again, first, rtol=0, atol=1e-12)
    torch.testing.assert_close(end, last, rtol=0, atol=1e-12)
    assert len(changed) > len(between)
    alone = token_losses(policy_of(loaded, "never"), [one[2]])[0]
    torch.testing.assert_close(last, alone, rtol=0, atol=1e-12)


def test_a_batch_is_packed_where_that_is_less_work_and_the_log_says_which(loaded):
    """Three of unlike lengths are; one alone has nothing to save."""
    policy, given = policy_of(loaded, "auto"), shown(loaded, apart=True)
    __main__._update(policy, given, 1.0)
    assert __main__._read(policy.work) == "read 100%, packed"
    __main__._update(policy, given[:1], 1.0)
    assert __main__._read(policy.work) == "read 100%, padded"
