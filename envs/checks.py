"""The snapshot contract, executable: what `check_env` is to Gymnasium, `check_fork` is to forking."""

import multiprocessing
import pickle
from collections.abc import Sequence
from typing import Any

from envs.state import EnvState
from envs.tool_env import ToolEnv

Outcome = tuple[str, float, bool, bool, str | None]


def check_fork(env: ToolEnv, actions: Sequence[str], *, seed: int = 0) -> None:
    """Prove for an environment and a script of turns that its states are values.

    At every turn of the episode: a fork that replays the parent's next turns sees what the parent
    saw; two siblings that go different ways do not see each other; a fork of a fork and the
    restored state agree, also after the parent has ended; JSON and pickle keep the state, the
    latter in another process.

    Args:
        env: any ToolEnv; it is left reset.
        actions: turns that are played in order until the episode ends.
        seed: of the reset.

    Raises:
        AssertionError: the contract is broken; the message says where.
        ValueError: no actions were given.
    """
    if not actions:
        raise ValueError("check_fork needs at least one turn to play")
    env.reset(seed=seed)
    states, seen = [env.snapshot()], []
    for action in actions:
        seen.append(_play(env, action))
        states.append(env.snapshot())
        if seen[-1][2] or seen[-1][3]:
            break
    played = list(actions[: len(seen)])
    for turn in range(len(played)):
        _check_turn(env, states[turn], played[turn:], seen[turn:], turn)
    _check_other_process(env, states[len(played) // 2], played[len(played) // 2 :], seen)
    env.reset(seed=seed)


def _check_turn(
    env: ToolEnv, state: EnvState, actions: Sequence[str], seen: Sequence[Outcome], turn: int
) -> None:
    env.restore(state)
    sibling, child = env.fork(), env.fork()
    _play(sibling, "<python> zz_sibling = 1 </python>")
    grandchild = child.fork()
    for name, twin in (("fork", child), ("fork of a fork", grandchild), ("restored", env)):
        found = [_play(twin, action) for action in actions]
        assert found == list(seen), f"turn {turn}: the {name} saw {found}, the parent {list(seen)}"
    assert EnvState.from_json(state.to_json()) == state, f"turn {turn}: JSON changed the state"
    assert pickle.loads(pickle.dumps(state)) == state, f"turn {turn}: pickle changed the state"


def _check_other_process(
    env: ToolEnv, state: EnvState, actions: Sequence[str], seen: Sequence[Outcome]
) -> None:
    """Restore a pickled state in a new interpreter and replay the rest there."""
    twin = env.fork()
    twin._np_random = None
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        found = pool.apply(_replay, (pickle.dumps((twin, state)), list(actions)))
    expected = list(seen[len(seen) - len(actions) :])
    assert found == expected, f"another process saw {found}, the parent {expected}"


def _replay(pickled: bytes, actions: list[str]) -> list[Outcome]:
    env, state = pickle.loads(pickled)
    env.restore(state)
    env._owns_tools = True
    try:
        return [_play(env, action) for action in actions]
    finally:
        env.close()


def _play(env: ToolEnv, action: str) -> Outcome:
    observation, reward, terminated, truncated, info = env.step(action)
    kept: dict[str, Any] = dict(info)
    return observation, reward, terminated, truncated, kept.get("stop")
