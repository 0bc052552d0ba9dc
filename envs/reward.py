"""The reward of an ended episode and the terms it adds up.

There are three rewards: `task`, the default in training; `arpo`, the published reward to the letter
(it can be gamed: writing a closing tag earns its bonus); and `correctness`, 0 or 1. All of them
read only text that the model wrote.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from benchmarks import Benchmark, Task, arpo_reward
from envs.state import EnvState
from envs.tags import RESULT, Answer, boxed, observation, parse

RewardName = Literal["task", "arpo", "correctness"]

REWARDS: tuple[str, ...] = get_args(RewardName)


BOTH_TOOLS_BONUS = 0.1


class Reward(NamedTuple):
    """A reward and its visible parts, which add up to it."""

    value: float
    terms: dict[str, float]


def compute_reward(name: RewardName, benchmark: Benchmark, task: Task, state: EnvState) -> Reward:
    """Compute the reward of an episode that ended in `state`.

    `task`: -1 without a well-formed answer, else the benchmark's training score, plus 0.1 if
    that is not 0 and search and Python were both executed. `arpo`: see `benchmarks.arpo`; also -1
    for a `<result>` that the model wrote. `correctness`: 1 if the official score is 1.
    """
    if name == "arpo":
        return _arpo(task, state)
    text = final_answer(state)
    if name == "correctness":
        right = text is not None and benchmark.score(text, task).value == 1.0
        return _sum(correctness=float(right))
    if text is None:
        return _sum(format=-1.0)
    score = benchmark.training_score(text, task).value
    bonus = BOTH_TOOLS_BONUS if score > 0 and {"search", "python"} <= set(state.calls) else 0.0
    return _sum(score=score, tools=bonus)


def final_answer(state: EnvState) -> str | None:
    """The episode's answer, or None if it ended without one."""
    if state.stop != "answered":
        return None
    action = parse(state.transcript[-1], ())
    return boxed(action.text) if isinstance(action, Answer) else None


def _arpo(task: Task, state: EnvState) -> Reward:
    if any(f"<{RESULT}>" in turn or f"</{RESULT}>" in turn for turn in state.transcript[::2]):
        return _sum(arpo=-1.0)
    # The check expects a result after every call, but must not read the tool's words.
    text = "".join(
        part if index % 2 == 0 else observation("") for index, part in enumerate(state.transcript)
    )
    value = arpo_reward(text, task.answers)[0]
    return _sum(arpo=float(value))


def _sum(**terms: float) -> Reward:
    return Reward(sum(terms.values()), terms)
