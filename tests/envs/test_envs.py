"""Every registered id as a Gymnasium environment."""

import json
import random
import re
import subprocess
import sys
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import NameNotFound, ResetNeeded
from gymnasium.utils.env_checker import check_env

import envs
from benchmarks import BENCHMARKS, DataUnavailable, GraderUnavailable
from envs import Call, ToolEnv, spellings
from envs.spaces import Unicode
from tests.conftest import ROOT
from tests.fakes import TOY, EchoTool, answer, call, play, toy_env

IDS = [f"appo/{name}-v0" for name in BENCHMARKS]


@pytest.fixture(params=IDS)
def env(request, sandboxed_python, tmp_path):
    """An environment of every id; those that read rows skip where there are none.

    One sandbox serves them all, and only HotpotQA searches the whole corpus of the rows' folder.
    """
    tools = ("search", sandboxed_python or "calculator")
    if request.param == "appo/SyntheticQA-v0":
        return gym.make(request.param, tools=tools)
    rows = request.getfixturevalue("data_dir")
    if request.param == "appo/HotpotQA-v0":
        return gym.make(request.param, data_dir=rows, tools=tools)
    corpus = tmp_path / "passages.jsonl"
    corpus.write_text('{"id": "1", "title": "Reynard", "text": "A red fox."}\n', encoding="utf-8")
    return gym.make(request.param, data_dir=rows, tools=tools, corpus=corpus)


def test_there_are_fourteen_ids():
    assert len(IDS) == 14
    ours = {name: spec for name, spec in gym.registry.items() if name.startswith("appo/")}
    assert set(IDS) == {n for n, spec in ours.items() if spec.entry_point != spellings.ENTRY_POINT}


def suggested(name):
    """What Gymnasium takes a name for."""
    with pytest.raises(NameNotFound, match=f"^Environment `{name}` doesn't exist") as refused:
        gym.make(f"appo/{name}-v0")
    return re.search("Did you mean: `(.*)`", str(refused.value))[1]


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        *spellings.misspellings().items(),
        ("gSM8K", "GSM8K"),
        ("Bambogle", "Bamboogle"),
        ("WebWalkr", "WebWalker"),
        ("HotpottQA", "HotpotQA"),
        ("2WikiMultihopQ", "2WikiMultihopQA"),
        ("Xbench-DeepSearch", "xbench-DeepSearch"),
        ("SyntheticQ", "SyntheticQA"),
    ],
)
def test_a_common_spelling_is_told_the_id(spelling, name):
    assert suggested(spelling) == name


def test_spellings_are_of_our_ids_and_are_none_of_them():
    assert spellings.SPELLINGS.keys() == BENCHMARKS.keys()
    assert not spellings.misspellings().keys() & BENCHMARKS.keys()


@pytest.mark.parametrize("change", [str.lower, str.upper, str.capitalize, str.title])
@pytest.mark.parametrize("name", BENCHMARKS)
def test_an_id_in_other_letters_is_told_the_id(name, change):
    if change(name) not in BENCHMARKS:
        assert suggested(change(name)) == name


def test_make_returns_the_environment_without_a_wrapper(env):
    assert type(env) is ToolEnv
    assert env.unwrapped is env


def test_gymnasiums_own_checks_pass_without_a_warning(env):
    check_env(env, skip_render_check=True)


def test_an_episode_never_tells_the_gold_answer_before_its_end(env):
    _, info = env.reset(seed=1)
    gold = env.tasks[[task.id for task in env.tasks].index(info["task"])].answers
    assert set(info) == {"task", "instructions"}
    assert not any(f'"{text}"' in json.dumps(info) for text in gold)
    info = env.step("no action")[4]
    assert info["gold_answers"] == gold
    assert info["stop"] == "malformed"


def test_the_gold_answer_of_every_kind_of_task_earns_the_full_reward(env):
    env.reset(options={"task": 0})
    _, reward, terminated, _, info = env.step(answer(env.tasks[0].answers[0]))
    assert (reward, terminated, info["stop"]) == (1.0, True, "answered")


def test_a_seed_decides_the_task(env):
    first = [env.reset(seed=seed)[1]["task"] for seed in range(4)]
    assert [env.reset(seed=seed)[1]["task"] for seed in range(4)] == first
    twin = env.fork()
    assert [twin.reset(seed=seed)[1]["task"] for seed in range(4)] == first
    env.reset(seed=7)
    after = [env.reset()[1]["task"] for _ in range(3)]
    env.reset(seed=7)
    assert [env.reset()[1]["task"] for _ in range(3)] == after


def test_an_episode_touches_no_global_generator():
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global state is what this is about
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    env = gym.make("appo/SyntheticQA-v0")
    env.reset(seed=3)
    play(env, call("search", "Amber"), answer("1"))
    env.reset()
    env.action_space.sample()
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002
    env.close()


TORCH = """
import torch, envs, gymnasium as gym
torch.manual_seed(1)
before = torch.get_rng_state()
env = gym.make("appo/SyntheticQA-v0")
env.reset(seed=3)
env.step("<search> Amber </search>")
env.step("<answer> 1 </answer>")
assert torch.equal(torch.get_rng_state(), before)
"""


@pytest.mark.slow
def test_an_episode_touches_no_generator_of_torch():
    subprocess.run([sys.executable, "-c", TORCH], check=True, cwd=ROOT)


HEAVY = """
import sys, envs, gymnasium as gym
env = gym.make("appo/SyntheticQA-v0")
print([name for name in ("torch", "transformers", "datasets", "sympy") if name in sys.modules])
"""


def test_importing_envs_imports_nothing_heavy():
    said = subprocess.run(
        [sys.executable, "-c", HEAVY], check=True, cwd=ROOT, capture_output=True, text=True
    )
    assert said.stdout == "[]\n"


def test_an_id_alone_can_name_the_module_to_import():
    program = (
        'import gymnasium as gym; print(gym.make("envs:appo/SyntheticQA-v0").reset(seed=1)[0])'
    )
    said = subprocess.run(
        [sys.executable, "-c", program], check=True, cwd=ROOT, capture_output=True, text=True
    )
    assert said.stdout.startswith("What is ")


def test_an_unknown_id_is_answered_with_the_near_match():
    with pytest.raises(NameNotFound, match="Did you mean: `HotpotQA`"):
        gym.make("appo/HotPotQA-v0")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"benchmark": "Hotpot"}, "benchmark is 'Hotpot'; expected one of .*'HotpotQA'"),
        ({"split": "dev"}, "split is 'dev'; expected one of .'train', 'validation', 'test'"),
        ({"reward": "f1"}, "reward is 'f1'; expected one of .'task', 'arpo', 'correctness'"),
        ({"tools": ["serch"]}, "unknown tools .'serch'.; expected some of .*'search'"),
        ({"tools": ["search", "search"]}, "expected different words"),
        ({"tools": [EchoTool("answer")]}, "none of them answer, result or think"),
        ({"tools": [EchoTool("a b")]}, "expected different words"),
        ({"max_tool_calls": -1}, "max_tool_calls is -1; expected 0 or more"),
        ({"search": "google"}, "search is 'google'; expected one of"),
    ],
)
def test_an_argument_out_of_range_is_refused_with_what_was_expected(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        ToolEnv(**({"benchmark": "SyntheticQA"} | arguments))


def test_making_an_environment_reads_and_opens_nothing(tmp_path):
    env = gym.make("appo/HotpotQA-v0", data_dir=tmp_path / "nowhere")
    with pytest.raises(DataUnavailable, match="nowhere"):
        env.reset()


def test_options_pick_a_task_by_id_or_by_index():
    env = toy_env(split="train")
    assert env.reset(options={"task": "c"})[0] == "Name a fox."
    assert env.reset(options={"task": 1})[0] == "What is 2 + 2?"
    assert env.reset(options={"task": np.int64(2)})[1]["task"] == "c"
    assert env.reset(seed=1, options={"task": "a"})[1]["task"] == "a"


@pytest.mark.parametrize(
    ("options", "error", "complaint"),
    [
        ({"task": "z"}, KeyError, "no test task has the id 'z'; ids look like 't'"),
        ({"task": 2}, IndexError, "no task 2: the 2 test tasks have the indices 0 to 1"),
        ({"task": -1}, IndexError, "no task -1"),
        ({"tsk": 1}, ValueError, 'expected {"task": task, id or index}'),
        ({"task": 1.5}, TypeError, "indices"),
    ],
)
def test_a_task_that_is_not_there_is_refused_and_the_episode_goes_on(options, error, complaint):
    env = toy_env()
    env.reset(options={"task": "t"})
    with pytest.raises(error, match=complaint):
        env.reset(options=options)
    assert play(env, answer("8"))[1] == 1.0


def test_a_split_and_a_level_choose_the_tasks():
    assert [task.id for task in toy_env(split="train").tasks] == ["a", "b", "c"]
    assert [task.id for task in toy_env(split="validation").tasks] == ["v"]
    assert [task.id for task in toy_env(split="train", level="2").tasks] == ["c"]
    hard = ToolEnv("SyntheticQA", level="4").tasks
    assert (len(hard), {dict(task.metadata)["level"] for task in hard}) == (200, {"4"})
    with pytest.raises(ValueError, match=r"no test task of level '9'; its levels are \['1', '2'\]"):
        toy_env(level="9").reset()


def test_two_tasks_of_one_id_are_refused():
    twice = replace(TOY, load=lambda split, data_dir: TOY.load(split) * 2)
    with pytest.raises(ValueError, match="two test tasks of Toy share an id"):
        ToolEnv(twice, tools=()).reset()


def test_a_step_needs_a_running_episode():
    env = toy_env()
    for act in (lambda: env.step("a"), lambda: env.truncate("length")):
        with pytest.raises(ResetNeeded, match="call reset"):
            act()
    with pytest.raises(ResetNeeded, match="no episode to take a snapshot of"):
        env.snapshot()
    env.reset()
    play(env, answer("8"))
    for act in (lambda: env.step("a"), lambda: env.truncate("length")):
        with pytest.raises(ResetNeeded, match="has ended"):
            act()


@pytest.mark.parametrize("reason", ["length", "turn_limit"])
def test_a_caller_can_end_an_episode_and_it_counts_as_no_answer(reason):
    env = toy_env()
    env.reset(options={"task": "t"})
    _, reward, terminated, truncated, info = env.truncate(reason, answer("8"))
    assert (reward, terminated, truncated) == (-1.0, False, True)
    assert (info["stop"], info["answer"], info["gold_answers"]) == (reason, None, ("8",))
    assert env.snapshot().transcript == (answer("8"),)


def test_a_turn_that_was_cut_inside_a_character_can_be_stored():
    env = toy_env()
    env.reset()
    env.truncate("length", "half a \ud83e")
    assert env.snapshot().transcript == ("half a ?",)


def test_no_other_reason_ends_an_episode():
    env = toy_env()
    env.reset()
    with pytest.raises(ValueError, match="reason is 'boredom'; expected length or turn_limit"):
        env.truncate("boredom")
    assert env.snapshot().stop is None


def test_a_call_tells_which_tool_ran_and_whether_it_could():
    env = toy_env()
    env.reset(options={"task": "t"})
    seen, reward, terminated, truncated, info = play(env, call("search", "foxes"))
    seed = env.snapshot().tool_states[1][0]
    assert seen == f" <result>\n{seed} foxes\n</result>"
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert info.pop("call") == Call("search", "foxes", ok=True, seconds=0.0, free=False)
    assert info == {"task": "t", "tool": "search", "ok": True}
    assert play(env, call("python", "no"))[4]["ok"] is False
    assert env.snapshot().calls == ("search", "python")


def test_tools_own_what_a_task_seeds_them_with():
    env = toy_env()
    env.reset(options={"task": "t"})
    states = env.snapshot().tool_states
    env.reset(options={"task": "u"})
    other = env.snapshot().tool_states
    env.reset(seed=8, options={"task": "t"})
    assert env.snapshot().tool_states == states != other


def test_tools_are_given_the_files_of_a_task():
    task = replace(TOY.load("test")[0], attachments=("/rows/fox.png",))
    env = ToolEnv(replace(TOY, load=lambda split, data_dir: [task]), tools=[EchoTool()])
    env.reset()
    assert env.snapshot().tool_states[0][1:] == ("/rows/fox.png",)


def test_what_a_scorer_asks_for_is_in_the_instructions(data_dir):
    env = gym.make("appo/GAIA-v0", data_dir=data_dir)
    assert BENCHMARKS["GAIA"].instructions
    assert BENCHMARKS["GAIA"].instructions in env.reset(seed=0)[1]["instructions"]


def test_a_scorer_that_is_out_of_order_leaves_the_state_as_before_the_answer():
    def broken(text, task):
        raise GraderUnavailable("no process")

    env = ToolEnv(replace(TOY, training_score=broken), tools=())
    env.reset()
    before = env.snapshot()
    with pytest.raises(GraderUnavailable, match="no process"):
        env.step(answer("8"))
    assert env.snapshot() is before


def test_a_benchmark_without_passages_searches_the_corpus_it_is_given(tmp_path):
    bare = replace(TOY, corpus=lambda split, data_dir: ())
    corpus = tmp_path / "passages.jsonl"
    corpus.write_text('{"id": "1", "title": "Reynard", "text": "A red fox."}\n', encoding="utf-8")
    env = ToolEnv(bare, corpus=corpus)
    env.reset(options={"task": "u"})
    assert "Reynard. A red fox." in play(env, call("search", "fox"))[0]
    beside = tmp_path / "corpus"
    beside.mkdir()
    corpus.rename(beside / "passages.jsonl")
    env = ToolEnv(bare, data_dir=tmp_path)
    env.reset(options={"task": "u"})
    assert "Reynard. A red fox." in play(env, call("search", "fox"))[0]
    env = ToolEnv(bare, search="local")
    with pytest.raises(DataUnavailable, match="give corpus= an index folder or a JSONL file"):
        env.reset()


@pytest.mark.parametrize(("mode", "options"), [("sync", {}), ("async", {"shared_memory": False})])
def test_a_vector_of_environments_plays(mode, options):
    vector = gym.make_vec(
        "appo/SyntheticQA-v0", num_envs=2, vectorization_mode=mode, vector_kwargs=options
    )
    try:
        questions, infos = vector.reset(seed=[4, 5])
        alone = [gym.make("appo/SyntheticQA-v0").reset(seed=seed) for seed in (4, 5)]
        assert list(questions) == [question for question, _ in alone]
        assert list(infos["task"]) == [info["task"] for _, info in alone]
        seen, *_ = vector.step(tuple(call("search", question) for question in questions))
        assert all(text.startswith(" <result>\nPage 1: ") for text in seen)
        _, rewards, terminated, truncated, infos = vector.step((answer("?"), "no action"))
        assert rewards.tolist() == [0.0, -1.0]
        assert (terminated.tolist(), truncated.tolist()) == ([True, True], [False, False])
        assert list(infos["stop"]) == ["answered", "malformed"]
    finally:
        vector.close()


def test_python_runs_in_the_workers_of_a_vector(python_env):
    vector = gym.make_vec(
        "appo/SyntheticQA-v0",
        num_envs=2,
        vectorization_mode="async",
        vector_kwargs={"shared_memory": False},
        sandbox="local",
    )
    try:
        vector.reset(seed=1)
        vector.step((call("python", "x = 6"), call("python", "x = 7")))
        seen, *_ = vector.step((call("python", "x * 7"), call("python", "x * 7")))
        assert list(seen) == [" <result>\n42\n\n</result>", " <result>\n49\n\n</result>"]
    finally:
        vector.close()


def test_a_worker_that_inherits_an_open_environment_opens_tools_of_its_own(python_env):
    python_env.reset(seed=0)
    play(python_env, call("python", "x = 6"))
    state = python_env.snapshot()
    vector = gym.vector.AsyncVectorEnv([python_env.fork] * 2, shared_memory=False, context="fork")
    try:
        vector.call("restore", state)
        seen, *_ = vector.step((call("python", "x += 1; x"), call("python", "x * 7")))
        assert list(seen) == [" <result>\n7\n\n</result>", " <result>\n42\n\n</result>"]
    finally:
        vector.close()
    assert play(python_env, call("python", "x"))[0] == " <result>\n6\n\n</result>"


def test_a_python_cell_runs_in_an_episode_and_its_names_live_on(python_env):
    python_env.reset(seed=0)
    play(python_env, call("python", "x = 40"))
    seen, _, _, _, info = play(python_env, call("python", "x + 2"))
    assert seen == " <result>\n42\n\n</result>"
    assert (info["tool"], info["ok"]) == ("python", True)


def test_the_space_holds_every_text_that_encodes_and_nothing_else():
    space = Unicode()
    assert all(
        space.contains(text) for text in ("", "a", "\x00", "東京", "\U0001f98a", "a" * 10**6)
    )
    assert not any(space.contains(thing) for thing in ("\ud800", b"a", None, 3))


def test_the_space_samples_tagged_turns_by_its_seed():
    space = Unicode(tags=("search", "answer"), seed=1)
    drawn = [space.sample() for _ in range(40)]
    assert all(space.contains(text) for text in drawn)
    assert any("</search>" in text for text in drawn)
    assert any("</answer>" in text for text in drawn)
    assert [Unicode(tags=("search", "answer"), seed=1).sample()] == drawn[:1]
    with pytest.raises(ValueError, match="takes no mask"):
        space.sample(mask=1)


def test_a_random_text_ends_no_episode_by_a_limit():
    env = toy_env()
    env.action_space.seed(0)
    for _ in range(50):
        env.reset(seed=0)
        assert env.step(env.action_space.sample())[3] is False


def test_public_names_are_importable():
    assert all(hasattr(envs, name) for name in envs.__all__)
