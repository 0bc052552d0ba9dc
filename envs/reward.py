"""From an ended episode to its reward, with the terms it is made of.

Three rewards: `task` is what training uses by default; `arpo` is the published reward to the
letter (it can be gamed: writing a closing tag earns its bonus); `correctness` is 0 or 1. All of
them read only what the model wrote.
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
    """The reward of an episode that ended in `state`.

    `task`: -1 without a well-formed answer, else the benchmark's training score, plus 0.1 when
    that is not 0 and search and Python were both executed. `arpo`: see `benchmarks.arpo`; -1 too
    for a `<result>` of the model's own. `correctness`: 1 when the official score is 1.
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
    """What the episode answered, or None when it ended otherwise."""
    if state.stop != "answered":
        return None
    action = parse(state.transcript[-1], ())
    return boxed(action.text) if isinstance(action, Answer) else None


def _arpo(task: Task, state: EnvState) -> Reward:
    if any(f"<{RESULT}>" in turn or f"</{RESULT}>" in turn for turn in state.transcript[::2]):
        return _sum(arpo=-1.0)
    # The check wants a result after every call; what the tool said is none of the model's words.
    text = "".join(
        part if index % 2 == 0 else observation("") for index, part in enumerate(state.transcript)
    )
    value = arpo_reward(text, task.answers)[0]
    return _sum(arpo=float(value))


def _sum(**terms: float) -> Reward:
    return Reward(sum(terms.values()), terms)
