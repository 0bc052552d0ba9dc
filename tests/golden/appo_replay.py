"""Golden rollouts of APPO's published code, played through our rollouts.

A scripted sampler says what the code's engine said; the tools answer what its tools answered.
"""

from dataclasses import replace
from types import SimpleNamespace

import torch

from benchmarks import Task
from envs import ToolEnv
from learners.rollouts.rollout import Rollouts
from learners.sampling.sampler import SamplerStats
from learners.tree import BranchPoint, Completion
from tests.fakes import TOY
from tools import ToolResult

RESULT_BEGINS, RESULT_ENDS, END = 11, 12, 1
CLOSING = (8, 10)
"""Token ids of every table."""


class TableTokenizer:
    """Token id = place in a table; the longest match is encoded, other characters get high ids."""

    def __init__(self, table, prompts):
        self.table, self.prompts = table, list(prompts)

    def apply_chat_template(self, messages, **options):
        return self.prompts.pop(0)

    def encode(self, text, **options):
        ids = []
        while text:
            fits = [i for i, known in enumerate(self.table) if known and text.startswith(known)]
            best = max(fits, key=lambda i: len(self.table[i]), default=None)
            ids.append(1000 + ord(text[0]) if best is None else best)
            text = text[1 if best is None else len(self.table[best]) :]
        return ids

    def decode(self, ids, skip_special_tokens=False):
        kept = [i for i in ids if not (skip_special_tokens and i <= END)]
        return "".join(self.table[i] if i < 1000 else chr(i - 1000) for i in kept)


class ScriptedSampler:
    """Says one round after the other, whoever asks; the rest of a script that overruns is cut."""

    keep = None

    def __init__(self, rounds):
        self.rounds, self.requests = list(rounds), []

    def submit(self, request):
        self.requests.append(request)

    def completed(self):
        asked, self.requests = self.requests, []
        for request, said in zip(asked, self.rounds.pop(0), strict=True):
            yield request, said.first(request.max_tokens)

    def stats(self):
        return SamplerStats()

    def sync(self):
        pass

    def rest(self):
        pass


class Draws:
    """Gives what the code drew, in its order."""

    def __init__(self, values):
        self.values = [float(value) for value in values]

    def random(self):
        return self.values.pop(0)


class LookupTool:
    """Answers from a dict, as the code's stand-in did."""

    description = "Looks things up."

    def __init__(self, name, answers):
        self.name, self.answers, self.log = name, answers, []

    def initial_state(self, context):
        return ()

    def run(self, state, argument):
        self.log.append(argument)
        return state, ToolResult(self.answers[argument], True, 0.0)

    def close(self):
        pass


def said(output):
    """One answer of the engine as a completion; entropies are those of the listed tokens."""
    ids = tuple(output["token_ids"])
    pairs = output["logprobs"] or [[[token, -1.0]] for token in ids]
    logprobs = tuple(
        dict(map(tuple, listed))[token] for token, listed in zip(ids, pairs, strict=True)
    )
    entropies = tuple(listed_entropy(listed) for listed in pairs)
    stop = "tag" if output["stop_reason"] else "eos" if ids[-1] == END else "length"
    return Completion(ids, logprobs, entropies, stop)


def listed_entropy(pairs):
    """What the code takes for a token's entropy: no rest, not normalised."""
    p = torch.tensor([pair[1] for pair in pairs], dtype=torch.float64)
    return max(0.0, float(-(p.exp() * p).sum()))


def rollouts_of(case, prompts, rounds, room):
    config = case.params["config"]
    results = case.inputs["tool_results"]
    tools = [LookupTool(name, results[name]) for name in ("search", "python")]
    tasks = [Task(f"t{i}", "q", ("a",)) for i in range(len(prompts))]
    toy = replace(TOY, load=lambda split, data_dir=None: tasks)
    env = ToolEnv(toy, tools=tools, max_tool_calls=config["tools"]["call_limit"])
    tokenizer = TableTokenizer(case.params["tokenizer_table"], prompts)
    sampler = ScriptedSampler([[said(output) for output in step] for step in rounds])
    room = room or config["response_length"]
    rollouts = Rollouts(env, sampler, tokenizer, room, tool_threads=1)
    return SimpleNamespace(rollouts=rollouts, trees=list(map(rollouts.tree, tasks)), tools=tools)


def sequences(case, rounds=None, room=None, after_turn=None):
    """The initial rollouts of a case; with `after_turn`, all that it makes of them."""
    validate = case.inputs["meta_info"].get("validate", False)
    rounds = rounds or case.inputs["engine_script"]
    played = rollouts_of(case, case.inputs["prompt_ids"], rounds, room)
    for tree in played.trees:
        for _ in range(1 if validate else case.params["config"]["initial_rollouts"]):
            tree.root()
    played.rollouts.run(played.trees, key="0", after_turn=after_turn)
    played.found = [t for tree in played.trees for t in tree.trajectories]
    return played


def branches(case, rounds=None, room=None):
    """The branches of a case, each from a root of its own that holds the prefix."""
    prefixes = [
        prefix[len(prompt) :]
        for prefix, prompt in zip(case.inputs["prefix_ids"], case.inputs["prompt_ids"], strict=True)
    ]
    scripts = [_turns(prefix) for prefix in prefixes]
    steps = [
        [script[step] for script in scripts if step < len(script)]
        for step in range(max(map(len, scripts)))
    ]
    rounds = steps + (rounds or case.inputs["engine_script"])
    played = rollouts_of(case, case.inputs["prompt_ids"], rounds, room)
    for tree in played.trees:
        tree.root()
    played.rollouts.run(played.trees, key="0")
    played.found = [
        tree.fork(BranchPoint(tree.roots[0], len(prefix)))
        for tree, prefix in zip(played.trees, prefixes, strict=True)
    ]
    for tool in played.tools:
        tool.log.clear()
    played.rollouts.run(played.trees, key="0")
    return played


def _turns(prefix):
    """Engine answers of a root that holds the prefix and goes on with other tokens."""
    turns, observed = [[]], False
    for token in prefix:
        observed = observed or token == RESULT_BEGINS
        if not observed:
            turns[-1].append(token)
        if token == RESULT_ENDS:
            observed = False
            turns.append([])
    ends = ["</search>"] * (len(turns) - 1) + [None]
    turns[-1] += [19, END]
    return [
        {"token_ids": ids, "stop_reason": end, "logprobs": None}
        for ids, end in zip(turns, ends, strict=True)
    ]


def expected(case, name):
    """Rows of an output tensor, without padding."""
    responses = case.outputs["batch"]["responses"]
    lengths = [int((row != 0).nonzero().max()) + 1 for row in responses]
    return [row[:n].tolist() for row, n in zip(case.outputs["batch"][name], lengths, strict=True)]
