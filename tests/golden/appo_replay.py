"""Golden rollouts of APPO's published code, played through our rollouts.

A scripted sampler says what the code's engine said; the tools answer what its tools answered.
"""

from dataclasses import replace
from types import SimpleNamespace

import torch

from benchmarks import Task
from envs import ToolEnv
from envs.tags import ToolCall, parse
from learners.batch import pack
from learners.rollout import Rollouts
from learners.sampler import draw
from learners.tree import BranchPoint, Completion, RolloutTree, Row, Turn
from tests.fakes import TOY
from tools import ToolResult

RESULT_BEGINS, RESULT_ENDS, END = 11, 12, 1
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

    def __init__(self, rounds):
        self.rounds, self.requests = list(rounds), []

    def submit(self, request):
        self.requests.append(request)

    def completed(self):
        asked, self.requests = self.requests, []
        for request, said in zip(asked, self.rounds.pop(0), strict=True):
            yield request, said.first(request.max_tokens)

    def sync(self):
        pass


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


def sequences(case, rounds=None, room=None):
    """The initial rollouts of a case."""
    validate = case.inputs["meta_info"].get("validate", False)
    rounds = rounds or case.inputs["engine_script"]
    played = rollouts_of(case, case.inputs["prompt_ids"], rounds, room)
    for tree in played.trees:
        for _ in range(1 if validate else case.params["config"]["initial_rollouts"]):
            tree.root()
    played.rollouts.run(played.trees, key="0")
    played.found = [root for tree in played.trees for root in tree.roots]
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


def sequences_agree(case):
    played = sequences(case)
    assert [list(t.response_ids) for t in played.found] == expected(case, "responses")
    masks = [list(map(int, t.response_mask)) for t in played.found]
    assert masks == expected(case, "loss_mask")
    assert {tool.name: tool.log for tool in played.tools} == case.outputs["tool_log"]
    for name, value in (("rollout_log_probs", "logprobs"), ("rollout_entropys", "entropies")):
        for trajectory, row in zip(played.found, expected(case, name), strict=True):
            actual = torch.tensor(getattr(trajectory, f"sampler_{value}"))
            case.close(actual, torch.tensor(row))


def branches_agree(case):
    """Response ids; the code's zero mask says what ours says by giving branches no row."""
    played = branches(case)
    assert [list(t.response_ids) for t in played.found] == expected(case, "responses")
    assert {tool.name: tool.log for tool in played.tools} == case.outputs["tool_log"]


ANSWER = {"token_ids": [17, END], "stop_reason": None, "logprobs": None}


def refused_call_is_said(case):
    """The code writes an end token for the policy; ours says that no call is left and goes on.

    The code's log-probabilities and entropies go out of step at the first result; ours do not.
    """
    script = [*case.inputs["engine_script"], [ANSWER]]
    played = (branches if "prefix_ids" in case.inputs else sequences)(case, script, room=400)
    (trajectory,), (theirs,) = played.found, expected(case, "responses")
    shared = len(theirs) - 1
    assert theirs[-1] == END
    assert list(trajectory.response_ids[:shared]) == theirs[:shared]
    told = trajectory.response_ids[shared : -len(ANSWER["token_ids"])]
    assert "No tool call is left" in played.rollouts.tokenizer.decode(told)
    assert {tool.name: tool.log for tool in played.tools} == case.outputs["tool_log"]
    own = [
        p for p, m in zip(trajectory.sampler_logprobs, trajectory.response_mask, strict=True) if m
    ]
    spoken = [p for (output,) in script for p in said(output).logprobs]
    assert own[-len(spoken) :] == spoken


def prompt_counts_no_calls(case):
    """The code counts closing tags of the system prompt as calls and refuses; ours calls."""
    assert case.outputs["tool_log"] == {"search": [], "python": []}
    played = branches(case, [*case.inputs["engine_script"], [ANSWER]])
    (trajectory,), (theirs,) = played.found, expected(case, "responses")
    (prefix,), (prompt,) = case.inputs["prefix_ids"], case.inputs["prompt_ids"]
    shared = len(prefix) - len(prompt) + len(case.inputs["engine_script"][0][0]["token_ids"])
    assert list(trajectory.response_ids) == [*theirs[:shared], 11, 15, 12, *ANSWER["token_ids"]]
    assert played.tools[0].log == ["q1"]


def results_are_kept_whole(case):
    """The code cuts a result at the response's end and trains on; ours ends before it."""
    first, second = case.inputs["engine_script"]
    longer = {**first[1], **{k: first[1][k] + second[0][k] for k in ("token_ids", "logprobs")}}
    played = sequences(case, [[first[0], longer]])
    ended, full = played.found
    theirs = expected(case, "responses")
    own = [token for token, m in zip(theirs[0], expected(case, "loss_mask")[0], strict=True) if m]
    assert list(ended.response_ids) == own
    assert ended.state.stop == "length"
    assert list(full.response_ids) == theirs[1]
    assert {tool.name: tool.log for tool in played.tools} == case.outputs["tool_log"]


def extraction_is_stricter(case):
    """Equal where a turn has one action; two actions in a turn are malformed."""
    for (text, tag), theirs in zip(case.inputs["items"], case.outputs["content"], strict=True):
        call = parse(text, [tag])
        if text.count(f"</{tag}>") == 1:
            assert call == ToolCall(tag, theirs)
        elif call is not None:
            assert call.argument in text
        else:
            assert theirs == "" or text.count(f"<{tag}>") > 1


def entropy_has_the_rest_too(case):
    """What the listed tokens leave is one more token here: its term is all that differs."""
    listed = case.inputs["logprobs"]
    probabilities = torch.tensor([p for _, p in listed or ()], dtype=torch.float64).exp()
    rest = 1 - probabilities.sum()
    if len(probabilities) == 0 or rest <= 0:  # no distribution
        return
    logits = torch.cat([probabilities, rest[None]]).log()[None]
    whole = draw(logits, [0.5], [1.0]).entropies[0]
    case.close(
        torch.tensor(whole + float(rest * rest.log())), torch.tensor(case.outputs["entropy"])
    )


def padding_is_not_response(case):
    """The code's rows without an end token count their padding, others are cut at the first one."""
    for row, theirs in zip(case.inputs["response_id"], case.outputs["mask"], strict=True):
        ids = tuple(row[: int((row != 0).nonzero().max()) + 1].tolist())
        tree = RolloutTree(Task("t", "q", ("a",)), (3,), SimpleNamespace())
        tree.root().turns.append(Turn(tree.start, Completion(ids, (0.0,) * len(ids)), ()))
        tree.root().turns.append(Turn(tree.start, Completion((2,) * 10, (0.0,) * 10), ()))
        batch = pack([Row(root, torch.zeros(len(root))) for root in tree.roots])
        assert batch.attention_mask[0].tolist() == [1] * (1 + len(ids)) + [0] * (10 - len(ids))
        if ids.count(END) == 1 and ids[-1] == END:
            assert theirs.tolist() == batch.response_mask[0, 1 : 1 + len(theirs)].int().tolist()
