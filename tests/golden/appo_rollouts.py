"""What our rollouts, tags and masks answer to the golden cases of APPO's published code."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks import Task
from envs.tags import parse
from learners import arpo
from learners.policy.batch import collate
from learners.sampling.draw import draw
from learners.tree import Completion, RolloutTree, Row, Turn
from tests.golden.appo_replay import CLOSING, END, Draws, branches, expected, said, sequences


def calls_of(case):
    """Calls that the code made, and those it refused or that failed."""
    metrics = case.outputs["metrics"]
    return SimpleNamespace(
        made=metrics["tools/total_calls"],
        refused=metrics["tools/call_limit_reached_count"],
        failed=metrics["tools/failed_calls"],
    )


def prompt_counts_calls(case):
    """Whether a call was refused though the response held fewer than the limit."""
    own = [
        sum(token in CLOSING for token in prefix[len(prompt) :])
        for prefix, prompt in zip(case.inputs["prefix_ids"], case.inputs["prompt_ids"], strict=True)
    ]
    return calls_of(case).refused and min(own) < case.params["config"]["tools"]["call_limit"]


def cuts_a_result(case):
    """Whether a row ends, for want of room, in what a tool said."""
    length = case.params["config"]["response_length"]
    masks = expected(case, "loss_mask")
    return any(len(mask) == length and not mask[-1] for mask in masks)


def drops_an_empty_call(case):
    """Whether a row ends in a closing tag although there was room."""
    length = case.params["config"]["response_length"]
    rows = expected(case, "responses")
    return any(row[-1] in CLOSING and len(row) < length for row in rows)


def roomy(case):
    """More room where none ran out: ours keeps some back for an answer when a tool speaks."""
    length = case.params["config"]["response_length"]
    return None if any(len(row) == length for row in expected(case, "responses")) else 400


def sequences_agree(case):
    """The code's log-probabilities and entropies count up to its first result: see below."""
    played = sequences(case, room=roomy(case))
    assert [list(t.response_ids) for t in played.found] == expected(case, "responses")
    masks = [list(map(int, t.response_mask)) for t in played.found]
    assert masks == expected(case, "loss_mask")
    assert {tool.name: tool.log for tool in played.tools} == case.outputs["tool_log"]
    for name, value in (("rollout_log_probs", "logprobs"), ("rollout_entropys", "entropies")):
        for trajectory, row in zip(played.found, expected(case, name), strict=True):
            own = len(trajectory.turns[0].action.token_ids)
            actual = torch.tensor(getattr(trajectory, f"sampler_{value}"))
            case.close(actual[:own], torch.tensor(row[:own]))


def arpo_agrees(case):
    """Ids, masks and calls of roots and branches, given what the code drew."""
    own = case.params["config"]
    names = ("entropy_weight", "branch_probability")
    config = SimpleNamespace(
        rollouts=own["n"],
        beam=own["beam_size"],
        entropy_tokens=20,
        **{name: own[name] for name in names},
    )
    draws = Draws(case.inputs["random_draws"])
    vocabulary = len(case.params["tokenizer_table"])

    def after_turn(trees):
        for tree in trees:
            arpo.grow(tree, config, vocabulary, draws)

    played = sequences(case, room=roomy(case), after_turn=after_turn)
    assert [list(t.response_ids) for t in played.found] == expected(case, "responses")
    masks = [list(map(int, t.response_mask)) for t in played.found]
    assert masks == expected(case, "loss_mask")
    assert {tool.name: tool.log for tool in played.tools} == case.outputs["tool_log"]
    assert draws.values == []
    assert any(t.parent is not None for t in played.found)


def results_keep_values_in_step(case):
    """The code's log-probabilities and entropies slip by the length of every result."""
    sequences_agree(case)
    played = sequences(case, room=roomy(case))
    spoken = {output_key(o): said(o) for step in case.inputs["engine_script"] for o in step}
    for trajectory in played.found:
        for turn in trajectory.turns:
            assert turn.action == spoken[turn.action.token_ids, turn.action.logprobs]
    slipped = [
        (list(t.sampler_logprobs), row)
        for t, row in zip(played.found, expected(case, "rollout_log_probs"), strict=True)
        if False in t.response_mask
    ]
    assert any(ours != pytest.approx(theirs, abs=1e-6) for ours, theirs in slipped)


def output_key(output):
    completion = said(output)
    return completion.token_ids, completion.logprobs


def branches_agree(case):
    """Response ids; the code's zero mask says what ours says by giving branches no row."""
    played = branches(case, room=roomy(case))
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
        if text.count(f"</{tag}>") > 1 or "result>" in text:
            assert call is None or call.argument in text
        else:
            assert theirs == ("" if call is None else call.argument)


def entropy_has_the_rest_too(case):
    """What the listed tokens leave is one more token here: its term is all that differs."""
    listed = case.inputs["logprobs"]
    probabilities = torch.tensor([p for _, p in listed or ()], dtype=torch.float64).exp()
    rest = 1 - probabilities.sum()
    if len(probabilities) == 0 or rest < -1e-9:  # no distribution
        return
    rest = rest.clamp_min(1e-300)
    logits = torch.cat([probabilities, rest[None]]).log()[None]
    whole = draw(logits, [0.5], [1.0]).entropies[0]
    case.close(
        torch.tensor(whole + float(rest * rest.log())), torch.tensor(case.outputs["entropy"])
    )


def padding_is_not_response(case):
    """The code's rows without an end token count their padding, others are cut at the first one."""
    ends = case.params["eos_token"]
    ends = ends if isinstance(ends, list) else [ends]
    for row, theirs in zip(case.inputs["response_id"], case.outputs["mask"], strict=True):
        if not row.any():
            continue
        ids = tuple(row[: int((row != 0).nonzero().max()) + 1].tolist())
        tree = RolloutTree(Task("t", "q", ("a",)), (3,), SimpleNamespace())
        tree.root().turns.append(Turn(tree.start, Completion(ids, (0.0,) * len(ids)), ()))
        tree.root().turns.append(Turn(tree.start, Completion((2,) * 10, (0.0,) * 10), ()))
        batch = collate([Row(root, torch.zeros(len(root))) for root in tree.roots])
        assert batch.attention_mask[0].tolist() == [1] * (1 + len(ids)) + [0] * (10 - len(ids))
        if [i for i, token in enumerate(ids) if token in ends] == [len(ids) - 1]:
            assert theirs.tolist() == batch.response_mask[0, 1 : 1 + len(theirs)].int().tolist()
