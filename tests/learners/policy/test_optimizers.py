"""Muon with AdamW: which one updates which parameter, and that the pair resumes like one."""

import torch

from learners.policy.loading import load_model
from learners.policy.optimizers import MuonWithAdamW, make_optimizer


def stepped(optimizer, model, seed):
    """Take three steps with gradients that the seed decides."""
    draw = torch.Generator().manual_seed(seed)
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=draw)
        optimizer.step()
        optimizer.zero_grad()


def made(name, model):
    return make_optimizer(
        name, model.named_parameters(), learning_rate=1e-3, betas=(0.9, 0.98), weight_decay=0.01
    )


def test_muon_takes_the_hidden_matrices_and_nothing_else():
    model = load_model("tiny").model
    adamw, muon = made("muon", model).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    by_muon = {names[id(p)] for p in muon["params"]}
    assert by_muon == {n for n in names.values() if n.endswith("_proj.weight")}
    rest = {names[id(p)] for p in adamw["params"]}
    assert rest == set(names.values()) - by_muon
    assert any("embed" in name for name in rest)


def test_a_step_of_muon_has_the_size_of_adamws_and_no_preferred_direction():
    sizes, spread = {}, {}
    for name in ("adamw", "muon"):
        model = load_model("tiny").model
        before = model.model.layers[0].mlp.up_proj.weight.clone()
        stepped(made(name, model), model, seed=0)
        change = (model.model.layers[0].mlp.up_proj.weight - before).detach()
        sizes[name] = change.square().mean().sqrt()
        values = torch.linalg.svdvals(change)
        spread[name] = values.max() / values.median()
    # AdamW's first steps have a root mean square of the rate itself, its later ones of 0.2 to 0.4.
    assert 0.1 < sizes["muon"] / sizes["adamw"] < 1
    assert spread["muon"] < spread["adamw"]


def test_the_pair_continues_from_its_state_bit_for_bit():
    whole, first = load_model("tiny").model, load_model("tiny").model
    straight, halted = made("muon", whole), made("muon", first)
    stepped(straight, whole, seed=1)
    stepped(halted, first, seed=1)
    second = load_model("tiny").model
    second.load_state_dict(first.state_dict())
    resumed = made("muon", second)
    assert isinstance(resumed, MuonWithAdamW)
    resumed.load_state_dict(halted.state_dict())
    stepped(straight, whole, seed=2)
    stepped(resumed, second, seed=2)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True)
    )


def test_frozen_parameters_are_in_neither():
    model = load_model("tiny").model
    model.model.layers[0].requires_grad_(False)
    held = {id(p) for group in made("muon", model).param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
