"""A run's usage is counted exactly, stays within its budget, and survives a kill."""

import json
import os
import signal
import subprocess
import sys
import threading
from decimal import Decimal

import pytest

from learners.config import RunConfig
from learners.errors import RunStopped
from learners.ledger import Budget, Ledger, RunUsage, recorded_usage
from learners.policy.loading import tiny_tokenizer
from learners.rollouts.rollout import Rollouts
from learners.runs.session import open_ledger
from learners.tree import BranchPoint
from tests.conftest import ROOT
from tests.fakes import EchoTool, answer, call, toy_env, toy_load
from tests.learner_fakes import FlakyTool, ScriptedSampler
from tools import ToolResult, ToolUnavailable

TASK = toy_load("train")[0]


class FreeTool(EchoTool):
    """Every call but the first of a question is answered by a recording."""

    def run(self, state, argument):
        free = argument in state
        return (*state, argument), ToolResult(argument, True, 0.0, free)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def rollouts(tokenizer, turns, *tools, budget=Budget(), **options):  # noqa: B008 - frozen
    env = toy_env(*tools, split="train", **options)
    sampler = ScriptedSampler(tokenizer, turns)
    ledger = Ledger(RunUsage(budget))
    return Rollouts(env, sampler, tokenizer, 800, pause_s=0.0, ledger=ledger)


def branched(tokenizer, budget=Budget(), **options):  # noqa: B008 - frozen
    """A root of two calls and its answer; a branch at its third turn that calls twice more."""
    root = [call("search", "a"), call("search", "b"), answer("3")]
    branch_turns = [call("search", "c"), call("search", "d"), answer("2")]
    made = rollouts(tokenizer, {"0": root}, budget=budget, **options)
    tree = made.tree(TASK)
    parent = tree.root()
    made.run([tree], "0")
    position = sum(len(t.action.token_ids) + len(t.observation_ids) for t in parent.turns[:2])
    branch = tree.fork(BranchPoint(parent, position))
    made.sampler._turns["/".join(map(str, branch.path))] = branch_turns
    return made, tree, branch


def test_a_branch_inherits_its_prefixs_calls_without_paying_again(tokenizer):
    """Two calls of the root, two of the branch: four are paid, and the prefix's two inherited."""
    budget = Budget(prices=(("search", 0.1),))
    made, tree, branch = branched(tokenizer, budget, max_tool_calls=9)
    made.run([tree], "0")
    assert branch.state.calls == ("search",) * 4
    made.ledger.count_reuse([tree])
    metrics = made.ledger.take()
    assert metrics["ledger/tool_calls"] == 4
    assert metrics["ledger/inherited_calls"] == 2
    assert metrics["ledger/cost"] == 0.4
    assert made.ledger.usage.totals()["tool_calls_search"] == 4


def test_a_branch_cannot_exceed_what_its_episode_has_left(tokenizer):
    """The prefix made two of three calls: the branch gets one, then the note that none is left."""
    made, tree, branch = branched(tokenizer, max_tool_calls=3)
    made.run([tree], "0")
    assert branch.state.calls == ("search",) * 3
    assert "No tool call is left after 3" in branch.state.transcript[-2]
    assert made.ledger.take()["ledger/tool_calls"] == 3


def test_a_branch_cannot_exceed_what_its_run_has_left(tokenizer):
    """Three calls for the run: the root's two, the branch's first; its second is not made."""
    made, tree, _ = branched(tokenizer, Budget(calls=3), max_tool_calls=9)
    with pytest.raises(RunStopped, match=r"the 3 tool calls of --run-calls are spent; give more"):
        made.run([tree], "0")
    assert made.ledger.take()["ledger/tool_calls"] == 3


def test_a_call_whose_price_is_not_left_is_not_made(tokenizer):
    """Prices that binary fractions cannot hold: 3 x 0.1 is 0.3, and the third call is made."""
    budget = Budget(cost=0.3, prices=(("search", 0.1),))
    made, tree, _ = branched(tokenizer, budget, max_tool_calls=9)
    with pytest.raises(RunStopped, match=r"search costs 0.1, and 0.3 of --run-cost 0.3 are spent"):
        made.run([tree], "0")
    assert made.ledger.take()["ledger/cost"] == 0.3


def test_a_tool_without_a_price_is_not_bounded_by_cost(tokenizer):
    budget = Budget(cost=0.0, prices=(("browse", 1.0),))
    made, tree, _ = branched(tokenizer, budget, max_tool_calls=9)
    made.run([tree], "0")
    assert made.ledger.take()["ledger/cost"] == 0.0


def test_a_call_that_fails_is_not_counted(tokenizer):
    """Two attempts fail, the third succeeds: one call."""
    turns = {"0": [call("search", "fox"), answer("2")]}
    made = rollouts(tokenizer, turns, FlakyTool(failures=2), budget=Budget(calls=1))
    tree = made.tree(TASK)
    tree.root()
    made.run([tree], "0")
    assert tree.roots[0].reward == 1.0
    assert made.ledger.usage.totals()["tool_calls"] == 1


def test_the_share_of_failed_calls_is_reported_by_the_calls_before(tokenizer):
    """Two roots; the tool works for both first calls and for no second one."""

    class Second(EchoTool):
        def run(self, state, argument):
            if argument == "b":
                raise ToolUnavailable("the plug is out")
            return super().run(state, argument)

    turns = [call("search", "a"), call("search", "b")]
    made = rollouts(tokenizer, {"0": turns, "1": [turns[0], answer("2")]}, Second("search"))
    trees = [made.tree(TASK) for _ in range(1)]
    for _ in range(2):
        trees[0].root()
    made.run(trees, "0")
    metrics = made.ledger.take()
    assert metrics["tools/unavailable_after_1"] == 1.0
    assert "tools/unavailable_after_0" not in metrics


def test_what_is_free_is_counted_and_costs_nothing():
    ledger = Ledger(RunUsage(Budget(prices=(("search", 0.01),))))
    tool, state = FreeTool("search"), ()
    for query in ("fox", "fox", "hen", "fox"):
        state, _ = ledger.run(tool, state, query)
    metrics = ledger.take()
    assert metrics["ledger/tool_calls_search"] == 4
    assert metrics["ledger/free_calls_search"] == 2
    assert metrics["ledger/cost"] == 0.02


def test_threads_together_make_no_call_too_many():
    ledger = Ledger(RunUsage(Budget(calls=50)))
    tool, stopped = EchoTool("search"), []

    def work():
        try:
            for _ in range(20):
                ledger.run(tool, (), "x")
        except RunStopped:
            stopped.append(True)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.take()["ledger/tool_calls"] == 50
    assert stopped


_CALLER = """
import sys
from pathlib import Path
from learners.ledger import RunUsage
usage = RunUsage(path=Path(sys.argv[1]))
while True:
    usage.begin_call("search")
    sys.stdout.write("x")
    sys.stdout.flush()
"""


def test_a_kill_loses_no_call_that_was_begun(tmp_path):
    """The program prints a letter after each call it counted; one more may be under way."""
    path = tmp_path / "spent.json"
    for round_ in range(1, 4):
        before = RunUsage(path=path).totals()["tool_calls"]
        run = subprocess.Popen(
            [sys.executable, "-c", _CALLER, str(path)], cwd=ROOT, stdout=subprocess.PIPE
        )
        letters = os.read(run.stdout.fileno(), 1 << 16)
        run.send_signal(signal.SIGKILL)
        letters += run.communicate()[0]
        counted = RunUsage(path=path).totals()["tool_calls"] - before
        assert counted - len(letters) in (0, 1), round_
    assert json.loads(path.read_text())["tool_calls_search"] >= 3


def test_totals_go_on_over_processes_and_shrink_cleanly(tmp_path):
    """From 10 to 9 the text is shorter by a character, which must not stay."""
    path = tmp_path / "spent.json"
    first = RunUsage(path=path, initial={"tool_calls": 9, "tool_calls_search": 9})
    first.begin_call("search")
    first.cancel_call("search")
    again = RunUsage(path=path, initial={"tool_calls": 99})
    assert again.totals() == {"tool_calls": 9, "tool_calls_search": 9}
    again.begin_call("search")
    again.cancel_call("search")
    assert json.loads(path.read_text())["tool_calls"] == 9


def test_a_file_of_something_else_is_named(tmp_path):
    (tmp_path / "spent.json").write_text("[1]")
    with pytest.raises(RunStopped, match=r"spent.json holds no totals; delete it to count anew"):
        RunUsage(path=tmp_path / "spent.json")


def test_what_is_on_file_is_added_up():
    rows = [
        {"ledger/tool_calls": 3, "ledger/tool_calls_search": 2, "ledger/cost": 0.2, "x": 1},
        {"ledger/tool_calls": 1, "ledger/free_calls_search": 1, "ledger/reused_tokens": 9},
        {"ledger/lost_calls": 2, "ledger/lost_tokens": 7},
    ]
    totals = recorded_usage(rows)
    assert totals == {
        "tool_calls": 6,
        "tool_calls_search": 2,
        "free_calls_search": 1,
        "sampled_tokens": 7,
    }
    assert Budget(prices=(("search", 0.5),)).cost_of(totals) == Decimal("0.5")


def open_folder_of(folder, newest, spent, at_checkpoint=None, evaluation=None, iterations=2):
    """The first metrics of a run that continues in a folder like this."""
    (folder / "spent.json").write_text(json.dumps(spent))
    if newest is not None:
        state = {"lost": []} | ({} if at_checkpoint is None else {"spent": at_checkpoint})
        (folder / "checkpoints" / f"{newest:06d}").mkdir(parents=True)
        (folder / "checkpoints" / f"{newest:06d}" / "state.json").write_text(json.dumps(state))
    if evaluation is not None:
        name = "before" if newest is None else "after"
        (folder / f"evaluation-{name}.json").write_text(json.dumps(evaluation))
    return open_ledger(RunConfig.of(iterations=iterations), folder, []).take()


def test_what_was_spent_since_the_checkpoint_is_lost(tmp_path):
    """100 tokens at the checkpoint, 160 now: 60 are of work that is done again."""
    spent = {"sampled_tokens": 160, "tool_calls": 7}
    metrics = open_folder_of(tmp_path, 2, spent, {"sampled_tokens": 100, "tool_calls": 5})
    assert metrics == {"ledger/lost_tokens": 60, "ledger/lost_calls": 2}


def test_verdicts_of_discarded_work_are_reported_as_lost(tmp_path):
    """An evaluation was killed after 5 verdicts; the checkpoint knew of 3."""
    spent = {"judge_calls": 5, "judge_cached": 1}
    metrics = open_folder_of(tmp_path, 2, spent, {"judge_calls": 3})
    assert metrics == {"ledger/lost_judge_calls": 2}
    rows = [{"ledger/judge_calls": 3, "ledger/judge_cached": 1}, metrics]
    assert recorded_usage(rows) == spent
    assert Budget(prices=(("judge", 0.5),)).cost_of(spent) == 2


def test_an_evaluation_that_is_kept_is_not_lost(tmp_path):
    """The evaluation after the checkpoint took 50 of the 60 tokens since."""
    evaluation = {"iteration": 2, "ledger/sampled_tokens": 50, "ledger/tool_calls": 2}
    spent = {"sampled_tokens": 160, "tool_calls": 7}
    at_checkpoint = {"sampled_tokens": 100, "tool_calls": 5}
    metrics = open_folder_of(tmp_path, 2, spent, at_checkpoint, evaluation)
    assert metrics == {"ledger/lost_tokens": 10}


def test_what_a_kept_evaluation_reported_as_lost_is_not_reported_again(tmp_path):
    """60 tokens since the checkpoint: the evaluation took 50 and reported 10 as lost."""
    evaluation = {"iteration": 2, "ledger/sampled_tokens": 50, "ledger/lost_tokens": 10}
    assert (
        open_folder_of(tmp_path, 2, {"sampled_tokens": 160}, {"sampled_tokens": 100}, evaluation)
        == {}
    )


def test_an_evaluation_that_a_longer_run_replaces_is_lost(tmp_path):
    evaluation = {"iteration": 2, "ledger/sampled_tokens": 50, "ledger/lost_tokens": 10}
    spent = {"sampled_tokens": 160}
    metrics = open_folder_of(tmp_path, 2, spent, {"sampled_tokens": 100}, evaluation, iterations=3)
    assert metrics == {"ledger/lost_tokens": 60}


def test_before_the_first_checkpoint_all_but_the_first_evaluation_is_lost(tmp_path):
    evaluation = {"iteration": 0, "ledger/sampled_tokens": 50}
    metrics = open_folder_of(tmp_path, None, {"sampled_tokens": 80}, None, evaluation)
    assert metrics == {"ledger/lost_tokens": 30}


def test_a_checkpoint_of_an_earlier_version_loses_nothing(tmp_path):
    assert open_folder_of(tmp_path, 2, {"sampled_tokens": 160}) == {}
