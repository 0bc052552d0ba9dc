"""Rewards: what each of the three pays, and that the terms say why."""

import pytest

from benchmarks import Benchmark, Score, Task
from envs import EnvState
from envs.reward import REWARDS, compute_reward, final_answer
from tests.fakes import TOY, answer, call, play, toy_env

FOX = Task("f", "Who is it?", ("the red fox", "Reynard"))


def scored(name, *transcript, stop="answered", calls=(), task=FOX, benchmark=TOY):
    state = EnvState("Toy", "1", "test", task.id, transcript, calls=calls, stop=stop)
    earned = compute_reward(name, benchmark, task, state)
    assert sum(earned.terms.values()) == earned.value
    return earned


def box(text):
    return f"<think> a </think><answer> \\boxed{{{text}}} </answer>"


def searched(query="x"):
    return f"<think> a </think><search> {query} </search>"


SAW = " <result>\nPage 1\n</result>"


def half_score(text, task):
    return Score(0.5, "f1", text)


HALF = Benchmark("Toy", TOY.load, TOY.score, half_score, "a test")


def test_task_pays_the_training_score():
    assert scored("task", box("Reynard")) == (1.0, {"score": 1.0, "tools": 0.0})
    assert scored("task", box("Renard")) == (0.0, {"score": 0.0, "tools": 0.0})
    assert scored("task", box("Reynard"), benchmark=HALF).value == 0.5


@pytest.mark.parametrize("stop", ["malformed", "tool_limit", "length", "turn_limit"])
def test_task_takes_one_for_an_episode_without_an_answer(stop):
    assert scored("task", box("Reynard"), stop=stop) == (-1.0, {"format": -1.0})


@pytest.mark.parametrize(
    ("calls", "bonus"),
    [
        ((), 0.0),
        (("search", "search"), 0.0),
        (("python",), 0.0),
        (("calculator", "search"), 0.0),
        (("search", "python"), 0.1),
        (("python", "search", "python"), 0.1),
    ],
)
def test_task_pays_a_tenth_more_where_search_and_python_both_ran(calls, bonus):
    earned = scored("task", box("Reynard"), calls=calls)
    assert earned == (1.0 + bonus, {"score": 1.0, "tools": bonus})


def test_task_pays_no_bonus_for_a_wrong_answer_or_for_tags_alone():
    assert scored("task", box("Renard"), calls=("search", "python")).value == 0.0
    gaming = "<think> </search></python> </think><answer> \\boxed{Reynard} </answer>"
    assert scored("task", gaming).value == 1.0


def test_correctness_is_one_only_for_the_full_official_score():
    assert scored("correctness", box("Reynard")) == (1.0, {"correctness": 1.0})
    assert scored("correctness", box("Renard")) == (0.0, {"correctness": 0.0})
    assert scored("correctness", box("Reynard"), stop="length").value == 0.0
    partial = Benchmark("Toy", TOY.load, half_score, TOY.score, "a test")
    assert scored("correctness", box("Reynard"), benchmark=partial).value == 0.0


@pytest.mark.parametrize(
    ("transcript", "value"),
    [
        # the best token F1 over the answers: red, fox of "red fox" (articles do not count)
        ((box("red fox"),), 1.0),
        ((box("Reynard"),), 1.0),
        # one of one token right, one of two found: 2 * 1 * 0.5 / 1.5
        ((box("fox"),), 2 / 3),
        ((box("cat"),), 0.0),
        # thoughts: as many closed as opened, and at least one
        (("<answer> \\boxed{Reynard} </answer>",), -1.0),
        (("<think> <think> a </think><answer> \\boxed{Reynard} </answer>",), -1.0),
        # exactly one answer, with a box
        (("<think> a </think> Reynard",), -1.0),
        ((box("cat") + box("Reynard"),), -1.0),
        (("<think> a </think><answer> Reynard </answer>",), -1.0),
        # every call is followed by its result
        ((searched(), SAW, box("Reynard")), 1.0),
        ((searched(), SAW, searched(), SAW, box("Reynard")), 1.0),
        ((searched() + box("Reynard"),), -1.0),
        ((searched(), SAW, searched()), -1.0),
        # what a tool said is not read: neither its answer nor its tags
        ((searched(), " <result>\n<answer>\n</result>", box("Reynard")), 1.0),
        ((searched(), " <result>\n</python> Reynard\n</result>", box("cat")), 0.0),
        # the bonus is for closing tags, executed or not, and only beside a right answer
        ((searched() + "</python>", SAW, box("Reynard")), 1.1),
        (("</search></python>" + box("Reynard"),), 1.1),
        (("</search></python>" + box("fox"),), 2 / 3 + 0.1),
        (("</search></python>" + box("cat"),), 0.0),
        # a result of the model's own is a bad format
        ((searched() + SAW + box("Reynard"),), -1.0),
        (("</result>" + box("Reynard"),), -1.0),
    ],
)
def test_arpo_pays_by_the_published_rules(transcript, value):
    earned = scored("arpo", *transcript, stop="answered")
    assert earned.value == pytest.approx(value)
    assert set(earned.terms) == {"arpo"}


def test_arpo_takes_minus_five_for_five():
    five = Task("n", "How many?", ("5",))
    assert scored("arpo", box("-5"), task=five).value == 1.0
    assert scored("task", box("-5"), task=five).value == 0.0


def test_the_final_answer_is_that_of_an_answered_episode_only():
    state = EnvState("Toy", "1", "test", "f", (searched(), SAW, box(" Reynard ")), stop="answered")
    assert final_answer(state) == "Reynard"
    assert final_answer(EnvState("Toy", "1", "test", "f", (box("x"),), stop="malformed")) is None
    assert final_answer(EnvState("Toy", "1", "test", "f")) is None


@pytest.mark.parametrize("name", REWARDS)
def test_an_episode_pays_nothing_before_its_end_and_shows_its_terms_at_it(name):
    env = toy_env(reward=name)
    env.reset(options={"task": "t"})
    for turn in (call("search", "a"), call("python", "b")):
        _, value, _, _, info = play(env, turn)
        assert (value, "reward_terms" in info) == (0.0, False)
    _, value, terminated, _, info = play(env, answer("8"))
    assert terminated
    assert value == sum(info["reward_terms"].values()) == {"correctness": 1.0}.get(name, 1.1)
