"""The model of an iteration's time: by hand where it is simple, in its order where it is not."""

from dataclasses import replace

import numpy as np
import pytest

from envs import Call, EnvState
from learners.tree import Completion, Trajectory, Turn
from tests.perf.scaling_calibration import FITTED, MIDDLE, fitted, lengths_of
from tests.perf.scaling_model import (
    H100,
    QWEN_7B,
    Lengths,
    Machine,
    Model,
    Work,
    drawn,
    engine,
    iteration,
    step_seconds,
)

ROUND = Machine(1e12, 1e12, 1e12, 1e12, 1e12, 1.0, 1.0, 1.0, launch=0.0)
"""A tera of everything, all of it reached."""
SMALL = Model(1e9, 0.0)
EVEN = Work(prompts=1, rollouts=1, prompt_tokens=100, turns=2, turn_tokens=10, spread=0.0)


def test_a_step_costs_what_takes_longer_reading_or_multiplying():
    """2 GB at 1 TB/s is 2 ms; a row multiplies 2 GFLOP, so 3 rows take 6 ms; keys add 1 MB each."""
    assert step_seconds(ROUND, SMALL, 1, 100, 1) == pytest.approx(0.002)
    assert step_seconds(ROUND, SMALL, 3, 100, 1) == pytest.approx(0.006)
    assert step_seconds(ROUND, SMALL, 1, 100, 2) == pytest.approx(0.001)
    keys = replace(SMALL, kv_bytes=1e6)
    assert step_seconds(ROUND, keys, 1, 1000, 1) == pytest.approx(0.003)


def test_one_trajectory_by_hand():
    """100 prompt tokens at 2 ms, 10 sampled, a tool of 1 s, 350 observed, 10 more: 1.94 s."""
    lengths = drawn(EVEN, 1, np.random.default_rng(0))
    seconds, idle, rows = engine(ROUND, SMALL, lengths, 100, 1)
    assert seconds == pytest.approx(0.2 + 0.02 + 1.0 + 0.7 + 0.02)
    assert (idle, rows) == (pytest.approx(1.0), 1)


def test_trajectories_of_their_own_lengths_by_hand():
    """Two of a prompt of 100 tokens, 0.2 s. Ten steps of both, 4 ms each; the second is done
    then, and the first waits 1 s, reads 50 tokens in 0.1 s and samples 20 more in 40 ms."""
    lengths = Lengths(
        tokens=np.array([[10.0, 20.0], [10.0, 1.0]]),
        turns=np.array([2, 1]),
        observed=np.array([[50.0], [0.0]]),
        tools=np.array([[1.0], [0.0]]),
    )
    seconds, idle, rows = engine(ROUND, SMALL, lengths, 100, 1)
    assert seconds == pytest.approx(0.2 + 0.04 + 1.0 + 0.1 + 0.04)
    assert (idle, rows) == (pytest.approx(1.0), pytest.approx(40 / 30))


def test_means_are_what_was_asked_for():
    work = Work(turn_tokens=200, tool_seconds=2.0, observed_tokens=0)
    tokens, _, _, tools = drawn(work, 20_000, np.random.default_rng(0))
    assert tokens[:, 0].mean() == pytest.approx(200, rel=0.02)
    assert tools.mean() == pytest.approx(2.0, rel=0.02)
    assert tokens.sum(1).max() <= work.most_tokens


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("seconds", [0.1, 5.0])
def test_lockstep_is_never_ahead_of_overlap(seed, seconds):
    work = Work(tool_seconds=seconds)
    lengths = drawn(work, 32, np.random.default_rng(seed))
    lockstep, overlap = (
        engine(H100, QWEN_7B, lengths, work.prompt_tokens, 2, lockstep=each)
        for each in (True, False)
    )
    assert overlap[0] <= lockstep[0] * 1.02
    assert overlap[1] <= lockstep[1] + 1e-9


def test_more_gpus_never_take_longer_but_are_worth_less_each():
    times = [iteration(H100, QWEN_7B, Work(), gpus).all for gpus in (8, 64, 512)]
    assert times[0] > times[1] > times[2]
    assert times[0] / times[1] < 8
    assert times[1] / times[2] < times[0] / times[1]


def test_sharing_tokens_saves_scoring_and_updates_and_nothing_else():
    whole = iteration(H100, QWEN_7B, Work(), 8)
    half = iteration(H100, QWEN_7B, Work(shared=2.0), 8)
    assert half.sample == whole.sample
    assert half.update == pytest.approx(whole.update / 2)
    assert half.score == pytest.approx(whole.score / 2)


def test_branches_are_sampled_mini_batch_by_mini_batch():
    """128 prompts of 4 and 12 in 8 mini-batches: 512 trajectories, then 8 times 192 that begin
    after two of four turns, 400 + 2 (250 + 350) tokens."""
    first, *others = Work(branches=12).rounds()
    assert (first.trajectories, first.turns) == (512, 4)
    assert [one.trajectories for one in others] == [192] * 8
    assert {(one.turns, one.prompt_tokens) for one in others} == {(2, 1600)}
    appo, grpo = (iteration(H100, QWEN_7B, Work(branches=n), 64) for n in (12, 0))
    assert appo.update == pytest.approx(grpo.update / 4)
    assert appo.score == grpo.score
    assert appo.push == pytest.approx(9 * grpo.push)
    assert appo.rows < grpo.rows


def test_a_fit_finds_the_machine_that_the_steps_were_made_with():
    made = replace(ROUND, launch=0.003, decode_share=0.4, multiply_share=0.9)
    bound = Model(1e9, 0.0)
    steps = {rows: step_seconds(made, bound, rows, MIDDLE, 1) for rows in FITTED}
    found = fitted(ROUND, bound, steps)
    for name in ("launch", "decode_share", "multiply_share"):
        assert getattr(found, name) == pytest.approx(getattr(made, name))


def test_lengths_are_those_of_the_trajectories():
    """One of two turns with a call of 0.5 s and three observed tokens, one of a single turn."""
    state = EnvState("Toy", "1", "train", "a")
    first, second = (Trajectory((1, 2), state, path=(n,)) for n in range(2))
    call = Call("search", "x", ok=True, seconds=0.5, free=False)
    first.turns = [
        Turn(state, Completion((5, 6)), (7, 8, 9), call),
        Turn(state, Completion((4,)), ()),
    ]
    second.turns = [Turn(state, Completion((3, 3, 3)), ())]
    found = lengths_of([first, second])
    assert found.turns.tolist() == [2, 1]
    assert found.tokens.tolist() == [[2, 1], [3, 1]]
    assert found.observed.tolist() == [[3], [0]]
    assert found.tools.tolist() == [[0.5], [0.0]]


@pytest.mark.parametrize("seconds", [(0.022, 0.040, 0.084), (0.037, 0.096, 0.656)])
def test_a_fit_to_steps_that_the_model_cannot_make_stays_a_machine(seconds):
    """Steps that grow slower or faster with rows than by a launch and as much for each."""
    model, bare = Model(1.35e8, 23_040), Machine(9e11, 5e10, 1, 1, 1)
    found = fitted(bare, model, dict(zip(FITTED, seconds, strict=True)))
    assert 0 <= found.launch < seconds[0]
    assert 0 < found.decode_share <= 1 + 1e-9
    assert found.multiply_share > 0
