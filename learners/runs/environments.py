"""Environments of a run: made from its config, checked, and mixed if there are several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import zip_longest
from typing import Any

import gymnasium as gym

import envs
from benchmarks import Benchmark, Score, Task
from envs import EnvState, Outcome, RunTool, StepInfo, ToolEnv
from learners.config import RunConfig
from learners.errors import RunStopped, UsageError
from tools import PythonTool, Tool


def make_training_env(config: RunConfig) -> ToolEnv:
    """Check the options of a run and make the environment that it trains on.

    Raises:
        gymnasium.error.Error: no such id; the message names the nearest one.
        UsageError: it would train on test rows, is not one of our environments, or its options do
            not go together.
    """
    config.validate()
    for name in config.environment.ids:
        if not isinstance(gym.make(name).unwrapped, envs.ToolEnv):
            raise UsageError(f"--env {name} is not one of ours; expected appo/<Benchmark>-v0")
    return make_env(config, config.environment.train_split)


def make_env(config: RunConfig, split: str) -> ToolEnv:
    """Make the environment of a split, with its tools; no tool is opened.

    Raises:
        UsageError: the options do not go together, or name a file that does not exist.
        benchmarks.DataUnavailable: there is no corpus to search.
    """
    options = config.environment
    parts = []
    try:
        for name in options.ids:
            env = gym.make(
                name,
                split=split,
                data_dir=options.data_dir,
                reward=options.reward,
                level=options.level,
                tools=options.tools,
                max_tool_calls=options.max_tool_calls,
                sandbox=options.sandbox,
                search=options.search,
                corpus=options.corpus,
                cache=options.cache,
                cache_mode=options.cache_mode,
            ).unwrapped
            assert isinstance(env, envs.ToolEnv)
            _ = env.tools  # made on first access; their errors belong to this function
            parts.append(env)
        # A mixture has everything of a ToolEnv that learners use.
        return parts[0] if len(parts) == 1 else TaskMixture(parts)  # type: ignore[return-value]
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        raise UsageError(str(error)) from error


def prove_sandbox(env: ToolEnv) -> None:
    """Open the sandbox of an environment that runs Python.

    Raises:
        tools.ToolUnavailable: no sandbox works on this machine; the message says what is missing.
    """
    for tool in env.tools:
        if isinstance(tool, PythonTool):
            tool.status()


def check_tool_failures(config: RunConfig, what: str, faults: Sequence[str], count: int) -> None:
    """Check that no more trees lost their tools than --max-unavailable allows.

    Args:
        config: has the allowed share.
        what: what the trees are, for the message.
        faults: the reason of each tree that lost its tools.
        count: number of all trees.

    Raises:
        RunStopped: too many trees lost their tools.
    """
    share = config.limits.max_unavailable
    if len(faults) <= share * count:
        return
    reasons = "; ".join(f"{n} x {fault}" for fault, n in Counter(faults).most_common(3))
    raise RunStopped(
        f"{len(faults)} of {count} {what} lost their tools, more than --max-unavailable "
        f"{share:g} allows: {reasons}. Nothing of them is kept. When the tools work, "
        "run the same command: it resumes from the last checkpoint"
    )


class TaskMixture:
    """Several environments behind the part of ToolEnv that learners use.

    Mutated like a ToolEnv: fork it before playing an episode.
    """

    def __init__(self, parts: Sequence[ToolEnv]) -> None:
        """Mix environments of different benchmarks."""
        self._parts = {part.benchmark.name: part for part in parts}
        if len(self._parts) < len(parts):
            raise ValueError("a mixture needs environments of different benchmarks")
        self._current = parts[0]

    @property
    def parts(self) -> Sequence[ToolEnv]:
        """The environments that are mixed."""
        return list(self._parts.values())

    @cached_property
    def tasks(self) -> Sequence[Task]:
        """All tasks, one of each environment in turn; ids are <benchmark>:<id>."""
        rounds = zip_longest(*(part.tasks for part in self._parts.values()))
        return [
            replace(task, id=f"{name}:{task.id}")
            for round_ in rounds
            for name, task in zip(self._parts, round_, strict=True)
            if task is not None
        ]

    @property
    def benchmark(self) -> Benchmark:
        """A benchmark named after all; it scores an answer as the task's own benchmark does."""
        records = [part.benchmark for part in self._parts.values()]
        return replace(
            records[0],
            name="+".join(self._parts),
            train_source=" and ".join(record.train_source for record in records),
            score=self._score,
            demonstrations=None,
        )

    @property
    def tools(self) -> tuple[Tool[Any], ...]:
        """The tools of all environments."""
        return tuple(tool for part in self._parts.values() for tool in part.tools)

    @property
    def stop_tags(self) -> tuple[str, ...]:
        """The stop tags of all environments."""
        return tuple(dict.fromkeys(tag for p in self._parts.values() for tag in p.stop_tags))

    @property
    def instructions(self) -> str:
        """The instructions of the current environment."""
        return self._current.instructions

    def reset(self, *, options: Mapping[str, Task]) -> tuple[str, StepInfo]:
        """Start an episode of a mixture's task in the task's environment."""
        name, task = _split_task(options["task"])
        self._current = self._parts[name].fork()
        return self._current.reset(options={"task": task})

    def restore(self, state: EnvState, task: Task | None = None) -> None:
        """Continue from a state of one of the environments; `task` has the mixture's id."""
        self._current = self._parts[state.benchmark].fork()
        self._current.restore(state, None if task is None else _split_task(task)[1])

    def snapshot(self) -> EnvState:
        """Return the state of the current environment."""
        return self._current.snapshot()

    def step(self, action: str, *, run_tool: RunTool) -> Outcome:
        """Play one turn in the current environment."""
        return self._current.step(action, run_tool=run_tool)

    def truncate(self, reason: str, action: str = "") -> Any:  # noqa: ANN401 - as ToolEnv's
        """End the current episode."""
        return self._current.truncate(reason, action)  # type: ignore[arg-type]

    def fork(self) -> TaskMixture:
        """Return another mixture of the same environments."""
        return TaskMixture(self.parts)

    def close(self) -> None:
        """Close all environments."""
        for part in self._parts.values():
            part.close()

    def _score(self, answer: str, task: Task) -> Score:
        return self._parts[task.id.partition(":")[0]].benchmark.score(answer, task)


def _split_task(task: Task) -> tuple[str, Task]:
    """Split a mixture's task into its benchmark's name and the task with its own id."""
    name, _, own_id = task.id.partition(":")
    return name, replace(task, id=own_id)
