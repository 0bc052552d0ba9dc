"""Rollout files hold every tree whole, and the ledger can be counted again from them."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learners.errors import RolloutFileError
from learners.ledger import Ledger
from learners.policy.loading import load_model
from learners.recount import find_differences, recount
from learners.recount import main as recount_main
from learners.rollouts.encoding import decode_with_ends
from learners.rollouts.rollout import Rollouts
from learners.rollouts.storage import (
    COLUMNS,
    TURN,
    TURN_MEANINGS,
    VERSION,
    list_iterations,
    read_rows,
    rollout_file,
    write_rollouts,
)
from learners.runs.session import run_iteration
from learners.tree import BranchPoint
from tests.conftest import ROOT
from tests.fakes import toy_env
from tests.learner_fakes import FlakyTool, ScriptedSampler
from tests.learners.test_methods import quick_if_own, session_of
from tests.tree_fakes import grow, new_tree


@pytest.fixture(scope="module")
def tokenizer(taught):
    return load_model(str(taught)).tokenizer


@quick_if_own
def test_sampled_and_reused_make_the_total_to_the_token_by_files_and_ledger(
    taught, tmp_path, method
):
    torch.set_num_threads(1)
    session, iteration = session_of(taught, method)
    metrics = run_iteration(session, iteration)
    run = session.run
    write_rollouts(tmp_path, 0, run.trees, session.policy.loaded.tokenizer)
    rows = read_rows(tmp_path, 0)
    assert find_differences(metrics, rows) == {}
    counted = recount(rows)
    whole = sum(t.sampled_tokens for tree in run.trees for t in tree.trajectories)
    assert counted["total_tokens"] == whole
    assert counted["sampled_tokens"] + counted["reused_tokens"] == whole
    assert counted["trained_tokens"] > 0
    assert (counted["reused_tokens"] > 0) == any(tree.branches for tree in run.trees)


def test_a_recount_finds_one_token_too_many(taught, tmp_path):
    session, iteration = session_of(taught, "appo paper")
    metrics = run_iteration(session, iteration)
    write_rollouts(tmp_path, 0, session.run.trees, session.policy.loaded.tokenizer)
    rows = read_rows(tmp_path, 0)
    wrong = metrics | {"ledger/sampled_tokens": metrics["ledger/sampled_tokens"] + 1}
    assert find_differences(wrong, rows) == {"sampled_tokens": 1}
    assert find_differences(metrics | {"ledger/tool_calls_browse": 2}, rows) == {
        "tool_calls_browse": 2
    }


def play(tokenizer, tool, turns, limit=60):
    """Play one root that says these turns; return its tree and the ledger."""
    ledger = Ledger()
    rollouts = Rollouts(
        toy_env(tool),
        ScriptedSampler(tokenizer, {"0": turns}),
        tokenizer,
        limit,
        pause_s=0,
        ledger=ledger,
    )
    tree = rollouts.tree(rollouts.env.tasks[0])
    tree.root()
    rollouts.run([tree], key="0")
    return tree, ledger


def test_tokens_that_a_tool_fault_discards_are_counted_by_both(tokenizer, tmp_path):
    tree, ledger = play(tokenizer, FlakyTool(9), ["<search> x</search>"])
    assert tree.unavailable == "the plug is out"
    write_rollouts(tmp_path, 0, [tree], tokenizer)
    (row,) = read_rows(tmp_path, 0)
    assert row["unavailable"] == "the plug is out"
    assert not row["done"]
    assert row["discarded_tokens"] == ledger._counts["sampled_tokens"] > 0
    assert find_differences(ledger.take(), [row]) == {}


def test_a_call_whose_result_finds_no_room_is_counted_by_both(tokenizer, tmp_path):
    said = "<search> so so so so so so so so</search>"
    room = len(tokenizer.encode(said, add_special_tokens=False)) + 6
    tree, ledger = play(tokenizer, FlakyTool(0), [said], limit=room)
    assert tree.trajectories[0].state.stop == "length"
    write_rollouts(tmp_path, 0, [tree], tokenizer)
    (row,) = read_rows(tmp_path, 0)
    assert row["calls"] == []
    assert [turn["tool"] for turn in row["turns"]] == ["search"]
    assert recount([row])["tool_calls_search"] == 1
    assert find_differences(ledger.take(), [row]) == {}


def test_a_file_holds_tokens_turns_and_credit_of_every_trajectory(taught, tmp_path):
    session, iteration = session_of(taught, "appo paper")
    run_iteration(session, iteration)
    run = session.run
    write_rollouts(tmp_path, 0, run.trees, session.policy.loaded.tokenizer)
    rows = read_rows(tmp_path, 0)
    trajectories = [(i, t) for i, tree in enumerate(run.trees) for t in tree.trajectories]
    assert len(rows) == len(trajectories) == 18
    assert any(row["advantages"] for row in rows)
    for row, (index, trajectory) in zip(rows, trajectories, strict=True):
        assert (row["version"], row["iteration"], row["tree"]) == (VERSION, 0, index)
        assert row["token_ids"] == list(trajectory.response_ids)
        assert row["mask"] == list(trajectory.response_mask)
        assert row["path"] == list(trajectory.path)
        assert row["reward"] == trajectory.reward
        assert row["reward_terms"] == trajectory.reward_terms
        assert row["turns"][-1]["end"] == len(trajectory)
        called, made = [t["tool"] for t in row["turns"] if t["tool"]], list(trajectory.state.calls)
        if trajectory.state.stop == "length":  # the last result may have had no room
            assert called in (made, [*made, *called[-1:]])
        else:
            assert called == made
        spoken = [s for t in row["turns"] for s in (t["action"], t["observation"]) if s is not None]
        assert spoken == list(trajectory.state.transcript)
        for name in ("advantages", "logprobs", "entropies", "old_logprobs", "weights"):
            assert row[name] is None or len(row[name]) == len(trajectory)
        assert row["sampler_logprobs"] == pytest.approx(trajectory.sampler_logprobs)
        if trajectory.parent is None:
            assert row["entropies"] is not None
            credit = trajectory.diagnostics.advantages
            assert row["advantages"] == (None if credit is None else pytest.approx(credit.tolist()))
        else:
            assert row["position"] == trajectory.parent.position
            assert row["parent"] == list(trajectory.parent.trajectory.path)
            assert row["score"] == pytest.approx(trajectory.parent.score)


def test_scores_are_there_where_the_policy_had_moved_and_absent_before(taught, tmp_path):
    session, iteration = session_of(taught, "appo paper")
    for number in range(2):
        run_iteration(session, iteration)
        session.iteration += 1
        write_rollouts(tmp_path, number, session.run.trees, session.policy.loaded.tokenizer)
    roots = [row for n in (0, 1) for row in read_rows(tmp_path, n) if row["parent"] is None]
    for row in roots:
        assert (row["branch_scores"] is None) == (row["future_values"] is None)
        if row["scoring_age"] == 0:
            assert row["branch_scores"] is None
    scored = [row for row in roots if row["branch_scores"] is not None]
    assert scored, "no mini-batch came after an update"
    for row in scored:
        chosen = [r for n in (0, 1) for r in read_rows(tmp_path, n) if r["parent"] == row["path"]]
        here = [r for r in chosen if (r["tree"], r["iteration"]) == (row["tree"], row["iteration"])]
        for branch in here:
            assert branch["score"] == pytest.approx(row["branch_scores"][branch["position"]])


def test_the_published_codes_profile_scores_every_root(taught, tmp_path):
    session, iteration = session_of(taught, "appo reference")
    run_iteration(session, iteration)
    write_rollouts(tmp_path, 0, session.run.trees, session.policy.loaded.tokenizer)
    for row in read_rows(tmp_path, 0):
        assert (row["branch_scores"] is not None) == (row["parent"] is None)
        assert (row["future_values"] is not None) == (row["parent"] is None)


def test_pandas_reads_a_run_in_two_lines(taught, tmp_path):
    session, iteration = session_of(taught, "grpo")
    for number in range(2):
        run_iteration(session, iteration)
        session.iteration += 1
        write_rollouts(tmp_path, number, session.run.trees, session.policy.loaded.tokenizer)
    frame = pd.read_parquet(tmp_path / "rollouts")
    assert list(frame.columns) == list(COLUMNS)
    assert frame.groupby("iteration").size().tolist() == [18, 18]
    assert frame["mask"].map(sum).sum() > 0


def test_no_text_and_no_ids_of_a_restricted_task_are_written(tokenizer, tmp_path):
    tree, ledger = play(
        tokenizer, FlakyTool(0), ["<search> secretword</search>", "<answer>5</answer>"], limit=300
    )
    tree.task = replace(tree.task, restricted=True)
    write_rollouts(tmp_path, 0, [tree], tokenizer)
    (row,) = read_rows(tmp_path, 0)
    for name in ("question", "answers", "text", "token_ids", "prompt_ids", "token_ends"):
        assert row[name] is None
    assert "secretword" not in str(row)
    assert [turn["argument"] for turn in row["turns"]] == [None, None]
    assert find_differences(ledger.take(), [row]) == {}


def test_a_file_replaces_that_of_a_discarded_attempt_and_those_after_it(tokenizer, tmp_path):
    tree = new_tree()
    grow(tree, (2, 1), (1, 0))
    for number in (0, 1, 2):
        write_rollouts(tmp_path, number, [tree], tokenizer)
    grow(tree, (1, 0))
    write_rollouts(tmp_path, 1, [tree], tokenizer)
    assert list_iterations(tmp_path) == [0, 1]
    assert len(read_rows(tmp_path, 0)) == 1
    assert len(read_rows(tmp_path, 1)) == 2
    assert sorted(path.name for path in (tmp_path / "rollouts").iterdir()) == [
        "000000.parquet",
        "000001.parquet",
    ]


def test_what_cannot_be_read_is_named(tokenizer, tmp_path):
    with pytest.raises(RolloutFileError, match=r"holds no rollouts/\*\.parquet"):
        list_iterations(tmp_path)
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts/000000.jsonl").write_text("{}")
    with pytest.raises(RolloutFileError, match="written by an earlier version"):
        list_iterations(tmp_path)
    write_rollouts(tmp_path, 3, [new_tree()], tokenizer)
    with pytest.raises(RolloutFileError, match=r"no rollouts of iteration 7 in .*; it has 3 to 3"):
        read_rows(tmp_path, 7)
    pd.DataFrame({"version": [9]}).to_parquet(rollout_file(tmp_path, 3))
    with pytest.raises(RolloutFileError, match="is of schema none; this version reads 2"):
        read_rows(tmp_path, 3)


def test_recount_prints_both_and_fails_where_they_differ(taught, tmp_path, capsys):
    session, iteration = session_of(taught, "appo paper")
    metrics = {"iteration": 0, **run_iteration(session, iteration)}
    write_rollouts(tmp_path, 0, session.run.trees, session.policy.loaded.tokenizer)
    (tmp_path / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")
    with pytest.raises(SystemExit, match="0"):
        recount_main([str(tmp_path)])
    said = capsys.readouterr().out
    counts = re.findall(r"sampled_tokens +ledger +([\d,]+) +recount +([\d,]+)", said)
    assert counts[0][0] == counts[0][1] == f"{int(metrics['ledger/sampled_tokens']):,}"
    assert "0 of 1 iterations differ" in said
    metrics["ledger/reused_tokens"] -= 3
    (tmp_path / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")
    with pytest.raises(SystemExit, match="1"):
        recount_main([str(tmp_path)])
    assert "ledger minus recount {'reused_tokens': -3}" in capsys.readouterr().out


def test_the_docs_explain_every_column(capsys):
    told = (ROOT / "docs/rollouts.md").read_text(encoding="utf-8")
    for name, column in COLUMNS.items():
        assert re.search(rf"^\| {name} \|.*\| {re.escape(column.meaning)} \|$", told, re.M), name
    for names, meaning in TURN_MEANINGS.items():
        assert f"| {names} |" in told
        assert meaning in told
    documented = {name for names in TURN_MEANINGS for name in names.split(", ")}
    assert documented == {TURN.field(i).name for i in range(TURN.num_fields)}


@given(st.text(max_size=30))
def test_ends_of_tokens_cut_a_text_into_pieces(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    said, ends = decode_with_ends(ids, tokenizer)
    assert said == tokenizer.decode(ids, skip_special_tokens=False)
    assert len(ends) == len(ids)
    assert ends == sorted(ends)
    assert (ends[-1] if ends else 0) == len(said)


class ByteTokens:
    """A token is a byte; a decoder of those that are no whole character."""

    def decode(self, ids, skip_special_tokens):
        return bytes(ids).decode("utf-8", "replace")


def test_a_character_of_several_tokens_belongs_to_the_last():
    """The euro sign is three bytes: its first two tokens end where it begins."""
    assert decode_with_ends(list("a€b".encode()), ByteTokens()) == ("a€b", [1, 1, 1, 2, 3])
    assert decode_with_ends([*b"ab", 0xE2, 0x82], ByteTokens()) == ("ab\ufffd", [1, 2, 2, 3])


def test_an_open_turn_is_in_the_file(tokenizer, tmp_path):
    """A branch whose tree failed before it sampled: three shared tokens, no turn yet."""
    tree = new_tree()
    root = grow(tree, (4, 0))
    tree.fork(BranchPoint(root, 3))
    tree.unavailable = "gone"
    write_rollouts(tmp_path, 0, [tree], tokenizer)
    _, row = read_rows(tmp_path, 0)
    assert row["token_ids"] == [1, 2, 3]
    assert row["turns"] == []
    assert +recount([row]) == {"reused_tokens": 3, "total_tokens": 3}


def test_the_walk_through_the_files_runs_on_a_run(taught, tmp_path):
    session, iteration = session_of(taught, "appo paper")
    run_iteration(session, iteration)
    write_rollouts(tmp_path, 0, session.run.trees, session.policy.loaded.tokenizer)
    walk = [sys.executable, "docs/read_rollouts.py", str(tmp_path)]
    done = subprocess.run(walk, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    sampled = recount(read_rows(tmp_path, 0))["sampled_tokens"]
    assert f"{sampled:,} tokens sampled" in done.stdout
    assert re.search(r"% of 12 branches changed the reward", done.stdout)
