"""Rollouts in which a trajectory waits for its own tool only, and the policy for none.

Tools run in threads while the sampler goes on; what a thread has finished joins the sampler's batch
at its next step. Every draw is decided by a trajectory's own key, so this changes which rows share
a forward pass, and with it rounding, but nothing else.
"""

import threading
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from learners.threads import Threads
from learners.tree import Completion, RolloutTree, Trajectory

if TYPE_CHECKING:
    from learners.rollout import Hook, Rollouts


class Overlap:
    """One rollout under way. Mutated by the thread that samples and by those that run tools.

    Between the turns of one tree a hook may fork, so with a hook a trajectory waits for its tree's
    round; trees never wait for each other.
    """

    def __init__(
        self,
        rollouts: "Rollouts",
        trees: Sequence[RolloutTree],
        key: str,
        after_turn: "Hook | None",
    ) -> None:
        """Nothing is sampled yet; for the arguments see `Rollouts.run`."""
        self._rollouts, self._trees, self._key = rollouts, trees, key
        self._after_turn = after_turn
        self._sampled: dict[str, tuple[RolloutTree, Trajectory]] = {}
        """By key: what is with the sampler."""
        self._under_way: Counter[RolloutTree] = Counter()
        """Trajectories of a tree's round that are with the sampler or a tool."""
        self._round = threading.Lock()
        self._threads = Threads(rollouts.tool_threads)

    def run(self) -> None:
        """Bring every unfinished trajectory to its end; returns when no tool is left running.

        What goes wrong, here or in a tool's thread, is raised at once, whatever still runs.
        """
        ledger, threads = self._rollouts.ledger, self._threads
        for tree in self._trees:
            self._submit(tree, tree.trajectories)
        with threads:
            while self._sampled or threads.running:
                with ledger.phase("sample"):
                    for request, completion in self._rollouts.completed():
                        tree, trajectory = self._sampled.pop(request.key)
                        threads.submit(partial(self._turn, tree, trajectory, completion))
                        threads.collect()
                assert threads.running or not self._sampled, "the sampler has lost requests"
                with ledger.phase("tools"):  # the policy has nothing to do
                    threads.collect(wait=True)

    def _turn(self, tree: RolloutTree, trajectory: Trajectory, said: Completion) -> None:
        """Step the environment, then sample what comes next; in a thread of the tools."""
        if tree.unavailable is None:
            self._rollouts.advance(tree, trajectory, said)
        else:
            trajectory.discarded_tokens += len(said.token_ids)
        if self._threads.abandoned:
            return
        if self._after_turn is None:
            self._submit(tree, [trajectory])
            return
        with self._round:
            self._under_way[tree] -= 1
            if self._under_way[tree] == 0:
                self._after_turn([tree])
                self._submit(tree, tree.trajectories)

    def _submit(self, tree: RolloutTree, trajectories: Sequence[Trajectory]) -> None:
        if tree.unavailable is not None:
            return
        for trajectory in [t for t in trajectories if not t.done]:
            request = self._rollouts.request(tree, trajectory, self._key)
            self._under_way[tree] += 1
            self._sampled[request.key] = (tree, trajectory)
            self._rollouts.sampler.submit(request)
