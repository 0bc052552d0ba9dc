"""Replays compute from files what a run computed, or would compute under other settings."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import BENCHMARKS
from envs.reward import compute_reward
from learners.errors import RolloutFileError
from learners.replay.__main__ import compare_rows, main, replay, update_rows
from learners.replay.trees import build_trees
from learners.rollouts.storage import read_rows, write_rollouts
from learners.runs.session import run_iteration
from tests.learner_fakes import UNEVEN
from tests.learners.test_methods import quick_if_own, session_of
from tests.method_fakes import RUNS


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def stored(taught, folder, method, iterations=1):
    """A session after its iterations, and the rows of the last one."""
    session, iteration = session_of(taught, method)
    for number in range(iterations):
        run_iteration(session, iteration)
        write_rollouts(folder, number, session.run.trees, session.policy.loaded.tokenizer)
        session.iteration += 1
    return session, read_rows(folder, iterations - 1)


def name_of(method):
    return RUNS[method][0].__name__


@pytest.fixture(scope="module")
def appo_rows(taught, tmp_path_factory):
    torch.set_num_threads(1)
    session, rows = stored(taught, tmp_path_factory.mktemp("run"), "appo paper")
    return session.run.config, rows


@quick_if_own
def test_a_replay_under_the_recorded_settings_is_what_was_recorded(taught, tmp_path, method):
    session, rows = stored(taught, tmp_path, method)
    again = replay(rows, name_of(method), session.run.config)
    credited = 0
    for old, new in zip(rows, update_rows(rows, again.trees), strict=True):
        for name in ("advantages", "branch_scores", "future_values"):
            assert (old[name] is None) == (new[name] is None), name
            if old[name] is not None:
                assert new[name] == pytest.approx(old[name], abs=1e-5)
        assert new["reward"] == old["reward"]
        credited += old["advantages"] is not None
    assert credited > 0
    if RUNS[method][0].__name__ in ("learners.appo", "learners.tree_grpo"):
        left = [
            (r["tree"], tuple(r["parent"]), r["position"]) for r in rows if r["parent"] is not None
        ]
        assert sorted(c[:3] for c in again.branches) == sorted(left)


def test_stored_trees_are_the_trees_that_were_stored(taught, tmp_path):
    session, rows = stored(taught, tmp_path, "appo paper")
    for old, new in zip(session.run.trees, build_trees(rows), strict=True):
        assert (old.task.id, old.prompt_ids, old.name) == (new.task.id, new.prompt_ids, new.name)
        for ours, theirs in zip(old.trajectories, new.trajectories, strict=True):
            assert ours.response_ids == theirs.response_ids
            assert ours.response_mask == theirs.response_mask
            assert ours.state.transcript == theirs.state.transcript
            assert ours.state.calls == theirs.state.calls
            assert [t.state.transcript for t in ours.turns] == [
                t.state.transcript for t in theirs.turns
            ]
            assert ours.path == theirs.path
            if ours.parent is not None:
                shared = sum(
                    a is b for a, b in zip(ours.turns, ours.parent.trajectory.turns, strict=False)
                )
                again = zip(theirs.turns, theirs.parent.trajectory.turns, strict=False)
                assert sum(a is b for a, b in again) == shared


def test_rewards_are_computed_from_what_the_episode_said(appo_rows):
    config, rows = appo_rows
    tasks = {t.id: t for t in UNEVEN.load("train")}
    given = {"tasks": tasks, "benchmarks": {UNEVEN.name: UNEVEN}}
    same = replay(rows, "learners.appo", config, rewards="correctness", **given)
    assert [t.reward for tree in same.trees for t in tree.trajectories] == [
        row["reward"] for row in rows
    ]
    other = replay(rows, "learners.appo", config, rewards="task", **given)
    states = [(tree.task, t) for tree in other.trees for t in tree.trajectories]
    for task, trajectory in states:
        wanted = compute_reward("task", UNEVEN, task, trajectory.state)
        assert (trajectory.reward, trajectory.reward_terms) == (wanted.value, wanted.terms)
    malformed = [row["stop"] != "answered" for row in rows]
    assert any(malformed)
    assert [t.reward == -1 for _, t in states] == malformed


def test_without_a_future_term_credit_is_the_same_for_all_tokens(appo_rows):
    config, rows = appo_rows
    new = replay(rows, "learners.appo", replace(config, future_weight=0.0))
    found = [t.diagnostics.advantages for tree in new.trees for t in tree.trajectories]
    found = [a for a in found if a is not None]
    assert found
    assert all(a.max() == a.min() for a in found)
    plain = replay(rows, "learners.appo", config)
    assert not torch.equal(
        next(
            t.diagnostics.advantages
            for tree in plain.trees
            for t in tree.trajectories
            if t.diagnostics.advantages is not None
        ),
        found[0],
    )


def test_other_branching_leaves_elsewhere_and_keeps_the_branches(appo_rows):
    config, rows = appo_rows
    new = replay(rows, "learners.appo", replace(config, branching="tool"))
    told = compare_rows(rows, new)
    kept = told["branches that would leave where one left"]
    assert len(kept) == sum(row["parent"] is not None for row in rows)
    assert not all(kept)
    assert [len(tree.trajectories) for tree in new.trees] == [6, 6, 6]


def test_another_method_credits_all_trajectories_as_one_group(appo_rows):
    """GRPO's advantages of each tree have mean 0 over its six trajectories."""
    from learners import grpo

    _, rows = appo_rows
    config = grpo.Config.of(rollouts=6, prompts=3, minibatch_prompts=1)
    new = replay(rows, "learners.grpo", config)
    for tree in new.trees:
        rewards = [t.reward for t in tree.trajectories]
        found = [t.diagnostics.advantages for t in tree.trajectories]
        if len(set(rewards)) == 1:
            assert found == [None] * 6
            continue
        assert sum(float(a[0]) for a in found) == pytest.approx(0, abs=1e-5)
        assert (found[0][0] > found[1][0]) == (rewards[0] > rewards[1])


def test_a_method_that_needs_more_than_was_stored_says_so(appo_rows):
    from learners import aepo

    _, rows = appo_rows
    config = aepo.Config.of(rollouts=6, prompts=3, minibatch_prompts=1, initial_rollouts=2)
    with pytest.raises(RolloutFileError, match="was never scored by the policy"):
        replay(rows, "learners.aepo", config)


def test_the_command_prints_what_differs_and_writes_it(taught, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(BENCHMARKS, "Toy", UNEVEN)
    session, _ = stored(taught, tmp_path / "run", "appo paper", iterations=2)
    told = {"method": "learners.appo", **session.run.config.options()}
    (tmp_path / "run/config.json").write_text(json.dumps(told))
    main([str(tmp_path / "run"), "--future-weight", "0", "--out", str(tmp_path / "other")])
    said = capsys.readouterr().out
    assert "trajectories whose reward differs              0.0000  of 36" in said
    assert "branches that would leave where one left       1.0000  of 24" in said
    for number in (0, 1):
        old, new = read_rows(tmp_path / "run", number), read_rows(tmp_path / "other", number)
        assert [row["token_ids"] for row in new] == [row["token_ids"] for row in old]
        for row in new:
            assert row["advantages"] is None or len(set(row["advantages"])) == 1
    assert json.loads((tmp_path / "other/config.json").read_text())["future_weight"] == 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("", "holds no config.json; give the folder of a run"),
        ("--method learners.tree", "--method learners.tree is no method, as in learners.grpo"),
    ],
)
def test_what_cannot_be_replayed_is_named(tmp_path, capsys, given, told):
    if given:
        (tmp_path / "config.json").write_text('{"method": "learners.appo"}')
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path), *given.split()])
    assert ended.value.code == 2
    assert told in " ".join(capsys.readouterr().err.split())
