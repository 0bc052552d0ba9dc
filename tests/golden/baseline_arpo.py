"""Golden rollouts of ARPO's code: which rows it branched, replayed on our trees."""

from types import SimpleNamespace

import pytest

from learners import arpo
from learners.entropy_branching import entropy_gain
from learners.tree import Completion, Turn
from tests.golden.appo_replay import Draws, listed_entropy
from tests.tree_fakes import START, new_tree


def config_of(params):
    names = ("entropy_weight", "branch_probability", "entropy_tokens")
    return SimpleNamespace(
        rollouts=params.get("n"),
        beam=params.get("beam_size"),
        **{name: params[name] for name in names if name in params},
    )


def branch_rule_agrees(case):
    found = [
        arpo.branches(row["u"], row["entropy_now"] - row["entropy_initial"], config_of(row))
        for row in case.inputs["rows"]
    ]
    assert found == [bool(flag) for flag in case.outputs["branch"]]


def turn_of(row):
    entropies = tuple(listed_entropy(listed) for listed in row["logprobs"])
    ids = tuple(row["token_ids"])
    return Turn(START, Completion(ids, (0.0,) * len(ids), entropies), ())


def first_running(tree, known):
    """The code draws for prompts in the order of their first running rows."""
    running = [i for i, t in enumerate(known) if not t.done and t in tree.trajectories]
    return min(running, default=len(known))


def rollout_agrees(case):
    draws, vocabulary = Draws(case.outputs["random_draws"]), case.inputs["vocab_size"]
    config = config_of(case.params)
    replay(case, draws, lambda tree: arpo.grow(tree, config, vocabulary, draws))


def replay(case, draws, grow, after_round=None):
    """Who is branched or started anew after every round; text and tools are compared elsewhere.

    `grow` is asked for every tree, `after_round` is told which trees have grown.
    """
    p, rounds = case.params, case.outputs["rounds"]
    trees = [new_tree() for _ in case.inputs["prompts"]]
    counts = map(int, rounds[0]["rollouts_per_prompt_before"])
    known = [tree.root() for tree, n in zip(trees, counts, strict=True) for _ in range(n)]
    calls = case.inputs["engine_calls"][case.inputs["n_pre_monitoring_calls"] :]
    for number, (step, call) in enumerate(zip(rounds, calls, strict=True)):
        counts = [len(tree.trajectories) for tree in trees]
        assert counts == [int(count) for count in step["rollouts_per_prompt_before"]]
        following = rounds[number + 1] if number + 1 < len(rounds) else None
        going = {int(i) for i in following["active_indices"]} if following else set()
        for index, row in zip(step["active_indices"], call["rows"], strict=True):
            known[int(index)].turns.append(turn_of(row))
            known[int(index)].done = int(index) not in going
        order = sorted(trees, key=lambda tree: first_running(tree, known))
        for tree in order:
            grow(tree)
        new = [t for tree in order for t in tree.trajectories if t not in known]
        new.sort(key=lambda t: t.parent is None)  # the code starts anew after all branches
        sources = [known.index(t.parent.trajectory) if t.parent else None for t in new]
        assert sources == [row["source_index"] for row in (following or {}).get("new_indices", [])]
        known += new
        if after_round is not None:
            grown = [len(t.trajectories) > n for t, n in zip(trees, counts, strict=True)]
            after_round(trees, grown)
    assert draws.values == []
    assert all(len(tree.trajectories) == p["n"] for tree in trees)


def first_entropies_are_its_own(case):
    """The code compares with what another batch's row of the same number had."""
    carried = case.inputs["carried_initial_entropy"]
    first, rows = case.outputs["rounds"][0], case.inputs["engine_calls"][0]["rows"]
    now = [float(value) for value in first["normalised_entropy"]]
    assert any(
        carried[key] != pytest.approx(now[int(key)]) for key in carried if int(key) < len(now)
    )
    for row in rows:
        root = new_tree().root()
        root.turns.append(turn_of(row))
        assert entropy_gain(root, 20, case.inputs["vocab_size"]) == 0
