"""Plays unfinished trajectories to their end: sample a turn, step the environment, repeat.

Tokens are encoded in two places only, both here: the prompt and each observation. What the policy
sampled is never encoded again; the ids of a whole turn are only decoded.
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
from learners.rollouts.encoding import encode, encode_prompt
from learners.rollouts.tool_threads import UNAVAILABLE, ToolThreads, step_with_retries
from learners.sampling import Request, Sampler
from learners.tree import Completion, RolloutTree, Trajectory, Turn, usable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RESERVED_TOKENS = 64
"""Tokens that a tool's result must leave for the answer."""

SHORTEST_OBSERVATION = 8
"""Tokens below which an observation is not worth cutting to."""

Hook = Callable[[Sequence[RolloutTree]], None]
"""Called between rounds with the trees whose tools work; may fork unfinished trajectories."""


@dataclass
class Rollouts:
    """Everything a rollout needs. Holds resources; mutated only through them and the ledger."""

    env: ToolEnv
    sampler: Sampler
    tokenizer: PreTrainedTokenizerBase
    max_response_tokens: int
    temperature: float = 1.0
    seed: int = 0
    tool_threads: int = 8
    pause_s: float = 0.2
    """Seconds before a failed call is retried; doubles with every further attempt."""
    step_timeout_s: float = 600.0
    """Seconds that a step of the environment may take. Tools have shorter limits of their own; this
    one is for tools that hang in spite of them. The step's thread is left behind and its tree
    becomes unavailable."""
    turns: Literal["lockstep", "overlap"] = "lockstep"
    """lockstep: all sample, then all call their tools; overlap: each waits for its own tool."""
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def tasks(self) -> Sequence[Task]:
        """All tasks of the environment."""
        return self.env.tasks

    def trees(self, tasks: Sequence[Task]) -> list[RolloutTree]:
        """Make an empty tree per task."""
        return [self.tree(task) for task in tasks]

    def tree(self, task: Task) -> RolloutTree:
        """Make an empty tree: the question, encoded once."""
        env = self.env.fork()
        question, _ = env.reset(options={"task": task})
        return RolloutTree(task, self.encode_question(env.instructions, question), env.snapshot())

    def encode_question(self, instructions: str, question: str) -> tuple[int, ...]:
        """Encode the prompt that an episode begins with."""
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
            key: seeds the draws, together with task and path; use each key once.
            after_turn: called after every round of turns of all trees; with overlap, of one tree.
        """
        if self.turns == "overlap":
            OverlappedRollout(self, trees, key, after_turn).run()
        else:
            self._run_in_lockstep(trees, key, after_turn)
        self.sampler.rest()

    def _run_in_lockstep(
        self, trees: Sequence[RolloutTree], key: str, after_turn: Hook | None
    ) -> None:
        with ToolThreads(self.tool_threads) as threads:
            while active := _unfinished(trees):
                by_key: dict[str, tuple[RolloutTree, Trajectory]] = {}
                for tree, trajectory in active:
                    request = self.make_request(tree, trajectory, key)
                    by_key[request.key] = (tree, trajectory)
                    self.sampler.submit(request)
                with self.ledger.phase("sample"):
                    sampled = [(by_key[r.key], c) for r, c in self.completed()]
                # Completions arrive in any order; tools start in the order of the trajectories.
                sampled.sort(key=lambda item: active.index(item[0]))
                with self.ledger.phase("tools"):
                    for (tree, trajectory), completion in sampled:
                        threads.submit(partial(self.advance, tree, trajectory, completion))
                    while threads.running:
                        threads.collect(wait=True)
                if after_turn is not None:
                    after_turn(usable(trees))

    def completed(self) -> Iterator[tuple[Request, Completion]]:
        """Yield what the sampler completes; count its tokens, even if they are discarded later."""
        for request, completion in self.sampler.completed():
            self.ledger.add_sampled_tokens(len(completion.token_ids))
            yield request, completion

    def make_request(self, tree: RolloutTree, trajectory: Trajectory, key: str) -> Request:
        """Ask for the rest of a trajectory's current turn."""
        response = trajectory.response_ids
        prefill = trajectory.prefill.token_ids
        path = "/".join(map(str, trajectory.path))
        return Request(
            prefix_ids=trajectory.prompt_ids + response[: len(response) - len(prefill)],
            prefill_ids=prefill,
            max_tokens=self.max_response_tokens - len(response),
            key=f"{self.seed}/{key}/{tree.name}/{path}",
            position=len(response),
            temperature=self.temperature,
        )

    def advance(self, tree: RolloutTree, trajectory: Trajectory, rest: Completion) -> None:
        """Step the environment with the whole turn and append the turn to the trajectory.

        Args:
            tree: marked unavailable if the step fails.
            trajectory: unfinished.
            rest: the turn without its prefill.
        """
        action = trajectory.prefill + rest
        env = self.env.fork()
        env.restore(trajectory.state, tree.task)
        text = self.tokenizer.decode(action.token_ids, skip_special_tokens=True)
        if action.stop == "length":
            outcome = env.truncate("length", text)
        else:
            result = step_with_retries(
                env,
                text,
                run_tool=self.ledger.run,
                pause_s=self.pause_s,
                timeout_s=self.step_timeout_s,
                on_retry=partial(self.ledger.add, "retries"),
            )
            if isinstance(result, UNAVAILABLE):
                self.ledger.count_attempt(len(trajectory.state.calls), ok=False)
                trajectory.discarded_tokens += len(rest.token_ids)
                tree.unavailable = str(result)
                return
            outcome = result
        observation, reward, terminated, truncated, info = outcome
        call = info.get("call")
        if call is not None:
            self.ledger.count_attempt(len(trajectory.state.calls), ok=True)
        room = self.max_response_tokens - len(trajectory) - len(rest.token_ids)
        ids = () if terminated or truncated else self.encode_observation(observation, room)
        if ids is None:  # no room for the tool's result: the turn counts, its result does not
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

    def encode_observation(self, observation: str, room: int) -> tuple[int, ...] | None:
        """Encode an observation, its middle cut out to leave room for an answer.

        Args:
            observation: what the environment returned.
            room: tokens that are left of the response.

        Returns:
            Its ids; None if too few tokens would be left of it.
        """
        ids = encode(self.tokenizer, observation, trusted=False)
        max_tokens = room - min(RESERVED_TOKENS, self.max_response_tokens // 4)
        if len(ids) <= max_tokens:
            return ids
        if max_tokens < SHORTEST_OBSERVATION:
            return None
        tail = max_tokens // 4
        return ids[: max_tokens - tail] + ids[len(ids) - tail :]


def _unfinished(trees: Sequence[RolloutTree]) -> list[tuple[RolloutTree, Trajectory]]:
    return [
        (tree, trajectory)
        for tree in trees
        if tree.unavailable is None
        for trajectory in tree.trajectories
        if not trajectory.done
    ]


class OverlappedRollout:
    """A rollout in which trees do not wait for each other.

    Mutated by the thread that samples and by those that run tools. A hook may fork between the
    turns of a tree, so with a hook a trajectory waits for its tree's round to end.
    """

    def __init__(
        self,
        rollouts: Rollouts,
        trees: Sequence[RolloutTree],
        key: str,
        after_turn: Hook | None,
    ) -> None:
        """Prepare; nothing is sampled yet. For the arguments see `Rollouts.run`."""
        self._rollouts, self._trees, self._key = rollouts, trees, key
        self._after_turn = after_turn
        self._sampling: dict[str, tuple[RolloutTree, Trajectory]] = {}
        """Trajectories that the sampler works on, by their request's key."""
        self._in_round: Counter[RolloutTree] = Counter()
        """Trajectories of a tree's round that the sampler or a tool works on."""
        self._round_lock = threading.Lock()
        self._threads = ToolThreads(rollouts.tool_threads)

    def run(self) -> None:
        """Bring every unfinished trajectory to its end; return when no tool is running.

        An exception, here or in a tool's thread, is raised at once, even while other tools run.
        """
        ledger, threads = self._rollouts.ledger, self._threads
        for tree in self._trees:
            self._submit(tree, tree.trajectories)
        with threads:
            while self._sampling or threads.running:
                with ledger.phase("sample"):
                    for request, completion in self._rollouts.completed():
                        tree, trajectory = self._sampling.pop(request.key)
                        threads.submit(partial(self._take_turn, tree, trajectory, completion))
                        threads.collect()
                assert threads.running or not self._sampling, "the sampler has lost requests"
                with ledger.phase("tools"):  # the sampler is idle until a tool returns
                    threads.collect(wait=True)

    def _take_turn(self, tree: RolloutTree, trajectory: Trajectory, rest: Completion) -> None:
        """Step the environment, then request the next turn; runs in one of the tool threads."""
        if tree.unavailable is None:
            self._rollouts.advance(tree, trajectory, rest)
        else:
            trajectory.discarded_tokens += len(rest.token_ids)
        if self._threads.abandoned:
            return
        if self._after_turn is None:
            self._submit(tree, [trajectory])
            return
        with self._round_lock:
            self._in_round[tree] -= 1
            if self._in_round[tree] == 0:
                self._after_turn(usable([tree]))
                self._submit(tree, tree.trajectories)

    def _submit(self, tree: RolloutTree, trajectories: Sequence[Trajectory]) -> None:
        if tree.unavailable is not None:
            return
        for trajectory in [t for t in trajectories if not t.done]:
            request = self._rollouts.make_request(tree, trajectory, self._key)
            self._in_round[tree] += 1
            # Before `submit`: the sampler may complete the request in the other thread at once.
            self._sampling[request.key] = (tree, trajectory)
            self._rollouts.sampler.submit(request)
