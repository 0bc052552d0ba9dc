"""EnvState: a value that survives storage, and what is refused when it comes back."""

import json
import pickle
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs import EnvState
from tests.fakes import EchoTool, answer, call, play, toy_env

START = EnvState("Toy", "1", "test", "t", (), ((9,), None), ("search", "python"))

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
LEAF = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
TOOL_STATES = st.recursive(LEAF, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6)
WITH_TOOLS = st.lists(st.tuples(TEXT, TOOL_STATES), max_size=3)


@st.composite
def states(draw):
    tools = draw(WITH_TOOLS)
    return EnvState(
        *(draw(TEXT) for _ in range(4)),
        transcript=tuple(draw(st.lists(TEXT, max_size=4))),
        tool_states=tuple(state for _, state in tools),
        tools=tuple(name for name, _ in tools),
        calls=tuple(draw(st.lists(TEXT, max_size=3))),
        limit_noticed=draw(st.booleans()),
        stop=draw(st.sampled_from([None, "answered", "malformed", "tool_limit", "length"])),
    )


@given(states())
def test_json_and_pickle_keep_a_state(state):
    stored = state.to_json()
    assert EnvState.from_json(stored.encode().decode()) == state
    assert "\n" not in stored
    assert pickle.loads(pickle.dumps(state)) == state
    assert hash(EnvState.from_json(stored)) == hash(state)


def test_a_state_is_frozen():
    with pytest.raises(FrozenInstanceError):
        START.stop = "answered"  # type: ignore[misc]


def test_the_stored_form_is_readable_and_names_the_task_without_its_answer():
    env = toy_env()
    env.reset(options={"task": "t"})
    play(env, call("search", "東京"))
    stored = env.snapshot().to_json()
    assert json.loads(stored)["task_id"] == "t"
    assert "東京" in stored
    assert "What is 4 + 4?" not in stored
    assert '"8"' not in stored


def test_a_turn_of_any_characters_can_be_stored():
    env = toy_env()
    env.reset(options={"task": "t"})
    play(env, call("search", "\x00\u2028\ud800 </s>"))
    state = env.snapshot()
    assert EnvState.from_json(state.to_json().encode("utf-8").decode("utf-8")) == state


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not a stored state"),
        ("{", "not a stored state"),
        ("3", "not a stored state"),
        ("null", "not a stored state"),
        ("[1]", "not a stored state"),
        ("{}", "missing 4 required positional arguments"),
        ('{"benchmark": "Toy", "colour": 1}', "unexpected keyword argument 'colour'"),
        ("[" * 100_000, "not a stored state"),
    ],
)
def test_text_that_is_no_state_is_refused(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        EnvState.from_json(text)


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("benchmark", 3, "benchmark of another type"),
        ("task_id", None, "task_id of another type"),
        ("transcript", "ab", "transcript of another type"),
        ("transcript", [1], "transcript of another type"),
        ("calls", {}, "not a stored state"),
        ("tool_states", 5, "not a stored state|another type"),
        ("tool_states", [{"a": 1}, None], "unhashable"),
        ("tool_states", [None], "2 tools and 1 states"),
        ("limit_noticed", 1, "limit_noticed of another type"),
        ("stop", "tired", "stop is 'tired'; expected one of"),
        ("stop", False, "stop is False"),
    ],
)
def test_a_field_of_another_type_is_refused(field, value, complaint):
    fields = json.loads(START.to_json()) | {field: value}
    with pytest.raises(ValueError, match=complaint):
        EnvState.from_json(json.dumps(fields))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"benchmark": "Boy"}, "state is of .'Boy'"),
        ({"revision": "2"}, "this environment of .'Toy', '1'"),
        ({"split": "train"}, "benchmark, revision, split, tools"),
        ({"tools": ("python", "search")}, "'python', 'search'"),
        ({"tools": ("search",), "tool_states": (None,)}, "benchmark, revision, split, tools"),
        ({"task_id": "z"}, "task 'z' is not among the test tasks"),
    ],
)
def test_a_state_of_other_tasks_or_tools_is_refused(change, complaint):
    env = toy_env()
    env.reset(options={"task": "u"})
    before = env.snapshot()
    with pytest.raises(ValueError, match=complaint):
        env.restore(replace(START, **change))
    assert env.snapshot() is before


def test_a_task_that_the_level_leaves_out_is_refused():
    env = toy_env(level="2")
    with pytest.raises(ValueError, match="'t' is not among the test tasks of level 2"):
        env.restore(START)


def test_a_state_is_restored_where_no_episode_began_and_in_other_environments():
    parent = toy_env()
    parent.reset(options={"task": "t"})
    play(parent, call("search", "a"))
    other = toy_env(EchoTool("search"), EchoTool("python"))
    other.restore(EnvState.from_json(parent.snapshot().to_json()))
    assert play(other, call("search", "b")) == play(parent, call("search", "b"))
    assert play(other, answer("8"))[1] == 1.0
