"""Golden rollouts of ARPO's code: which rows it branched, replayed on our trees."""

import zlib
from dataclasses import replace
from types import SimpleNamespace

import pytest

from benchmarks import Task
from envs import ToolEnv
from learners import arpo
from learners.rl.branching import entropy_gain
from learners.rollouts.rollout import Rollouts
from learners.tree import Completion, Turn
from tests.fakes import TOY
from tests.golden.appo_replay import Draws, ScriptedSampler, TableTokenizer, listed_entropy
from tests.tree_fakes import START, new_tree
from tools import ToolResult


def config_of(params):
    names = ("entropy_weight", "branch_probability", "entropy_tokens")
    return SimpleNamespace(
        rollouts=params.get("n"),
        beam=params.get("beam_size"),
        **{name: params[name] for name in names if name in params},
    )


def branch_rule_agrees(case):
    found = [
        arpo.should_branch(row["u"], row["entropy_now"] - row["entropy_initial"], config_of(row))
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
    if plays_alike(case):
        draws = Draws(case.outputs["random_draws"])
        texts_agree(case, lambda tree: arpo.grow(tree, config, vocabulary, draws))


def replay(case, draws, grow, after_round=None):
    """Who is branched or started anew after every round; for text and tools see `texts_agree`.

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


def plays_alike(case):
    """Whether no call was refused and no row cut: there the code does what ours does not."""
    full = (row[-1] for row in case.outputs["responses"].tolist())
    return not case.outputs["metrics"]["tools/call_limit_reached_count"] and not any(full)


class RuleTool:
    """Answers by a hash, as the code's stand-in did; what fails there says what the code says."""

    description = "Looks things up."

    def __init__(self, name):
        self.name = name

    def initial_state(self, context):
        return ()

    def run(self, state, argument):
        number = zlib.crc32((self.name + argument).encode()) % 10
        said = "R" + str(number) * (1 + number % 4)
        failed = f"Tool({self.name}) returned empty output."
        return state, ToolResult(failed if number < 2 else said, number > 1, 0.0)

    def close(self):
        pass


class PromptSampler(ScriptedSampler):
    """Says of one round, to whoever asks, the first answer to what was asked that is left."""

    def completed(self):
        left, asked, self.requests = self.rounds.pop(0), self.requests, []
        for request in asked:
            ids = [*request.prefix_ids, *request.prefill_ids]
            row = next(row for row in left if row["prompt"] == ids)
            left.remove(row)
            yield request, turn_of(row).action
        assert left == []


def texts_agree(case, grow):
    """Ids and masks of every row, played through our rollouts with the code's engine and tools."""
    p, i = case.params, case.inputs
    prompts = [[token for token in row if token != i["pad"]] for row in i["prompts"].int().tolist()]
    toy = replace(TOY, load=lambda *_, **__: [Task(f"t{k}", "q", ("a",)) for k in range(9)])
    tools = [RuleTool(name) for name in ("search", "python")]
    env = ToolEnv(toy, tools=tools, max_tool_calls=p["tool_call_limit"])
    rounds = [list(call["rows"]) for call in i["engine_calls"][i["n_pre_monitoring_calls"] :]]
    unnamed = [f"~{token};" for token in range(len(i["pieces"]), i["vocab_size"])]
    tokenizer = TableTokenizer([*i["pieces"], *unnamed], prompts)
    rollouts = Rollouts(env, PromptSampler(rounds), tokenizer, 400, tool_threads=1)
    trees = [rollouts.tree(task) for task in toy.load()[: len(prompts)]]
    counts = map(int, case.outputs["rounds"][0]["rollouts_per_prompt_before"])
    known = [tree.root() for tree, n in zip(trees, counts, strict=True) for _ in range(n)]

    def after_turn(trees):
        for tree in sorted(trees, key=lambda tree: first_running(tree, known)):
            grow(tree)
        new = [t for tree in trees for t in tree.trajectories if t not in known]
        known.extend(sorted(new, key=lambda t: t.parent is None))

    rollouts.run(trees, "0", after_turn)
    found = [t for tree in trees for t in tree.trajectories]
    responses, masks = (case.outputs[n].int().tolist() for n in ("responses", "loss_mask"))
    for trajectory, ids, mask in zip(found, responses, masks, strict=True):
        assert list(trajectory.response_ids) == ids[: len(trajectory)]
        assert list(map(int, trajectory.response_mask)) == mask[: len(trajectory)]
        assert not any(ids[len(trajectory) :] + mask[len(trajectory) :])


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
