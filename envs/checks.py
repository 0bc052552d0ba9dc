"""check_fork, the executable contract of snapshots, as `check_env` is that of steps."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Sequence
from functools import partial

from gymnasium.vector.utils import CloudpickleWrapper

from envs.state import EnvState
from envs.tool_env import ToolEnv

Seen = tuple[str, float, bool, bool, str | None]
"""observation, reward, terminated, truncated, why it stopped"""

_SCRIPT = {"python": ("seen = [1]", "seen.append(2); seen", "seen")}
"""Arguments of a default episode's calls, by tool."""

_OTHER_PROCESS = """
import json, pickle, sys
sys.path[:] = sys.argv[1:]
print(json.dumps(pickle.load(sys.stdin.buffer)()))
"""


def check_fork(env: ToolEnv, actions: Sequence[str] | None = None, *, seed: int = 0) -> None:
    """Check for an environment and a script of turns that its states are values.

    At every turn of the episode, after the parent has ended, a fork, a fork of a fork and the
    restored environment replay the parent's next turns and must see what the parent saw. They run
    interleaved with each other and with a sibling that does something else. JSON and pickle must
    preserve the state, pickle across processes.

    Args:
        env: any ToolEnv; it is left reset.
        actions: turns that are played in order until the episode ends; None: calls of every tool,
            then an answer.
        seed: for the reset.

    Raises:
        AssertionError: the contract is broken; the message says where.
        ValueError: no actions were given.
    """
    env.reset(seed=seed)
    script = _script(env.snapshot().tools) if actions is None else actions
    if not script:
        raise ValueError("check_fork needs at least one turn to play")
    states, stored, seen = [env.snapshot()], [_stored(env.snapshot(), 0)], []
    for turn, action in enumerate(script, start=1):
        seen.append(_play(env, action))
        states.append(env.snapshot())
        stored.append(_stored(env.snapshot(), turn))
        if seen[-1][2] or seen[-1][3]:
            break
    played = script[: len(seen)]
    for turn in range(len(played)):
        _check_turn(env, states[turn], played[turn:], seen[turn:], turn)
    for turn, (state, text) in enumerate(zip(states, stored, strict=True)):
        assert state.to_json() == text, f"turn {turn}: the kept state has changed since"
    middle = len(played) // 2
    _check_other_process(env, states[middle], played[middle:], seen[middle:])
    env.reset(seed=seed)


def _script(tools: Sequence[str]) -> list[str]:
    calls = [f"<{name}> {cell} </{name}>" for name in tools for cell in _SCRIPT.get(name, ("6*7",))]
    return [*(f"<think> a call </think> {call}" for call in calls), "<answer> 42 </answer>"]


def _stored(state: EnvState, turn: int) -> str:
    """Return the state as JSON after checking that it reads back."""
    try:
        text = state.to_json()
        same = EnvState.from_json(text) == state
    except (TypeError, ValueError) as error:
        raise AssertionError(f"turn {turn}: the state is not made of values: {error}") from error
    assert same, f"turn {turn}: JSON changed the state"
    assert pickle.loads(pickle.dumps(state)) == state, f"turn {turn}: pickle changed the state"
    return text


def _check_turn(
    env: ToolEnv, state: EnvState, actions: Sequence[str], seen: Sequence[Seen], turn: int
) -> None:
    env.restore(state)
    sibling, child = env.fork(), env.fork()
    twins = {"fork": child, "fork of a fork": child.fork(), "restored": env}
    for tool in state.tools:
        if sibling.snapshot().stop is None:
            _play(sibling, f"<{tool}> seen = [0] </{tool}>")
    for action, expected in zip(actions, seen, strict=True):
        for name, twin in twins.items():
            outcome = _play(twin, action)
            assert outcome == expected, (
                f"turn {turn}: the {name} saw {outcome}, the parent {expected}"
            )


def _check_other_process(
    env: ToolEnv, state: EnvState, actions: Sequence[str], seen: Sequence[Seen]
) -> None:
    """Restore a pickled state in a new interpreter and replay the rest there."""
    rest = partial(_go_on, env.fork(), state, list(actions))
    try:
        episode = pickle.dumps(CloudpickleWrapper(rest))
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise AssertionError(f"the environment cannot be pickled: {error}") from error
    command = [sys.executable, "-c", _OTHER_PROCESS, *sys.path]
    ended = subprocess.run(command, input=episode, capture_output=True, check=False)
    errors = ended.stderr.decode(errors="replace")
    assert ended.returncode == 0, f"another process could not go on from the state: {errors}"
    outcomes = [tuple(one) for one in json.loads(ended.stdout.splitlines()[-1])]
    assert outcomes == list(seen), f"another process saw {outcomes}, the parent {list(seen)}"


def _go_on(env: ToolEnv, state: EnvState, actions: Sequence[str]) -> list[Seen]:
    """Play on in the other process."""
    env._owns_tools = True
    env.restore(state)
    try:
        return [_play(env, action) for action in actions]
    finally:
        env.close()


def _play(env: ToolEnv, action: str) -> Seen:
    observation, reward, terminated, truncated, info = env.step(action)
    return observation, reward, terminated, truncated, info.get("stop")
