"""Memory peaks are measured and explained, and checkpointing lowers them."""

import copy
import mmap

import pytest
import torch

from learners.ledger import Ledger
from learners.metrics import PEAK
from learners.policy.activations import SavedTensors
from learners.policy.loading import load_model
from learners.policy.policy import Policy
from learners.runs.memory import (
    IterationMeter,
    MemoryProfile,
    ProcessMeter,
    format_report,
    iter_tensors,
)
from learners.runs.session import run_iteration
from tests.learners.policy.test_policy import credited, gradients
from tests.learners.test_methods import session_of

MIB = 2**20


class Meter:
    """Returns the peaks that the test gives, one per reading."""

    def __init__(self, *peaks):
        self.peaks = list(peaks)

    def peak(self):
        return self.peaks.pop(0)

    def reset(self):
        pass


def test_the_resident_peak_is_measured_and_forgotten():
    meter = ProcessMeter()
    meter.reset()
    before = meter.peak()
    with mmap.mmap(-1, 64 * MIB) as block:  # a tensor may lie in memory that was held already
        block[:: mmap.PAGESIZE] = bytes(64 * MIB // mmap.PAGESIZE)
        assert meter.peak() - before > 60 * MIB
    meter.reset()
    assert meter.peak() - before < 30 * MIB


def test_the_peak_of_an_iteration_outlives_what_others_reset():
    """Read when another resets it, and at the end."""
    peak = IterationMeter(Meter(70, 30))
    peak.begin()
    peak.reset()
    assert peak.iteration_peak() == 70


def test_an_iteration_reports_its_own_peak_and_not_that_of_the_run(taught):
    """A block of 300 MiB in one iteration does not count for the next, profiled or not."""
    torch.set_num_threads(1)
    session, iteration = session_of(taught, "grpo")
    held = [torch.ones(300 * MIB // 4)]

    def heavy(*given):
        held[0].sum()
        iteration(*given)
        held.clear()

    first = run_iteration(session, heavy)[PEAK]
    session.run.config = session.run.config.override(profile_memory=True)
    second = run_iteration(session, iteration)[PEAK]
    assert first - second > 200 * MIB


def test_a_phase_inside_another_counts_for_both():
    """Read at the start of each and at the end of each, the inner one first."""
    profile = MemoryProfile(Meter(10, 50, 90, 20))
    with profile.phase("outer"), profile.phase("inner"):
        pass
    assert profile.peaks == {"inner": 90, "outer": 90}


def test_a_peak_before_an_inner_phase_is_the_outer_ones():
    profile = MemoryProfile(Meter(10, 70, 30, 20))
    with profile.phase("outer"), profile.phase("inner"):
        pass
    assert profile.peaks == {"inner": 30, "outer": 70}


def test_the_largest_of_several_phases_of_a_name_counts():
    profile = MemoryProfile(Meter(0, 5, 0, 8, 0, 6))
    for _ in range(3):
        with profile.phase("update"):
            pass
    assert profile.peaks == {"update": 8}


def test_the_ledger_enters_its_watch_in_each_phase():
    ledger, profile = Ledger(), MemoryProfile(Meter(1, 2))
    ledger.watch = profile.phase
    with ledger.phase("score"):
        pass
    assert profile.peaks == {"score": 2}


def test_what_a_product_keeps_is_counted_without_its_weights():
    """x of (3, 4) floats is kept for the weights' gradient: 48 bytes; the weights are not."""
    layer, kept = torch.nn.Linear(4, 2, bias=False), SavedTensors()
    with kept.count(layer.parameters(), tokens=3):
        out = layer(torch.ones(3, 4))
    assert (kept.bytes, kept.tokens) == (48, 3)
    out.sum().backward()
    assert layer.weight.grad.tolist() == [[3.0] * 4] * 2


def test_the_pass_that_saves_most_counts():
    layer, kept = torch.nn.Linear(4, 2, bias=False), SavedTensors()
    for rows in (3, 5, 1):
        with kept.count(layer.parameters(), rows):
            layer(torch.ones(rows, 4))
    assert (kept.bytes, kept.tokens) == (80, 5)


def test_tensors_are_found_wherever_a_state_has_them():
    one, two = torch.zeros(1), torch.zeros(2)
    assert list(iter_tensors({"a": [{"b": one}], "c": {0: two, 1: 3.0}})) == [one, two]


def test_a_report_says_where_the_peak_was_and_why():
    found = {
        "weights": 100 * MIB,
        "gradients": 100 * MIB,
        "kept for the backward pass": 700 * MIB,
        "the sampler's keys and values": 50 * MIB,
        "the optimiser's state": 0,
    }
    said = format_report({"sample": 400 * MIB, "update": 2**30}, found, 512)
    assert said == (
        "peak memory 1.00 GiB in update (sample 400 MiB)\n"
        "    700 MiB  kept for the backward pass\n"
        "    100 MiB  weights\n"
        "    100 MiB  gradients\n"
        "    124 MiB  the rest: Python, libraries, temporary buffers\n"
        "  the largest forward and backward pass computed 512 tokens\n"
        "  less of kept for the backward pass: "
        "--microbatch-tokens, --gradient-checkpointing or --autocast"
    )


def test_a_peak_while_sampling_is_not_put_down_to_the_update():
    found = {"weights": 100 * MIB, "gradients": 900 * MIB, "the sampler's keys and values": MIB}
    said = format_report({"sample": 400 * MIB, "update": 300 * MIB}, found, 512)
    assert "in sample" in said
    assert "gradients" not in said
    assert "keys and values" in said


def test_memory_is_not_profiled_by_default(taught, capsys):
    session, iteration = session_of(taught, "grpo")
    ledger = session.ledger
    before = ledger.watch
    run_iteration(session, iteration)
    assert ledger.watch is before
    assert session.policy.saved_tensors is None
    assert "peak memory" not in capsys.readouterr().out


def test_an_iteration_says_what_its_memory_was_for(taught, capsys):
    torch.set_num_threads(1)
    session, iteration = session_of(taught, "grpo")
    session.run.config = session.run.config.override(profile_memory=True)
    run_iteration(session, iteration)
    said = capsys.readouterr().out
    assert "peak memory" in said
    assert "weights" in said
    assert session.policy.saved_tensors is None


@pytest.fixture(scope="module")
def tiny():
    torch.set_num_threads(1)
    return load_model("tiny", dtype=torch.float64)


def kept_by(tiny, rows, weights, loss, **options):
    copied = tiny._replace(model=copy.deepcopy(tiny.model))
    policy = Policy(copied, learning_rate=1e-3, **options)
    policy.saved_tensors = kept = SavedTensors()
    policy.update(rows, weights, loss)
    return kept.bytes


@pytest.mark.parametrize("packs", ["never", "always"])
def test_checkpointing_keeps_less_and_changes_no_gradient(tiny, packs):
    rows, weights = credited(tiny)

    def loss(logprobs, batch):
        return (logprobs * batch.weights).sum()

    plain, _ = gradients(tiny, rows, weights, loss, packs=packs)
    less, _ = gradients(tiny, rows, weights, loss, packs=packs, gradient_checkpointing=True)
    assert all(torch.equal(plain[name], less[name]) for name in plain)
    most = kept_by(tiny, rows, weights, loss, packs=packs)
    least = kept_by(tiny, rows, weights, loss, packs=packs, gradient_checkpointing=True)
    assert least < most / 3


def test_checkpointing_leaves_the_model_as_the_sampler_needs_it(tiny):
    rows, weights = credited(tiny)
    copied = tiny._replace(model=copy.deepcopy(tiny.model))
    policy = Policy(copied, learning_rate=1e-3, gradient_checkpointing=True)
    policy.update(rows, weights, lambda logprobs, batch: (logprobs * batch.weights).sum())
    assert not any(module.training for module in policy.model.modules())


def test_a_phase_that_fails_is_recorded_and_raises():
    profile = MemoryProfile(Meter(0, 7))
    with pytest.raises(ZeroDivisionError), profile.phase("update"):
        raise ZeroDivisionError
    assert profile.peaks == {"update": 7}
