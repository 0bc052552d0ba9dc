"""A step of the environment, tried again where its machinery fails."""

import time
from collections.abc import Callable

from benchmarks import GraderUnavailable
from envs import ToolEnv
from envs.tool_env import Outcome
from learners.threads import GivenUp, within
from tools import ToolUnavailable

ATTEMPTS = 3
"""How often a step is made from the same state before it is given up."""

UNAVAILABLE = (ToolUnavailable, GraderUnavailable)
"""Faults of the machinery: nothing about the turn is known, the state is as before it."""


def step(
    env: ToolEnv,
    text: str,
    *,
    pause_s: float,
    patience_s: float,
    again: Callable[[], None] = lambda: None,
) -> Outcome | ToolUnavailable | GraderUnavailable:
    """What the environment says to a turn, or the fault that its machinery kept to.

    Args:
        env: as before the turn.
        text: the turn.
        pause_s: seconds before the second attempt; doubles from attempt to attempt.
        patience_s: seconds for an attempt; one that hangs longer is not made again.
        again: called before every attempt but the first.
    """
    for attempt in range(ATTEMPTS):
        if attempt:
            again()
            time.sleep(pause_s * 2 ** (attempt - 1))
        try:
            return within(patience_s, lambda: env.step(text))
        except GivenUp:  # it may still be at work on this environment: not asked again
            return ToolUnavailable(f"a step gave no answer in {patience_s:g} s")
        except UNAVAILABLE as error:
            fault = error
    return fault
