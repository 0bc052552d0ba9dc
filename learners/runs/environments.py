"""What a run's config asks for, refused before anything is opened; and its environments."""

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


def environment(config: RunConfig, split: str) -> ToolEnv:
    """The environment of a split, its tools made and none of them opened.

    Raises:
        UsageError: the arguments do not go together, or name a file that is not there.
        benchmarks.DataUnavailable: there is no corpus to search.
    """
    parts = []
    try:
        for name in config.environment.ids:
            env = gym.make(name, **env_arguments(config, split)).unwrapped
            assert isinstance(env, envs.ToolEnv)
            _ = env.tools
            parts.append(env)
        # A mixture has all of a ToolEnv that learners use.
        return parts[0] if len(parts) == 1 else TaskMixture(parts)  # type: ignore[return-value]
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        raise UsageError(str(error)) from error


def env_arguments(config: RunConfig, split: str) -> dict[str, Any]:
    """What gym.make is given for a split."""
    return {
        "split": split,
        "data_dir": config.environment.data_dir,
        "reward": config.environment.reward,
        "level": config.environment.level,
        "tools": config.environment.tools,
        "max_tool_calls": config.environment.max_tool_calls,
        "sandbox": config.environment.sandbox,
        "search": config.environment.search,
        "corpus": config.environment.corpus,
        "cache": config.environment.cache,
        "cache_mode": config.environment.cache_mode,
    }


def prove_sandbox(env: ToolEnv) -> None:
    """Open the sandbox of an environment that runs Python.

    Raises:
        tools.ToolUnavailable: none can be had; the message says what is missing.
    """
    for tool in env.tools:
        if isinstance(tool, PythonTool):
            tool.status()


def stop_where_tools_fail(config: RunConfig, what: str, faults: Sequence[str], trees: int) -> None:
    """Nothing while no more trees lose their tools than the person allowed.

    Args:
        config: says the share.
        what: lost them; for the message.
        faults: of each tree that lost its tools, why.
        trees: all of them.

    Raises:
        RunStopped: too many did.
    """
    share = config.limits.max_unavailable
    if len(faults) <= share * trees:
        return
    why = "; ".join(f"{count} x {fault}" for fault, count in Counter(faults).most_common(3))
    raise RunStopped(
        f"{len(faults)} of {trees} {what} lost their tools, more than --max-unavailable "
        f"{share:g} allows: {why}. Nothing of them is kept. When the tools work, "
        "run the same command: it resumes from the last checkpoint"
    )


class TaskMixture:
    """What learners use of a ToolEnv, over several. Mutated like one: fork before playing."""

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
        """All tasks, the environments taking turns; ids are <benchmark>:<id>."""
        rounds = zip_longest(*(part.tasks for part in self._parts.values()))
        return [
            replace(task, id=f"{name}:{task.id}")
            for round_ in rounds
            for name, task in zip(self._parts, round_, strict=True)
            if task is not None
        ]

    @property
    def benchmark(self) -> Benchmark:
        """Named after all; scores an answer as the task's own benchmark does."""
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
        """Of all environments."""
        return tuple(tool for part in self._parts.values() for tool in part.tools)

    @property
    def stop_tags(self) -> tuple[str, ...]:
        """Of all environments."""
        return tuple(dict.fromkeys(tag for p in self._parts.values() for tag in p.stop_tags))

    @property
    def instructions(self) -> str:
        """Of the environment under way."""
        return self._current.instructions

    def reset(self, *, options: Mapping[str, Task]) -> tuple[str, StepInfo]:
        """Begin a task of the mixture in its environment."""
        name, task = _split_task(options["task"])
        self._current = self._parts[name].fork()
        return self._current.reset(options={"task": task})

    def restore(self, state: EnvState, task: Task | None = None) -> None:
        """Continue from a state of one of the environments; `task` is the mixture's."""
        self._current = self._parts[state.benchmark].fork()
        self._current.restore(state, None if task is None else _split_task(task)[1])

    def snapshot(self) -> EnvState:
        """The state of the environment under way."""
        return self._current.snapshot()

    def step(self, action: str, *, run_tool: RunTool) -> Outcome:
        """Play one turn in the current environment."""
        return self._current.step(action, run_tool=run_tool)

    def truncate(self, reason: str, action: str = "") -> Any:  # noqa: ANN401 - as ToolEnv's
        """End the episode under way."""
        return self._current.truncate(reason, action)  # type: ignore[arg-type]

    def fork(self) -> TaskMixture:
        """Another mixture over the same environments."""
        return TaskMixture(self.parts)

    def close(self) -> None:
        """Close all environments."""
        for part in self._parts.values():
            part.close()

    def _score(self, answer: str, task: Task) -> Score:
        return self._parts[task.id.partition(":")[0]].benchmark.score(answer, task)


def _split_task(task: Task) -> tuple[str, Task]:
    """The benchmark of a mixture's task, and the task as that benchmark knows it."""
    name, _, own_id = task.id.partition(":")
    return name, replace(task, id=own_id)
