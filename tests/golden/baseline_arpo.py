"""Golden rollouts of ARPO's code: which rows it branched, replayed on our trees."""

from types import SimpleNamespace

import pytest

from learners import arpo
from learners.tree import Completion, Turn
from tests.golden.appo_replay import listed_entropy
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


class Draws:
    """Gives what the code drew, in its order."""

    def __init__(self, values):
        self.values = [float(value) for value in values]

    def random(self):
        return self.values.pop(0)


def turn_of(row):
    entropies = tuple(listed_entropy(listed) for listed in row["logprobs"])
    ids = tuple(row["token_ids"])
    return Turn(START, Completion(ids, (0.0,) * len(ids), entropies), ())


def first_running(tree, known):
    """The code draws for prompts in the order of their first running rows."""
    running = [i for i, t in enumerate(known) if not t.done and t in tree.trajectories]
    return min(running, default=len(known))


def rollout_agrees(case):
    """Who is branched or started anew after every round; text and tools are compared elsewhere."""
    p, o = case.params, case.outputs
    config, draws = config_of(p), Draws(o["random_draws"])
    trees = [new_tree() for _ in case.inputs["prompts"]]
    known = [tree.root() for tree in trees for _ in range(p["initial_rollouts"])]
    calls = case.inputs["engine_calls"]
    for number, (step, call) in enumerate(zip(o["rounds"], calls, strict=True)):
        counts = [len(tree.trajectories) for tree in trees]
        assert counts == [int(count) for count in step["rollouts_per_prompt_before"]]
        following = o["rounds"][number + 1] if number + 1 < len(o["rounds"]) else None
        going = {int(i) for i in following["active_indices"]} if following else set()
        for index, row in zip(step["active_indices"], call["rows"], strict=True):
            known[int(index)].turns.append(turn_of(row))
            known[int(index)].done = int(index) not in going
        order = sorted(trees, key=lambda tree: first_running(tree, known))
        for tree in order:
            arpo.grow(tree, config, case.inputs["vocab_size"], draws)
        new = [t for tree in order for t in tree.trajectories if t not in known]
        new.sort(key=lambda t: t.parent is None)  # the code starts anew after all branches
        sources = [known.index(t.parent.trajectory) if t.parent else None for t in new]
        assert sources == [row["source_index"] for row in (following or {}).get("new_indices", [])]
        known += new
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
        assert arpo.entropy_gain(root, 20, case.inputs["vocab_size"]) == 0
