"""Runs every unfinished trajectory to its end: sample a turn, step the environment, repeat.

Tokens are encoded in two places only, both here: the prompt and each observation. What the policy
sampled is never encoded again; decoding is one-way, over the ids of a whole turn.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

from benchmarks import Task
from envs import ToolEnv
from learners.ledger import Ledger
from learners.rollouts import tool_threads
from learners.rollouts.encoding import encode, encode_prompt
from learners.rollouts.tool_threads import UNAVAILABLE, Threads
from learners.sampling import Request, Sampler
from learners.tree import Completion, RolloutTree, Trajectory, Turn, usable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


RESERVED_TOKENS = 64
"""Room that a tool's result must leave for the answer."""

Hook = Callable[[Sequence[RolloutTree]], None]
"""Called between rounds with the trees whose tools work; may fork unfinished trajectories."""


@dataclass
class Rollouts:
    """What a rollout needs. Holds resources; mutated only through them and the ledger."""

    env: ToolEnv
    sampler: Sampler
    tokenizer: PreTrainedTokenizerBase
    max_response_tokens: int
    temperature: float = 1.0
    seed: int = 0
    tool_threads: int = 8
    pause_s: float = 0.2
    """Before a failed call is made again; doubles from attempt to attempt."""
    patience_s: float = 600.0
    """For one step of the environment; tools have shorter limits of their own, this is for those
    that hang in spite of them. The step's thread is left behind, its tree is unavailable."""
    turns: Literal["lockstep", "overlap"] = "lockstep"
    """lockstep: all sample, then all call their tools; overlap: each waits for its own tool."""
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def tasks(self) -> Sequence[Task]:
        """All tasks of the environment."""
        return self.env.tasks

    def trees(self, tasks: Sequence[Task]) -> list[RolloutTree]:
        """An empty tree per task."""
        return [self.tree(task) for task in tasks]

    def tree(self, task: Task) -> RolloutTree:
        """An empty tree: the question, encoded once."""
        env = self.env.fork()
        question, _ = env.reset(options={"task": task})
        return RolloutTree(task, self.prompt(env.instructions, question), env.snapshot())

    def prompt(self, instructions: str, question: str) -> tuple[int, ...]:
        """The ids that an episode begins with."""
        messages = [
            {"role": "system", "content": instructions},
            {"role": "user", "content": question},
        ]
        return encode_prompt(self.tokenizer, messages)

    def run(self, trees: Sequence[RolloutTree], key: str, after_turn: Hook | None = None) -> None:
        """Bring every unfinished trajectory of the trees to its end.

        A tree whose tools stay unavailable is marked `unavailable` and left as it is.

        Args:
            trees: mutated.
            key: names the draws together with task and path; use each key once.
            after_turn: called after every round of turns of all trees; with overlap, of one tree.
        """
        if self.turns == "overlap":
            Overlap(self, trees, key, after_turn).run()
        else:
            self._lockstep(trees, key, after_turn)
        self.sampler.rest()

    def _lockstep(self, trees: Sequence[RolloutTree], key: str, after_turn: Hook | None) -> None:
        with Threads(self.tool_threads) as threads:
            while active := _unfinished(trees):
                by_key: dict[str, tuple[RolloutTree, Trajectory]] = {}
                for tree, trajectory in active:
                    request = self.request(tree, trajectory, key)
                    by_key[request.key] = (tree, trajectory)
                    self.sampler.submit(request)
                with self.ledger.phase("sample"):
                    sampled = [(by_key[r.key], c) for r, c in self.completed()]
                sampled.sort(key=lambda item: active.index(item[0]))  # whatever ended first
                with self.ledger.phase("tools"):
                    for (tree, trajectory), completion in sampled:
                        threads.submit(partial(self.advance, tree, trajectory, completion))
                    while threads.running:
                        threads.collect(wait=True)
                if after_turn is not None:
                    after_turn(usable(trees))

    def completed(self) -> Iterator[tuple[Request, Completion]]:
        """What the sampler completes; counted, whatever becomes of it."""
        for request, completion in self.sampler.completed():
            self.ledger.add_sampled_tokens(len(completion.token_ids))
            yield request, completion

    def request(self, tree: RolloutTree, trajectory: Trajectory, key: str) -> Request:
        """The rest of the turn that a trajectory is at."""
        whole = trajectory.response_ids
        prefill = trajectory.prefill.token_ids
        path = "/".join(map(str, trajectory.path))
        return Request(
            prefix_ids=trajectory.prompt_ids + whole[: len(whole) - len(prefill)],
            prefill_ids=prefill,
            max_tokens=self.max_response_tokens - len(whole),
            key=f"{self.seed}/{key}/{tree.name}/{path}",
            position=len(whole),
            temperature=self.temperature,
        )

    def advance(self, tree: RolloutTree, trajectory: Trajectory, rest: Completion) -> None:
        """Let the environment see the whole turn; append it."""
        action = trajectory.prefill + rest
        env = self.env.fork()
        env.restore(trajectory.state, tree.task)
        text = self.tokenizer.decode(action.token_ids, skip_special_tokens=True)
        if action.stop == "length":
            outcome = env.truncate("length", text)
        else:
            stepped = tool_threads.step(
                env,
                text,
                run_tool=self.ledger.run,
                pause_s=self.pause_s,
                patience_s=self.patience_s,
                again=partial(self.ledger.add, "retries"),
            )
            if isinstance(stepped, UNAVAILABLE):
                self.ledger.count_attempt(len(trajectory.state.calls), ok=False)
                trajectory.discarded_tokens += len(rest.token_ids)
                tree.unavailable = str(stepped)
                return
            outcome = stepped
        observation, reward, terminated, truncated, info = outcome
        call = info.get("call")
        if call is not None:
            self.ledger.count_attempt(len(trajectory.state.calls), ok=True)
        room = self.max_response_tokens - len(trajectory) - len(rest.token_ids)
        ids = () if terminated or truncated else self.observed(observation, room)
        if ids is None:  # no room for what the tool said: the turn counts, its result does not
            env.restore(trajectory.state, tree.task)
            _, reward, terminated, truncated, info = env.truncate("length", text)
            ids = ()
        state = trajectory.state
        trajectory.turns.append(Turn(state, action, ids, call))
        trajectory.prefill = Completion()
        trajectory.state = env.snapshot()
        if terminated or truncated:
            trajectory.done = True
            trajectory.reward = reward
            trajectory.reward_terms = dict(info["reward_terms"])

    def observed(self, observation: str, room: int) -> tuple[int, ...] | None:
        """An observation's ids, its middle cut to leave room for an answer; None if it cannot."""
        ids = encode(self.tokenizer, observation, trusted=False)
        most = room - min(RESERVED_TOKENS, self.max_response_tokens // 4)
        if len(ids) <= most:
            return ids
        if most < 8:
            return None
        return ids[: most - most // 4] + ids[len(ids) - most // 4 :]


def _unfinished(trees: Sequence[RolloutTree]) -> list[tuple[RolloutTree, Trajectory]]:
    return [
        (tree, trajectory)
        for tree in trees
        if tree.unavailable is None
        for trajectory in tree.trajectories
        if not trajectory.done
    ]


class Overlap:
    """One rollout under way. Mutated by the thread that samples and by those that run tools.

    Between the turns of one tree a hook may fork, so with a hook a trajectory waits for its tree's
    round; trees never wait for each other.
    """

    def __init__(
        self,
        rollouts: Rollouts,
        trees: Sequence[RolloutTree],
        key: str,
        after_turn: Hook | None,
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
                self._after_turn(usable([tree]))
                self._submit(tree, tree.trajectories)

    def _submit(self, tree: RolloutTree, trajectories: Sequence[Trajectory]) -> None:
        if tree.unavailable is not None:
            return
        for trajectory in [t for t in trajectories if not t.done]:
            request = self._rollouts.request(tree, trajectory, self._key)
            self._under_way[tree] += 1
            self._sampled[request.key] = (tree, trajectory)
            self._rollouts.sampler.submit(request)
