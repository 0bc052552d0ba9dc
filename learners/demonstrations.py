"""Scripted episodes as trajectories to train on: played through their environment, tools included.

A call that failed is no part of a script: on a busy machine a cell may time out, and its text would
be learned. The script is played again then, and left out, with the reason, where it fails to the
end; so what is trained on depends on the scripts alone unless something is said.
"""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks import Demonstration
from envs.tags import render
from learners.attempts import ATTEMPTS
from learners.encoding import encode
from learners.rollout import Rollouts
from learners.transcripts import Reading, Unusable
from learners.tree import Completion, Trajectory
from tools import ToolUnavailable

TOO_LONG = "longer than --max-response-tokens"


def play(rollouts: Rollouts, demonstrations: Sequence[Demonstration]) -> Reading:
    """Each demonstration as the trajectory that sampling its turns would have made.

    Raises:
        ToolUnavailable: a tool's machinery stayed broken.
    """
    with ThreadPoolExecutor(rollouts.tool_threads) as pool:
        found = list(pool.map(lambda one: _tried(rollouts, one), demonstrations))
    rollouts.ledger.take()
    reasons = Counter(one for one in found if isinstance(one, str))
    return Reading([one for one in found if isinstance(one, Trajectory)], reasons)


def _tried(rollouts: Rollouts, demonstration: Demonstration) -> Trajectory | str:
    """The trajectory, or why there is none."""
    reason = ""
    for _ in range(ATTEMPTS):
        try:
            trajectory = _played(rollouts, demonstration)
        except Unusable as error:
            return str(error)
        failed = [turn.call.tool for turn in trajectory.turns if turn.call and not turn.call.ok]
        if not failed:
            return trajectory
        reason = f"a call of {failed[0]} failed, {ATTEMPTS} times over"
    return reason


def _played(rollouts: Rollouts, demonstration: Demonstration) -> Trajectory:
    """The scripted trajectory.

    Raises:
        Unusable: it is longer than a response may be, or ends outside the rules of the episode.
        ToolUnavailable: its tools are.
    """
    tree = rollouts.tree(demonstration.task)
    trajectory = tree.root()
    for step in demonstration.steps:
        ids = encode(rollouts.tokenizer, render(step))
        if trajectory.done:
            raise Unusable(_ended(trajectory))
        if len(trajectory) + len(ids) > rollouts.max_response_tokens:
            raise Unusable(TOO_LONG)
        nothing = (0.0,) * len(ids)
        rollouts.advance(tree, trajectory, Completion(ids, nothing, nothing, "tag"))
        if tree.unavailable is not None:
            raise ToolUnavailable(tree.unavailable)
    if trajectory.state.stop != "answered":
        raise Unusable(_ended(trajectory))
    return trajectory


def _ended(trajectory: Trajectory) -> str:
    stop = trajectory.state.stop
    if stop == "length":
        return TOO_LONG
    return (
        "its script goes on after its answer"
        if stop == "answered"
        else ("its script ends without an answer" if stop is None else f"its script ends in {stop}")
    )
