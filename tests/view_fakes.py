"""Runs for the viewer, written by hand: trees with and without branches, better and worse ones."""

import json
from dataclasses import replace

import torch

from envs import Call, EnvState
from learners.rollouts.storage import write_rollouts
from learners.tree import BranchPoint, Completion, RolloutTree, Turn
from tests.fakes import TOY, toy_load

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)><!-- {{DATA}}"
"""A question that tries to be markup."""


class Words:
    """A token is an index into a list of texts."""

    def __init__(self):
        self.texts = []

    def encode(self, *texts):
        first = len(self.texts)
        self.texts += texts
        return tuple(range(first, len(self.texts)))

    def decode(self, token_ids, skip_special_tokens):
        return "".join(self.texts[token] for token in token_ids)


def write_run(folder, iterations=2, long=0):
    """Write a run of APPO: rollouts, metrics and config; `long` more tokens in every answer."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"method": "learners.appo", "env": "appo/SyntheticQA-v0", "iterations": 3}
    (folder / "config.json").write_text(json.dumps(config | {"future_clip": 0.2}))
    for number in range(iterations):
        write_iteration(folder, number, long)


def write_iteration(folder, number, long=0):
    """Add an iteration to a run."""
    words = Words()
    trees = [
        make_tree(words, TOY_TASKS[0], moved=True, long=long),
        make_tree(words, hostile_task(), moved=False),
    ]
    write_rollouts(folder, number, trees, words)
    line = {
        "iteration": number,
        "reward/mean": 0.25 + 0.25 * number,
        "ledger/sampled_tokens": 30,
        "ledger/reused_tokens": 10,
        "ledger/tool_calls": 4,
        "seconds/sample": 0.5,
    }
    with (folder / "metrics.jsonl").open("a") as lines:
        lines.write(json.dumps(line) + "\n")


TOY_TASKS = toy_load("train")


def hostile_task():
    return replace(TOY_TASKS[1], question=HOSTILE)


def make_tree(words, task, moved, long=0):
    """Make a wrong root with two branches: one that is right, and one that changed nothing."""
    start = EnvState(TOY.name, TOY.revision, "train", task.id)
    tree = RolloutTree(task, words.encode("ask"), start)
    root = tree.root()
    asks = words.encode("<search>", " Milo", "</search>")
    call = Call("search", "Milo", True, 0.25, False)
    root.turns.append(Turn(start, complete(asks), words.encode(" <result>", HOSTILE), call))
    more = tuple(f" word{i}" for i in range(long))
    root.turns.append(Turn(start, complete(words.encode("<answer>", *more, " 4", "</answer>")), ()))
    finish(root, 0.0)
    for position, text, reward in ((2, "!</search>", 1.0), (6 + long, " 5", 0.0)):
        branch = tree.fork(BranchPoint(root, position, 1.5 if moved else 0.0))
        rest = words.encode(text, "</answer>")
        branch.turns.append(Turn(start, branch.prefill + complete(rest), ()))
        branch.prefill = Completion()
        finish(branch, reward)
    length = len(root)
    root.old_logprobs = torch.full((length,), -0.5)
    marks = root.diagnostics
    marks.logprobs, marks.entropies = root.old_logprobs, torch.linspace(0, 2, length)
    marks.age = int(moved)
    if moved:
        marks.future_values = torch.linspace(0.9, 1.1, length)
        marks.scores = torch.linspace(-1, 2, length)
        marks.advantages, marks.weights = torch.full((length,), -0.5), torch.ones(length)
    return tree


def write_rollouts_alone(folder, ends=((" 4", 1.0), (" 4", 0.0), (" 5", 0.0), (" 4", 1.0))):
    """Write a run of GRPO: a tree whose rollouts diverge at token 1, and an evaluation."""
    folder.mkdir(parents=True)
    config = {"method": "learners.grpo", "env": "appo/SyntheticQA-v0", "iterations": 1}
    (folder / "config.json").write_text(json.dumps(config))
    words, task = Words(), TOY_TASKS[0]
    start = EnvState(TOY.name, TOY.revision, "train", task.id)
    tree = RolloutTree(task, words.encode("ask"), start)
    for text, reward in ends:
        root = tree.root()
        root.turns.append(Turn(start, complete(words.encode("<answer>", text, "</answer>")), ()))
        finish(root, reward)
    write_rollouts(folder, 0, [tree], words)
    line = {"iteration": 0, "ledger/sampled_tokens": 12, "memory/peak": 3 * 2**29}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    evaluation = {
        "tasks": [],
        "ledger/sampled_tokens": 5,
        "ledger/judge_calls": 2,
        "ledger/cost": 0.5,
    }
    (folder / "evaluation-before.json").write_text(json.dumps(evaluation))


def complete(ids):
    return Completion(ids, (-0.5,) * len(ids), (0.25,) * len(ids))


def finish(trajectory, reward):
    trajectory.reward, trajectory.done = reward, True
    trajectory.reward_terms = {"score": reward}
    trajectory.state = replace(trajectory.state, stop="answered")
