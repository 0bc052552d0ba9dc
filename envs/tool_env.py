"""ToolEnv, one environment for every benchmark: tasks differ in data and scoring only."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Unpack, get_args

import gymnasium as gym
from gymnasium.error import ResetNeeded

from benchmarks import BENCHMARKS, Benchmark, Split, Task
from envs.reward import REWARDS, RewardName, compute_reward, final_answer
from envs.spaces import Unicode
from envs.state import Call, EnvState, StepInfo
from envs.tags import Answer, ToolCall, encodable, instructions, observation, parse, stop_tags
from envs.tasks import TaskTable
from envs.toolbox import RunTool, Toolbox, ToolOptions, run_tool
from tools import Tool, ToolContext

LONGEST_ACTION = 100_000
"""Characters; a longer turn is malformed, whatever it contains."""

Outcome = tuple[str, float, bool, bool, StepInfo]


class ToolEnv(gym.Env[str, str]):
    """A question, answered in turns of text with tools.

    ## Description
    `reset` poses a task of a benchmark. Each `step` takes one turn of text, which ends in a tool
    call or in the answer; see `envs.tags` for the language. The whole state is a value:
    `snapshot`, `restore` and `fork` cost nothing and include live Python sessions.

    ## Action and observation space
    `Unicode`: any text. An action is one turn; an observation is the question or a tool's result.

    ## Rewards
    0 until the end, then the named reward of `envs.reward`, its terms in `info["reward_terms"]`.

    ## Starting state
    `reset(seed=...)` decides the task, `options={"task": ...}` picks one by id or index.

    ## Episode end
    Terminated: answered; malformed (no action, two actions, a `<result>` that the model wrote, a
    turn over 100,000 characters or outside the action space). Truncated: tool_limit (one
    observation says that no call is left, the next call ends it), and length or turn_limit, which
    the caller declares with `truncate`. Without an answer an episode scores as a wrong one.

    ## Version history
    * v0: first release.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium reads it from the class

    def __init__(
        self,
        benchmark: str | Benchmark,
        *,
        split: Split = "test",
        data_dir: str | Path | None = None,
        reward: RewardName = "task",
        tools: Sequence[str | Tool[Any]] | None = None,
        max_tool_calls: int | None = None,
        level: str | None = None,
        **options: Unpack[ToolOptions],
    ) -> None:
        """Open nothing; the first reset loads data, the first call opens tools.

        Args:
            benchmark: a name of `benchmarks.BENCHMARKS`, or your own record.
            split: train, validation or test.
            data_dir: a folder of rows instead of the public data set; the README has its layout.
            reward: task, arpo or correctness.
            tools: names of `tools.TOOLS` or your own tools, in the order of the instructions;
                None: the benchmark's.
            max_tool_calls: per episode, 0 or more; None: the benchmark's.
            level: keep only tasks whose metadata has this level.
            options: sandbox, search, corpus, cache, cache_mode: see `envs.toolbox.ToolOptions`.

        Raises:
            ValueError: an argument is none of those listed here.
        """
        if isinstance(benchmark, str) and benchmark not in BENCHMARKS:
            raise ValueError(f"benchmark is {benchmark!r}; expected one of {sorted(BENCHMARKS)}")
        if split not in get_args(Split):
            raise ValueError(f"split is {split!r}; expected one of {get_args(Split)}")
        if reward not in REWARDS:
            raise ValueError(f"reward is {reward!r}; expected one of {REWARDS}")
        if max_tool_calls is not None and max_tool_calls < 0:
            raise ValueError(f"max_tool_calls is {max_tool_calls}; expected 0 or more")
        self.benchmark = BENCHMARKS[benchmark] if isinstance(benchmark, str) else benchmark
        self.split: Split = split
        self.level = level
        self.reward_name: RewardName = reward
        self.data_dir = None if data_dir is None else Path(data_dir)
        self.max_tool_calls = (
            self.benchmark.max_tool_calls if max_tool_calls is None else max_tool_calls
        )
        self._table = TaskTable(self.benchmark, split, self.data_dir, level)
        chosen = self.benchmark.tools if tools is None else tools
        self._toolbox = Toolbox(self.benchmark, chosen, split, self.data_dir, **options)
        self._owns_tools = True
        self._state: EnvState | None = None
        self._task: Task | None = None
        self.action_space = Unicode(tags=(*self._toolbox.names, "answer"))
        self.observation_space = Unicode()

    @property
    def tasks(self) -> Sequence[Task]:
        """The tasks of the split, in their order.

        Raises:
            benchmarks.DataUnavailable: they cannot be had; the message says what to do.
        """
        return self._table.in_order()

    @property
    def tools(self) -> tuple[Tool[Any], ...]:
        """The tools, in the order of the instructions; shared with forks."""
        return self._toolbox.tools()

    @property
    def stop_tags(self) -> tuple[str, ...]:
        """The closing tags that end a turn."""
        return stop_tags(self._toolbox.names)

    @property
    def instructions(self) -> str:
        """The system prompt that explains the tags and the tools."""
        return instructions(self.tools, self.benchmark.instructions)

    def reset(  # type: ignore[override]
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, StepInfo]:
        """Begin an episode and return its question.

        Args:
            seed: decides the task if `options` does not.
            options: {"task": a task, its id or its index}.

        Raises:
            KeyError, IndexError: no such task.
            ValueError: an option other than "task".
            benchmarks.DataUnavailable: the tasks cannot be had.
        """
        if set(options or ()) - {"task"}:
            raise ValueError(f'options are {options}; expected {{"task": task, id or index}}')
        super().reset(seed=seed)
        task = self._table.pick((options or {}).get("task"), self._draw)
        self._task = task
        context = ToolContext(seed=zlib.crc32(task.id.encode()), attachments=task.attachments)
        self._state = EnvState(
            benchmark=self.benchmark.name,
            revision=self.benchmark.revision,
            split=self.split,
            task_id=task.id,
            tool_states=tuple(tool.initial_state(context) for tool in self.tools),
            tools=self._toolbox.names,
        )
        return task.question, StepInfo(task=task.id, instructions=self.instructions)

    def step(self, action: str, *, run_tool: RunTool = run_tool) -> Outcome:  # type: ignore[override]
        """Play one turn.

        Args:
            action: the turn.
            run_tool: runs the tool of a call; callers that count or bound calls pass their own.

        Raises:
            ResetNeeded: the episode has ended, or none began.
            tools.ToolUnavailable, benchmarks.GraderUnavailable: the machinery of a tool or of the
                scorer failed; the state is as before the turn.
        """
        state = self._running()
        turn = encodable(action)
        well_formed = turn == action and len(action) <= LONGEST_ACTION
        call = parse(turn, self._toolbox.names) if well_formed else None
        if isinstance(call, ToolCall):
            return self._call(state, turn, call, run_tool)
        stop: Literal["answered", "malformed"]
        stop = "answered" if isinstance(call, Answer) else "malformed"
        return self._end(replace(state, transcript=(*state.transcript, turn), stop=stop))

    def truncate(self, reason: Literal["length", "turn_limit"], action: str = "") -> Outcome:
        """End the episode at a limit that only the caller knows.

        Args:
            reason: length (tokens) or turn_limit.
            action: the part of the turn that was written before the limit.

        Raises:
            ResetNeeded: the episode has ended, or none began.
            ValueError: another reason.
            benchmarks.GraderUnavailable: as for `step`.
        """
        if reason not in ("length", "turn_limit"):
            raise ValueError(f"reason is {reason!r}; expected length or turn_limit")
        state = self._running()
        transcript = (*state.transcript, encodable(action))
        return self._end(replace(state, transcript=transcript, stop=reason))

    def snapshot(self) -> EnvState:
        """Return the state, in O(1).

        Raises:
            ResetNeeded: no episode began.
        """
        if self._state is None:
            raise ResetNeeded("no episode to take a snapshot of; call reset() first")
        return self._state

    def restore(self, state: EnvState, task: Task | None = None) -> None:
        """Continue from a snapshot of this or another environment over the same tasks.

        Args:
            state: of the snapshot.
            task: the state's task, if the caller has it; None: it is looked up by its id.

        Raises:
            ValueError: the state belongs to other tasks or other tools.
        """
        names = self._toolbox.names
        expected = (self.benchmark.name, self.benchmark.revision, self.split, names)
        origin = (state.benchmark, state.revision, state.split, state.tools)
        if origin != expected:
            raise ValueError(
                f"the state is of {origin}, this environment of {expected} "
                "(benchmark, revision, split, tools)"
            )
        task = task or self._table.by_id().get(state.task_id)
        if task is None or task.id != state.task_id:
            level = "" if self.level is None else f" of level {self.level}"
            raise ValueError(
                f"the state's task {state.task_id!r} is not among the {self.split} tasks{level}"
            )
        self._state, self._task = state, task

    def fork(self) -> ToolEnv:
        """Return a second environment in the same state; tools are shared."""
        twin = copy.copy(self)
        twin._owns_tools = False
        if self._np_random is not None:
            twin._np_random = copy.deepcopy(self._np_random)
        return twin

    def close(self) -> None:
        """Close the tools, your own included, unless this is a fork."""
        if self._owns_tools:
            self._toolbox.close()

    def _call(self, state: EnvState, action: str, call: ToolCall, run_tool: RunTool) -> Outcome:
        info = StepInfo(task=state.task_id)
        if len(state.calls) >= self.max_tool_calls:
            if state.limit_noticed:
                stopped = replace(state, transcript=(*state.transcript, action), stop="tool_limit")
                return self._end(stopped)
            text = f"No tool call is left after {self.max_tool_calls}; give the answer now."
            calls, states, noticed = state.calls, state.tool_states, True
        else:
            index = self._toolbox.names.index(call.tool)
            tool, tool_state = self.tools[index], state.tool_states[index]
            next_state, result = run_tool(tool, tool_state, call.argument)
            text, noticed = result.text, False
            states = (*state.tool_states[:index], next_state, *state.tool_states[index + 1 :])
            calls = (*state.calls, call.tool)
            executed = Call(call.tool, call.argument, result.ok, result.seconds, result.free)
            info = StepInfo(task=state.task_id, tool=call.tool, ok=result.ok, call=executed)
        answer = observation(text, self._toolbox.names)
        self._state = replace(
            state,
            transcript=(*state.transcript, action, answer),
            tool_states=states,
            calls=calls,
            limit_noticed=noticed,
        )
        return answer, 0.0, False, False, info

    def _end(self, state: EnvState) -> Outcome:
        task = self._task
        assert task is not None  # since reset or restore
        reward = compute_reward(self.reward_name, self.benchmark, task, state)
        self._state = state
        assert state.stop is not None
        terminated = state.stop in ("answered", "malformed")
        info = StepInfo(
            task=task.id,
            stop=state.stop,
            answer=final_answer(state),
            reward_terms=reward.terms,
            gold_answers=task.answers,
        )
        return "", reward.value, terminated, not terminated, info

    def _running(self) -> EnvState:
        if self._state is None or self._state.stop is not None:
            raise ResetNeeded("the episode has ended or none began; call reset() or restore()")
        return self._state

    def _draw(self, tasks: int) -> int:
        return int(self.np_random.integers(tasks))
