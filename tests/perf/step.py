"""What a step and a fork cost beside a step of an empty environment, interleaved in one run.

    python -m tests.perf.step

Every row is measured in turn, round after round, so that a busy machine slows all of them alike;
the median round counts. The target is 100 microseconds for a step that calls no tool, and no more
for a snapshot with its restore. A script, not a test: times are printed and never asserted.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym

from envs import ToolEnv
from envs.spaces import Unicode
from tests.fakes import EchoTool, call

TARGET_S = 100e-6
ANSWER = "<think> the age is 34 </think><answer>\\boxed{ 34}</answer>"
LONG = "<think> " + "The founder of Amber Mills is not known to me. " * 100 + "</think>" + ANSWER


class EmptyEnv(gym.Env[str, str]):
    """The least that Gymnasium lets a step be."""

    action_space = observation_space = Unicode()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "", 0.0, True, False, {}


def played() -> ToolEnv:
    """SyntheticQA after four calls, so that a state has a history; its tools only echo."""
    env = ToolEnv("SyntheticQA", tools=(EchoTool("search"), EchoTool("python")))
    env.reset(seed=0)
    for number in range(4):
        env.step(call("search", f"entity {number}"))
    return env


def measured() -> dict[str, Callable[[], object]]:
    """What is timed, by name; the first row is what the others are compared with."""
    empty, env = EmptyEnv(), played()
    start = env.snapshot()

    def step(turn: str) -> Callable[[], object]:
        def run() -> object:
            env._state = start  # a restore is timed in its own row
            return env.step(turn)

        return run

    def forked_step() -> object:
        fork = env.fork()
        fork.restore(start)
        return fork.step(ANSWER)

    return {
        "empty environment: step": lambda: empty.step(ANSWER),
        "step: an answer": step(ANSWER),
        "step: an answer after 5,000 characters": step(LONG),
        "step: a malformed turn": step("I would say 34."),
        "step: a call of a tool that does nothing": step(call("search", "Amber Mills")),
        "snapshot and restore": lambda: env.restore(env.snapshot()),
        "fork, restore and step": forked_step,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--calls", type=int, default=500, help="of each row in a round")
    arguments = parser.parse_args()
    rows = measured()
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(arguments.rounds):
        for name, run in rows.items():
            begun = time.perf_counter()
            for _ in range(arguments.calls):
                run()
            seconds[name].append((time.perf_counter() - begun) / arguments.calls)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    empty = next(iter(medians.values()))
    print(f"{'':44}{'microseconds':>14}{'x empty':>10}{'of 100 us':>11}")
    for name, median in medians.items():
        print(f"{name:44}{median * 1e6:14.2f}{median / empty:10.1f}{median / TARGET_S:11.2f}")


if __name__ == "__main__":
    main()
