"""Forking: states are values, and check_fork tells when a tool's are not."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs import ToolEnv, check_fork
from tests.fakes import (
    AliasTool,
    CountingTool,
    DiceTool,
    EchoTool,
    ListTool,
    SayTool,
    ShelfTool,
    UnplugTool,
    answer,
    call,
    play,
    toy_env,
)
from tools import CalculatorTool, ToolUnavailable

SCRIPT = (call("echo", "a"), call("echo", "b"), call("echo", "c"), answer("8"))


def test_the_contract_holds_for_a_tool_whose_state_is_a_value():
    check_fork(toy_env(EchoTool()), SCRIPT)


def test_the_contract_holds_for_every_way_an_episode_can_end():
    for ending in ((answer("8"),), ("no tag",), (call("echo", "b"), call("echo", "c"))):
        check_fork(toy_env(EchoTool(), max_tool_calls=1), (call("echo", "a"), *ending))


def test_the_contract_holds_for_a_script_of_the_checks_own():
    check_fork(toy_env(EchoTool("search"), CalculatorTool()))


def test_the_contract_holds_where_no_tool_is_used():
    check_fork(toy_env(), ("neither a call nor an answer",))


@pytest.mark.parametrize("name", ["SyntheticQA", "GSM8K", "2WikiMultihopQA", "xbench-DeepSearch"])
def test_the_contract_holds_for_benchmarks_and_their_scorers(name, request, tmp_path):
    rows = None if name == "SyntheticQA" else request.getfixturevalue("data_dir")
    corpus = tmp_path / "passages.jsonl"
    corpus.write_text('{"id": "1", "title": "Reynard", "text": "A red fox."}\n', encoding="utf-8")
    env = ToolEnv(name, data_dir=rows, corpus=corpus, tools=("search", "calculator"))
    check_fork(env, (call("search", "fox"), call("calculator", "6*7"), answer("42")))


def test_a_script_without_a_turn_is_refused():
    with pytest.raises(ValueError, match="at least one turn"):
        check_fork(toy_env(), ())


def test_the_environment_is_left_reset():
    env = toy_env(EchoTool())
    check_fork(env, SCRIPT, seed=3)
    assert env.snapshot().transcript == ()


@pytest.mark.parametrize(
    ("tool", "complaint"),
    [
        (CountingTool("echo"), "turn 0: the fork saw .*call 5"),
        (ShelfTool("echo"), "turn 0: the fork saw"),
        (AliasTool("echo"), "turn 0: the fork saw"),
        (DiceTool("echo"), "turn 0: the fork saw"),
        (ListTool("echo"), "turn 1: JSON changed the state"),
    ],
)
def test_a_tool_with_hidden_state_is_found_out(tool, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_fork(toy_env(tool), SCRIPT)


def test_a_tool_that_only_works_in_its_own_process_is_found_out():
    class Local(EchoTool):
        def __reduce__(self):
            return (EchoTool, ("echo",))

        def run(self, state, argument):
            _, result = super().run(state, argument)
            return state, result if argument == "a" else SayTool("here").run(state, "")[1]

    with pytest.raises(AssertionError, match="another process saw"):
        check_fork(toy_env(Local()), SCRIPT)


def test_an_environment_that_cannot_be_pickled_is_found_out():
    tool = EchoTool()
    tool.pipe = (number for number in (1, 2))
    with pytest.raises(AssertionError, match="cannot be pickled"):
        check_fork(toy_env(tool), SCRIPT)


def test_a_tool_that_is_out_of_order_leaves_the_state_as_before_the_call():
    tool = UnplugTool()
    env = toy_env(tool)
    env.reset(options={"task": "t"})
    play(env, call("echo", "a"))
    before = env.snapshot()
    tool.plugged = False
    with pytest.raises(ToolUnavailable, match="the plug is out"):
        play(env, call("echo", "b"))
    assert env.snapshot() is before
    tool.plugged = True
    assert play(env, call("echo", "b"))[0].endswith("a b\n</result>")


def test_a_fork_draws_its_own_tasks():
    env = toy_env(split="train")
    env.reset(seed=5)
    fork, twin = env.fork(), env.fork()
    ahead = [fork.reset()[0] for _ in range(9)]
    assert [twin.reset()[0] for _ in range(9)] == ahead
    assert [env.reset()[0] for _ in range(9)] == ahead


def test_closing_a_fork_leaves_the_shared_tools_open():
    tool = EchoTool()
    env = toy_env(tool)
    env.reset()
    env.fork().fork().close()
    assert tool.closed == 0
    env.close()
    assert tool.closed == 1


def test_a_fork_made_before_the_first_reset_plays():
    fork = toy_env().fork()
    assert fork.reset(options={"task": "t"})[0] == "What is 4 + 4?"


def test_taking_a_state_and_putting_it_back_copies_nothing():
    env = toy_env()
    env.reset()
    state = env.snapshot()
    play(env, call("search", "a"))
    env.restore(state)
    assert env.snapshot() is state


TURNS = st.sampled_from(
    [call("search", "a"), call("search", "b"), call("python", "no"), answer("8"), answer("9"), "?"]
)
CHOICES = st.lists(st.tuples(st.integers(0, 30), TURNS), min_size=1, max_size=25)


@given(CHOICES, st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_any_tree_of_forks_agrees_with_playing_each_path_alone(choices, order):
    """Grow a tree of states by forking random nodes; replay every path in a fresh environment."""
    env = toy_env()
    env.reset(options={"task": "t"})
    nodes = [(env.snapshot(), (), ())]
    for choice, turn in choices:
        state, path, seen = nodes[choice % len(nodes)]
        if state.stop is None:
            child = env.fork()
            child.restore(state)
            outcome = play(child, turn)
            nodes.append((child.snapshot(), (*path, turn), (*seen, outcome)))
    random.Random(order.random()).shuffle(nodes)
    for state, path, seen in nodes:
        alone = toy_env()
        alone.reset(options={"task": "t"})
        assert tuple(play(alone, turn) for turn in path) == seen
        assert alone.snapshot() == state


def test_forks_play_in_threads_as_they_do_alone():
    env = toy_env(max_tool_calls=50)
    env.reset(options={"task": "t"})
    start = env.snapshot()

    def episode(number):
        fork = env.fork()
        fork.restore(start)
        return [fork.step(call("search", f"{number} {turn}")) for turn in range(30)]

    alone = [episode(number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(episode, range(8))) == alone


CELLS = (
    call("python", "bag = [1]\ndef add(x):\n    bag.append(x)\n    return bag"),
    call("python", "add(len(bag)); open('note', 'a').write('x')"),
    call("python", "add(sum(bag)), open('note').read()"),
    call("search", "the founder of Amber Mills"),
    answer("34"),
)


def test_live_python_sessions_keep_the_contract_in_the_real_sandbox(python_env):
    check_fork(python_env, CELLS)
    check_fork(python_env)


def test_branches_of_a_live_python_session_do_not_see_each_other(python_env):
    python_env.reset(seed=0)
    play(python_env, CELLS[0])
    trunk = python_env.snapshot()
    seen = []
    for number in range(4):
        fork = python_env.fork()
        fork.restore(trunk)
        play(fork, call("python", f"add({number});"))
        seen.append(play(fork, call("python", "bag"))[0])
    assert seen == [f" <result>\n[1, {n}]\n\n</result>" for n in range(4)]
