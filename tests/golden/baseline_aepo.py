"""Golden cases of AEPO's code: its budget, its branching, its losses."""

from collections import Counter
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from learners import aepo
from learners.rl.advantages import normalise
from learners.rl.branching import turn_entropy
from learners.rl.losses import dual_clipped_policy_loss, token_mean
from tests.golden.appo_replay import Draws
from tests.golden.baseline_arpo import plays_alike, replay, texts_agree, turn_of
from tests.golden.baseline_formulas import COUNTED, clips_of, credit_agrees, loss_agrees

PENALTY, SENSITIVITY = 0.05, 0.5
"""Numbers in the code."""


def config_of(params):
    return SimpleNamespace(
        rollouts=params.get("n"),
        beam=params.get("beam_size"),
        entropy_tokens=params.get("entropy_tokens"),
        entropy_weight=params["entropy_weight"],
        branch_threshold=params["branch_probability"],
        branch_penalty=PENALTY,
    )


def branch_rule_agrees(case):
    found = [
        aepo.should_branch(
            row["u"],
            row["entropy_now"] - row["entropy_initial"],
            row["consecutive_branches"],
            config_of(row),
        )
        for row in case.inputs["rows"]
    ]
    assert found == [bool(flag) for flag in case.outputs["branch"]]
    assert len(set(found)) == 2


def budget_rule_agrees(case):
    rows = case.inputs["rows"]
    found = [
        aepo.initial_rollouts(row["n"], row["entropy_root"], row["step_entropies"], SENSITIVITY)
        for row in rows
    ]
    assert found == case.outputs["initial_rollouts"].int().tolist()


def budgets_agree(case):
    """Of the code's probes: the first call asks every prompt for a few tokens, the others go on."""
    p, i = case.params, case.inputs
    prompts = [[token for token in prompt if token] for prompt in i["prompts"].int().tolist()]
    roots, steps = {}, {number: [] for number in range(len(prompts))}
    for number, call in enumerate(i["engine_calls"][: i["n_pre_monitoring_calls"]]):
        for row in call["rows"]:
            (own,) = (k for k, q in enumerate(prompts) if row["prompt"][: len(q)] == q)
            found = turn_entropy(turn_of(row), p["entropy_tokens"], i["vocab_size"])
            if number == 0:
                roots[own] = found
            else:
                steps[own].append(found)
    budgets = [aepo.initial_rollouts(p["n"], roots[k], steps[k], SENSITIVITY) for k in steps]
    counts = case.outputs["rounds"][0]["rollouts_per_prompt_before"]
    assert budgets == [int(count) for count in counts]


def grower(case, draws, growing):
    """Grows a tree; returns in how many rounds it has, as ours counts."""
    config, vocabulary = config_of(case.params), case.inputs["vocab_size"]
    return lambda tree: aepo.grow(tree, config, vocabulary, draws, growing[tree])


def rollout_agrees(case):
    if case.params["dynamic_rollouts"]:
        budgets_agree(case)
    draws = Draws(case.outputs["random_draws"])
    replay(case, draws, counting(grower(case, draws, growing := Counter()), growing))
    if plays_alike(case):
        draws = Draws(case.outputs["random_draws"])
        texts_agree(case, counting(grower(case, draws, growing := Counter()), growing))


def counting(grow, growing):
    return lambda tree: growing.update({tree: grow(tree) - growing[tree]})


def all_but_the_pause_agrees(case):
    """Counted as the code does, in rounds where some prompt has grown, every tree is the same."""
    with pytest.raises(AssertionError):
        rollout_agrees(case)
    draws, growing = Draws(case.outputs["random_draws"]), Counter()

    def count(trees, grown):
        if any(grown):
            for tree, own in zip(trees, grown, strict=True):
                growing[tree] = growing[tree] + 1 if own else 0

    replay(case, draws, grower(case, draws, growing), count)


def weighed(case, weight):
    """A copy of the case whose advantages are the entropy-aware ones."""
    rows = list(case.inputs["entropy"]), list(case.mask)
    factors = torch.stack(aepo.entropy_factors(*rows, weight))
    advantages = case.outputs["advantages"] * factors
    return SimpleNamespace(
        file=case.file,
        params=case.params,
        inputs=case.inputs,
        mask=case.mask,
        trl=False,
        close=partial(case.close, **COUNTED) if weight else case.close,
        outputs={"advantages": advantages},
    )


def method_agrees(case):
    """Advantages of groups, and all four of the code's losses with their gradients."""
    credit_agrees(case, normalise)
    config = SimpleNamespace(**clips_of(case))
    weight = case.params["entropy_adv_coef"]
    losses = {"clip": aepo.policy_loss, "plain": dual_clipped_policy_loss}
    for name, a, loss in (
        ("clip_and_adv", weight, losses["clip"]),
        ("clip_only", 0.0, losses["clip"]),
        ("adv_only", weight, losses["plain"]),
        ("none", 0.0, losses["plain"]),
    ):
        theirs = case.outputs["variants"][name]
        expected = (theirs["pg_loss"], theirs["grad"])
        loss_agrees(weighed(case, a), partial(loss, config=config), expected=expected)


def entropies_are_never_missing(case):
    """Without them the code trains on plain advantages, and says nothing; see `TokenStats`."""
    assert case.inputs["entropy"] is None
    config = SimpleNamespace(**clips_of(case))
    expected = (case.outputs["pg_loss"], case.outputs["grad"])
    loss_agrees(case, partial(aepo.policy_loss, config=config), token_mean, expected)
    draw = torch.Generator().manual_seed(0)
    entropies = torch.rand(case.mask.shape, generator=draw, dtype=torch.float64)
    factors = torch.stack(aepo.entropy_factors(list(entropies), list(case.mask), 0.2))
    assert (factors != 1)[case.mask].all()
