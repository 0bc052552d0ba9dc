"""Overlap: a trajectory waits for its own tool only, and becomes what it became in lockstep.

No test here measures time: a tool that waits for what lockstep would do later proves the order.
"""

import subprocess
import sys
import threading

import pytest
import torch

from learners import appo, arpo, grpo
from learners.errors import RunStopped
from learners.policy.loading import load_model, tiny_tokenizer
from learners.policy.policy import Policy
from learners.rollouts.rollout import Rollouts
from learners.rollouts.tool_threads import TimedOut, ToolThreads, call_with_timeout
from learners.runs.session import Session, run_iteration
from learners.sampling.sampler import Request
from learners.sampling.transformers_sampler import TransformersSampler
from tests.fakes import EchoTool, answer, call, toy_env, toy_load
from tests.learner_fakes import Parrot, ScriptedSampler
from tools import ToolUnavailable

LONG_S = 60.0
"""Seconds after which a test fails because something did not happen."""
TASKS = toy_load("train")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


class JoiningSampler(ScriptedSampler):
    """Says the next turn of a path, first come, first served; requests may join meanwhile."""

    def __init__(self, tokenizer, turns):
        super().__init__(tokenizer, turns)
        self.said = []
        self.then = {}
        """Number of turns requested -> what to do then."""

    def completed(self):
        while self._waiting:
            request = self._waiting.pop(0)
            path = request.key.split("/", 2)[2]
            self.said.append(path)
            if len(self.said) in self.then:
                self.then[len(self.said)]()
            yield request, self.completion(request, self._turns[path].pop(0))


class WaitingTool(EchoTool):
    """The call of one word waits until `open`; all others answer at once."""

    def __init__(self, word, open_after):
        super().__init__("search")
        self.word, self.open_after = word, open_after
        self.begun, self.opened, self.waited = threading.Event(), threading.Event(), None
        self.calls = 0

    def run(self, state, argument):
        if argument == self.word:
            self.thread = threading.current_thread()
            self.begun.set()
            self.waited = self.opened.wait(LONG_S)
        else:
            self.calls += 1
            if self.calls == self.open_after:
                self.opened.set()
        return super().run(state, argument)


class PickyTool(EchoTool):
    """Its machinery fails at one word."""

    def run(self, state, argument):
        if argument == "bad":
            raise ToolUnavailable("the plug is out")
        return super().run(state, argument)


def overlapping(tokenizer, said, *tools, **options):
    env = toy_env(*tools, split="train")
    options = {"turns": "overlap", "tool_threads": 4, "pause_s": 0.0, **options}
    return Rollouts(env, JoiningSampler(tokenizer, said), tokenizer, 800, **options)


def grown(rollouts, tasks=TASKS[:1], roots=1):
    trees = [rollouts.tree(task) for task in tasks]
    for tree in trees:
        for _ in range(roots):
            tree.root()
    return trees


def test_a_slow_tool_blocks_only_its_own_trajectory(tokenizer):
    """Root 0's first call answers only once root 1 answers: in lockstep it never would."""
    tool = WaitingTool("slow", open_after=99)
    said = {
        "a/0": [call("search", "slow"), answer("2")],
        "a/1": [call("search", "fox"), call("search", "hen"), answer("2")],
    }
    rollouts = overlapping(tokenizer, said, tool)
    rollouts.sampler.then[4] = tool.opened.set
    (tree,) = grown(rollouts, roots=2)
    rollouts.run([tree], "0")
    assert tool.waited is True
    assert [t.reward for t in tree.roots] == [1.0, 1.0]
    assert rollouts.sampler.said == ["a/0", "a/1", "a/1", "a/1", "a/0"]


def test_a_hung_tool_costs_its_tree_and_no_other(tokenizer):
    """The call never answers; after its patience the tree is unavailable, the other is whole."""
    hung = WaitingTool("slow", open_after=99)
    said = {
        "a/0": [call("search", "slow")],
        "b/0": [call("search", "fox"), answer("4")],
    }
    rollouts = overlapping(tokenizer, said, hung, step_timeout_s=0.5)
    trees = grown(rollouts, TASKS[:2])
    rollouts.run(trees, "0")
    hung.opened.set()
    assert trees[0].unavailable == "a step gave no answer in 0.5 s"
    assert trees[0].roots[0].turns == []
    assert (trees[1].unavailable, trees[1].roots[0].reward) == (None, 1.0)


@pytest.mark.parametrize("after_turn", [None, lambda trees: None])
@pytest.mark.parametrize("turns", ["lockstep", "overlap"])
def test_the_tokens_of_an_abandoned_tree_are_counted(tokenizer, turns, after_turn):
    """One thread: root 0's tool has failed before root 1's turn is looked at."""
    said = {"a/0": [call("search", "bad")], "a/1": [call("search", "fox")]}
    spoken = [said[path][0] for path in sorted(said)]
    tokens = [len(tokenizer.encode(text, add_special_tokens=False)) for text in spoken]
    rollouts = overlapping(tokenizer, said, PickyTool("search"), turns=turns, tool_threads=1)
    (tree,) = grown(rollouts, roots=2)
    rollouts.run([tree], "0", after_turn)
    assert tree.unavailable == "the plug is out"
    assert rollouts.ledger.take()["ledger/sampled_tokens"] == sum(tokens)
    assert rollouts.ledger.usage.totals()["sampled_tokens"] == sum(tokens)
    assert [t.sampled_tokens + t.discarded_tokens for t in tree.roots] == tokens


def raised_while_it_hangs(rollouts, hung, error):
    """A run of two roots raises while a call hangs; then that ends, and its threads with it."""
    before = set(threading.enumerate())
    with pytest.raises(error):
        rollouts.run(grown(rollouts, roots=2), "0")
    assert (hung.begun.is_set(), hung.waited) == (True, None)
    left = set(threading.enumerate()) - before
    hung.opened.set()
    for thread in left:
        thread.join(LONG_S)
    assert hung.waited is True
    assert not any(thread.is_alive() for thread in left)


def test_an_interrupt_waits_for_no_tool(tokenizer):
    """It comes in the policy's thread; what a call finds after that is not sampled on."""
    hung = WaitingTool("slow", open_after=99)
    said = {"a/0": [call("search", "slow"), answer("2")], "a/1": [answer("2")]}
    rollouts = overlapping(tokenizer, said, hung)

    def interrupt():
        assert hung.begun.wait(LONG_S)
        raise KeyboardInterrupt

    rollouts.sampler.then[2] = interrupt
    raised_while_it_hangs(rollouts, hung, KeyboardInterrupt)
    assert rollouts.sampler._waiting == []


@pytest.mark.parametrize("turns", ["lockstep", "overlap"])
def test_a_fault_that_is_no_tools_waits_for_no_other_tool(tokenizer, turns):
    hung = WaitingTool("slow", open_after=99)

    class Stopping(EchoTool):
        def run(self, state, argument):
            assert hung.begun.wait(LONG_S)
            raise RunStopped("nothing is left")

    said = {"a/0": [call("search", "slow")], "a/1": [call("python", "1")]}
    rollouts = overlapping(tokenizer, said, hung, Stopping("python"), turns=turns)
    raised_while_it_hangs(rollouts, hung, RunStopped)


def test_a_process_ends_while_a_call_hangs():
    program = (
        "import sys, threading\n"
        "from learners.rollouts.tool_threads import ToolThreads\n"
        "begun = threading.Event()\n"
        "with ToolThreads(1) as threads:\n"
        "    threads.submit(lambda: (begun.set(), threading.Event().wait()))\n"
        "    begun.wait()\n"
        "    sys.exit(7)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=LONG_S).returncode == 7


def test_calls_that_have_not_begun_are_dropped_when_the_block_is_left_by_an_exception():
    """The only thread is busy until the block has been left."""
    begun, opened, made = threading.Event(), threading.Event(), []

    def hang():
        made.append(threading.current_thread())
        begun.set()
        opened.wait(LONG_S)

    def leave():
        with ToolThreads(1) as threads:
            threads.submit(hang)
            threads.submit(lambda: made.append("what had not begun"))
            assert begun.wait(LONG_S)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        leave()
    opened.set()
    made[0].join(LONG_S)
    assert len(made) == 1
    assert not made[0].is_alive()


def test_a_step_that_was_given_up_changes_nothing_when_it_ends_after_all(tokenizer):
    hung = WaitingTool("slow", open_after=99)
    rollouts = overlapping(tokenizer, {"a/0": [call("search", "slow")]}, hung, step_timeout_s=0.2)
    (tree,) = grown(rollouts)
    rollouts.run([tree], "0")
    hung.opened.set()
    hung.thread.join(LONG_S)
    assert hung.waited is True
    assert (tree.roots[0].turns, tree.roots[0].state) == ([], tree.start)


def test_a_hung_tool_ends_a_lockstep_round_too(tokenizer):
    hung = WaitingTool("slow", open_after=99)
    said = {"a/0": [call("search", "slow")]}
    rollouts = overlapping(tokenizer, said, hung, step_timeout_s=0.2, turns="lockstep")
    (tree,) = grown(rollouts)
    rollouts.run([tree], "0")
    hung.opened.set()
    assert tree.unavailable == "a step gave no answer in 0.2 s"


def test_no_thread_outlives_a_block_that_was_left_without_an_error():
    """Calls that are done leave threads that wait for more: they end with the block."""
    before = set(threading.enumerate())
    with ToolThreads(4) as threads:
        for _ in range(9):
            threads.submit(lambda: None)
        while threads.running:
            threads.collect(wait=True)
        assert len(set(threading.enumerate()) - before) == 4
    assert not set(threading.enumerate()) - before
    assert call_with_timeout(LONG_S, lambda: 5) == 5
    assert not set(threading.enumerate()) - before


def test_what_a_call_returns_or_raises_comes_through():
    assert call_with_timeout(LONG_S, lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        call_with_timeout(LONG_S, lambda: 1 / 0)
    with pytest.raises(TimedOut):
        call_with_timeout(0.05, threading.Event().wait)


def test_trees_do_not_wait_for_each_other_where_a_hook_forks(tokenizer):
    """Tree a's call answers in tree b's second round; the hook saw b's first, one tree each."""
    tool = WaitingTool("slow", open_after=2)
    said = {
        "a/0": [call("search", "slow"), answer("2")],
        "b/0": [call("search", "fox"), call("search", "hen"), answer("4")],
    }
    rollouts = overlapping(tokenizer, said, tool)
    seen = []
    rollouts.run(grown(rollouts, TASKS[:2]), "0", lambda trees: seen.extend(trees))
    assert tool.waited is True
    assert seen[0].task.id == "b"
    assert sorted(tree.task.id for tree in seen) == ["a", "a", "b", "b", "b"]


def test_a_hook_sees_a_tree_only_between_its_own_rounds(tokenizer):
    """Two roots; whenever the hook is called, both have ended the same round."""
    said = {f"a/{n}": [call("search", f"{n}{i}") for i in range(2)] + [answer("2")] for n in (0, 1)}
    rollouts = overlapping(tokenizer, said, EchoTool("search"))
    rounds = []
    trees = grown(rollouts, roots=2)
    rollouts.run(trees, "0", lambda seen: rounds.append([len(t.turns) for t in seen[0].roots]))
    assert rounds == [[1, 1], [2, 2], [3, 3]]


def test_a_fault_that_is_no_tools_ends_the_rollout(tokenizer):
    class Stopping(EchoTool):
        def run(self, state, argument):
            raise RunStopped("nothing is left")

    said = {f"a/{n}": [call("search", "x")] for n in range(6)}
    rollouts = overlapping(tokenizer, said, Stopping("search"))
    with pytest.raises(RunStopped, match="nothing is left"):
        rollouts.run(grown(rollouts, roots=6), "0")


def test_a_sampler_that_loses_a_request_fails_an_assertion(tokenizer):
    rollouts = overlapping(tokenizer, {"a/0": [answer("2")]})
    rollouts.sampler.submit = lambda request: None
    with pytest.raises(AssertionError, match="lost requests"):
        rollouts.run(grown(rollouts), "0")


def test_what_joins_during_a_step_is_in_the_next_one(tokenizer):
    """One row reads its token; meanwhile a second arrives: it reads its own, then both go on."""
    script = [61, *tokenizer.encode("<think> on and on", add_special_tokens=False)]

    class Interrupted(Parrot):
        def recite(self, *given, **named):
            if not self.shapes:
                sampler.submit(Request((61,), (), 2, "late", 0))
            return super().recite(*given, **named)

    parrot = Interrupted(script, len(tokenizer))
    sampler = TransformersSampler(parrot, tokenizer, ("</echo>",))
    sampler.submit(Request((61,), (), 4, "first", 0))
    ended = [request.key for request, _ in sampler.completed()]
    assert ended == ["late", "first"]
    assert parrot.shapes == [(1, 1), (1, 1), (1, 1), (2, 1), (1, 1)]


METHODS = {
    "appo": (appo, {"rollouts": 6, "initial_rollouts": 2}),
    "arpo": (arpo, {"rollouts": 6, "initial_rollouts": 2}),
    "grpo": (grpo, {"rollouts": 4}),
}


def played(folder, method, turns):
    """Two iterations over the toy benchmark in float64: every trajectory, and the weights."""
    module, budgets = METHODS[method]
    config = module.Config.of(prompts=2, minibatch_prompts=1, max_response_tokens=72, **budgets)
    loaded = load_model(str(folder), dtype=torch.float64)
    env = toy_env(EchoTool("search"), EchoTool("calculator"), split="train")
    sampler = TransformersSampler(loaded.model, loaded.tokenizer, env.stop_tags)
    rollouts = Rollouts(env, sampler, loaded.tokenizer, 72, turns=turns)
    session = Session.of(config, Policy(loaded, learning_rate=1e-3), rollouts, folder)
    seen = []
    for _ in range(2):
        run_iteration(session, module.iteration)
        session.iteration += 1
        seen += [(t.path, t.response_ids) for tree in session.run.trees for t in tree.trajectories]
    return seen, {name: p.detach().clone() for name, p in loaded.model.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_in_float64_overlap_and_lockstep_are_the_same_run(taught, method):
    """Ids of every trajectory, branches included, in order; weights after two iterations."""
    lockstep, weights = played(taught, method, "lockstep")
    overlap, moved = played(taught, method, "overlap")
    assert sorted(overlap) == sorted(lockstep)
    assert max(len(path) for path, _ in lockstep) > 1 or method == "grpo"
    for name, value in weights.items():
        torch.testing.assert_close(moved[name], value, rtol=0, atol=1e-9)


@pytest.mark.parametrize("turns", ["lockstep", "overlap"])
def test_the_sampler_rests_when_a_rollout_is_over(tokenizer, turns):
    rollouts = overlapping(tokenizer, {"a/0": [call("search", "x"), answer("2")]}, turns=turns)
    rollouts.run(grown(rollouts), "0")
    assert rollouts.sampler.rests == 1
