"""Batches: rows padded on the right; every entry is about the token at its position."""

import pytest
import torch

from envs import EnvState
from learners.policy.batch import collate, split_padded
from learners.tree import Completion, Row, Trajectory, Turn

STATE = EnvState("Toy", "1", "train", "a")


def trajectory(prompt, *turns):
    """Turns are (sampled ids, observed ids); log-probabilities are -id / 10."""
    made = Trajectory(tuple(prompt), STATE, path=(0,))
    made.turns = [
        Turn(STATE, Completion(said, tuple(-i / 10 for i in said), (0.0,) * len(said)), seen)
        for said, seen in turns
    ]
    return made


def row(made, *advantages):
    return Row(made, torch.tensor(advantages, dtype=torch.float64))


@pytest.fixture
def rows():
    """Two prompt tokens and 1 2 | 3 | 4, then one prompt token and 5."""
    long = trajectory((90, 91), ((1, 2), (3,)), ((4,), ()))
    long.old_logprobs = torch.tensor([-1.0, -2.0, 0.0, -4.0], dtype=torch.float64)
    return [row(long, 0.1, 0.2, 0.3, 0.4), row(trajectory((92,), ((5,), ())), 0.5)]


def test_rows_are_padded_on_the_right(rows):
    batch = collate(rows)
    assert batch.token_ids.tolist() == [[90, 91, 1, 2, 3, 4], [92, 5, 0, 0, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]]


def test_only_what_the_policy_sampled_is_in_the_mask(rows):
    assert collate(rows).response_mask.int().tolist() == [[0, 0, 1, 1, 0, 1], [0, 1, 0, 0, 0, 0]]


def test_every_entry_is_about_the_token_at_its_position(rows):
    weights = [torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([5.0])]
    batch = collate(rows, weights=weights, share=0.25)
    assert batch.advantages.tolist() == [[0, 0, 0.1, 0.2, 0.3, 0.4], [0, 0.5, 0, 0, 0, 0]]
    assert batch.old_logprobs.tolist() == [[0, 0, -1, -2, 0, -4], [0] * 6]
    assert batch.weights.tolist() == [[0, 0, 1, 2, 3, 4], [0, 5, 0, 0, 0, 0]]
    sampled = [[0, 0, -0.1, -0.2, 0, -0.4], [0, -0.5, 0, 0, 0, 0]]
    torch.testing.assert_close(batch.sampler_logprobs, torch.tensor(sampled).double())
    assert batch.share == 0.25


def test_weights_may_cover_the_prompt_too(rows):
    """As in a cold start of new weights; the first token has nothing before it."""
    weights = [torch.arange(6.0), torch.tensor([7.0, 8.0])]
    batch = collate(rows, weights=weights, everything=True)
    assert batch.weights.tolist() == [[0, 1, 2, 3, 4, 5], [7, 8, 0, 0, 0, 0]]
    assert batch.response_mask.int().tolist() == [[0, 1, 1, 1, 1, 1], [0, 1, 0, 0, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_is_as_exact_as_its_advantages(rows, dtype):
    batch = collate([Row(one.trajectory, one.advantages.to(dtype)) for one in rows])
    assert {batch.advantages.dtype, batch.old_logprobs.dtype, batch.weights.dtype} == {dtype}


def test_an_open_turn_is_collated_up_to_its_prefill():
    made = trajectory((90,), ((1,), (2,)))
    made.prefill = Completion((3,), (-0.3,), (0.0,))
    batch = collate([row(made, 1.0, 1.0, 1.0)])
    assert batch.token_ids.tolist() == [[90, 1, 2, 3]]
    assert batch.response_mask.int().tolist() == [[0, 1, 0, 1]]


def of_lengths(*lengths):
    return [row(trajectory((90,), (((1,) * (n - 1)), ()))) for n in lengths]


def lengths_of(groups):
    return [[1 + len(one.trajectory) for one in group] for group in groups]


def test_microbatches_hold_a_limited_number_of_padded_tokens():
    """At most 20: two of 9 are 18; 8 and 3 are 16, with 2 more 24; a row of 25 is alone."""
    groups = split_padded(of_lengths(3, 9, 25, 8, 2, 9), tokens=20)
    assert lengths_of(groups) == [[25], [9, 9], [8, 3], [2]]


def test_every_row_is_in_one_microbatch():
    rows = of_lengths(*range(2, 40))
    served = [one for group in split_padded(rows, tokens=64) for one in group]
    assert {id(one) for one in served} == {id(one) for one in rows}
    assert len(served) == len(rows)


def test_no_rows_are_no_microbatch():
    assert list(split_padded([], tokens=8)) == []
