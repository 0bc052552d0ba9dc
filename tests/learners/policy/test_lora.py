"""LoRA: only adapters train, checkpoints are whole models, and a run resumes where it was."""

import sys

import pytest
import torch
from safetensors.torch import load_file

from learners.config import RunConfig
from learners.errors import UsageError
from learners.policy import lora
from learners.policy.loading import load_model, save_model
from learners.policy.policy import Policy
from learners.policy.reference import make_reference
from learners.runs.training import main
from learners.tree import Row
from tests import needs
from tests.learner_fakes import likelihood
from tests.learners.policy.test_policy import SHAPES, trajectories

needs.packages("peft")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def adapted(rank=4):
    loaded = load_model("tiny")
    lora.add_adapters(loaded.model, rank, None, seed=0)
    return loaded


def update(policy):
    (made, *_) = trajectories(*SHAPES)
    policy.update([Row(made, torch.zeros(len(made)))], [torch.ones(len(made))], likelihood)


def logprobs(loaded):
    stats = Policy(loaded, learning_rate=0.0).token_stats(trajectories(*SHAPES))
    return torch.cat([one.logprobs for one in stats])


def test_adapters_change_nothing_until_they_are_trained():
    torch.testing.assert_close(logprobs(adapted()), logprobs(load_model("tiny")), rtol=0, atol=1e-5)


def test_an_update_trains_adapters_alone():
    loaded = adapted()
    before = {name: p.clone() for name, p in loaded.model.named_parameters()}
    update(Policy(loaded, learning_rate=1e-2))
    moved = {n for n, p in loaded.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert all("lora_" in name for name in moved)
    trained = sum(p.numel() for p in loaded.model.parameters() if p.requires_grad)
    assert trained < 0.1 * sum(p.numel() for p in loaded.model.parameters())


def test_a_saved_model_is_whole_with_the_adapters_merged_in(tmp_path):
    loaded = adapted()
    update(Policy(loaded, learning_rate=1e-2))
    save_model(loaded, tmp_path)
    again = load_model(str(tmp_path))
    assert not lora.has_adapters(again.model)
    names = {name for name, _ in again.model.named_parameters()}
    assert names == {name for name, _ in load_model("tiny").model.named_parameters()}
    torch.testing.assert_close(logprobs(again), logprobs(loaded), rtol=0, atol=1e-4)
    assert not torch.allclose(logprobs(again), logprobs(load_model("tiny")), atol=1e-2)


def test_adapters_are_read_back_to_the_bit(tmp_path):
    loaded, other = adapted(), adapted()
    update(Policy(loaded, learning_rate=1e-2))
    save_model(loaded, tmp_path)
    lora.load_adapters(other.model, tmp_path)
    ours, theirs = (dict(one.model.named_parameters()) for one in (loaded, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_reference_of_a_run_with_adapters_is_the_model_without_them():
    """The adapters are enabled again afterwards."""
    loaded = adapted()
    policy = Policy(loaded, learning_rate=1e-2)
    update(policy)
    reference = make_reference(RunConfig.of(kl=0.1, lora_rank=4), policy)
    moved = logprobs(loaded)
    found = torch.cat(reference.logprobs(trajectories(*SHAPES)))
    torch.testing.assert_close(found, logprobs(load_model("tiny")), rtol=0, atol=1e-5)
    assert torch.equal(logprobs(loaded), moved)


def arguments(model, out, iterations):
    return (
        f"--model {model} --tools search calculator --prompts 3 --minibatch-prompts 1 "
        f"--rollouts 6 --initial-rollouts 3 --iterations {iterations} --max-response-tokens 80 "
        f"--temperature 1.4 --eval-tasks 2 --threads 1 --learning-rate 1e-2 --out {out} "
        "--lora-rank 4 --kl 0.01"
    ).split()


def test_a_resumed_run_with_adapters_ends_with_the_numbers_of_an_uninterrupted_one(
    taught, tmp_path
):
    main("learners.appo", arguments(taught, tmp_path / "whole", 2))
    main("learners.appo", arguments(taught, tmp_path / "parts", 1))
    main("learners.appo", arguments(taught, tmp_path / "parts", 2))
    for name in ("model.safetensors", lora.FILE):
        whole, parts = (
            load_file(tmp_path / folder / "checkpoints" / "000002" / name)
            for folder in ("whole", "parts")
        )
        assert all(torch.equal(whole[key], parts[key]) for key in whole)
    first = load_file(tmp_path / "whole" / "checkpoints" / "000001" / lora.FILE)
    assert any(not torch.equal(first[key], whole[key]) for key in first)


def test_without_peft_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match=r"--lora-rank 8 needs .* pip install 'appo-gym\[lora\]'"):
        lora.add_adapters(load_model("tiny").model, 8, None, seed=0)
